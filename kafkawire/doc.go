// Package kafkawire reads and writes the Kafka protocol as a proxy needs it:
// frames with limits, request and response headers, the table of the APIs and
// versions that are served, a view over one record batch, the checks a batch
// must pass before it is replicated, and in-place patching of Fetch. Every
// other message is kmsg's.
//
// Everything that reads a peer's bytes checks a length before it takes memory
// for it, and no input panics. Functions here hold no state and may be called
// from any goroutine; a slice passed in belongs to the call until it returns,
// and where a result aliases it the function says so.
package kafkawire
