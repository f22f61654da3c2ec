// Package transport is the one internode TCP port of a node. It carries, in both
// directions and optionally under mutual TLS, the streams of every Raft group
// and calls: requests with answers, many at once.
//
// A connection begins with a handshake (hello.go). Each side says which cluster,
// node, incarnation and number of groups it is of; each checks the other and
// asks its Gate. hashicorp/raft itself checks neither membership nor identity,
// and grants votes on an empty log, so a stranger or a node that lost its disk
// must not get a single byte through to it.
//
// A Raft connection then belongs to hashicorp/raft (raft.go). A call connection
// carries frames (frame.go); each pair of nodes has at most one per direction,
// made when the first call needs it.
//
// What a caller of Call may conclude is in its errors: ErrNotSent means surely
// not executed, *RemoteError means executed, ErrOutcomeUnknown means neither.
package transport
