package kafkawire

const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

func checkRecords(b Batch, lim Limits) (int64, *Refusal) { return b.MaxTimestamp(), nil }
