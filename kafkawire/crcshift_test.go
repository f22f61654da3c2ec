package kafkawire

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"testing"
)

// randomBatch is n bytes that pass for a batch with the right checksum.
func randomBatch(rng *rand.Rand, n int) Batch {
	b := make(Batch, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	binary.BigEndian.PutUint32(b[offLength:], uint32(n-batchPrefixLen))
	b[offMagic] = 2
	binary.BigEndian.PutUint32(b[offCRC:], crc32.Checksum(b[offAttributes:], castagnoli))
	return b
}

// anewCRC is the checksum of a stamped batch, by reading all of it.
func anewCRC(b Batch, producerID int64, epoch int16, sequence int32) uint32 {
	return crc32.Checksum(StampWith(nil, b, producerID, epoch, sequence, 0)[offAttributes:], castagnoli)
}

func TestCRCShift(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	lengths := []int{0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 255, 256, 4095, 65536, 1 << 20, 1<<24 - 1, 1 << 24}
	for range 200 {
		lengths = append(lengths, rng.IntN(1<<17))
	}
	for _, n := range lengths {
		message := make([]byte, 14+n)
		for i := range message[:14] {
			message[i] = byte(rng.Uint32())
		}
		if got, want := crcShift(bareCRC(message[:14]), n), bareCRC(message); got != want {
			t.Fatalf("%d zero bytes: %#x, want %#x", n, got, want)
		}
	}
	// Too long to make a message of: in one step as in two. (x has the order
	// 2^31-1 modulo this polynomial, so that many bytes change nothing.)
	const long = 1<<30 + 12345
	if a, b := crcShift(0x12345678, long), crcShift(crcShift(0x12345678, 1<<30), 12345); a != b || a == 0x12345678 {
		t.Errorf("in one step %#x, in two %#x", a, b)
	}
	if got := crcShift(0x12345678, math.MaxInt32); got != 0x12345678 {
		t.Errorf("shifted by the order of x: %#x", got)
	}
}

func TestStampedCRCIsThatOfTheBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{61, 62, correctFrom - 1, correctFrom, correctFrom + 1, 4096, 65536, 1 << 20, 16<<20 - 1, 16 << 20} {
		b := randomBatch(rng, n)
		for _, id := range []struct {
			pid      int64
			epoch    int16
			sequence int32
		}{{0, 0, 0}, {-1, -1, -1}, {math.MaxInt64, math.MaxInt16, math.MaxInt32}, {math.MinInt64, 1, 1},
			{b.ProducerID(), b.ProducerEpoch(), b.BaseSequence()}, {rng.Int64(), int16(rng.Uint32()), rng.Int32()}} {
			if got, want := StampedCRC(b, id.pid, id.epoch, id.sequence), anewCRC(b, id.pid, id.epoch, id.sequence); got != want {
				t.Errorf("%d bytes, %+v: %#x, want %#x", n, id, got, want)
			}
		}
	}
}

// TestStampKeepsDamageVisible changes records behind the back of the checksum:
// whoever appends the stamped batch must be able to tell.
func TestStampKeepsDamageVisible(t *testing.T) {
	b := randomBatch(rand.New(rand.NewPCG(5, 6)), correctFrom)
	b[len(b)-1] ^= 1
	if Batch(Stamp(nil, b, 1<<40, 0, 7)).ChecksumOK() {
		t.Error("the stamped batch's checksum is right, its bytes are not")
	}
}

func FuzzStampedCRC(f *testing.F) {
	f.Add(uint64(1), 2048, int64(1)<<61, int16(0), int32(7))
	f.Add(uint64(2), 61, int64(-1), int16(-1), int32(-1))
	f.Add(uint64(3), 70000, int64(math.MaxInt64), int16(math.MinInt16), int32(math.MinInt32))
	f.Fuzz(func(t *testing.T, seed uint64, size int, pid int64, epoch int16, sequence int32) {
		n := BatchHeaderLen + int(uint(size)%(256<<10))
		b := randomBatch(rand.New(rand.NewPCG(seed, 0)), n)
		if got, want := StampedCRC(b, pid, epoch, sequence), anewCRC(b, pid, epoch, sequence); got != want {
			t.Fatalf("%d bytes: %#x, want %#x", n, got, want)
		}
	})
}

// BenchmarkStampedCRC corrects and, beside it, computes anew.
func BenchmarkStampedCRC(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"1KiB", 1 << 10}, {"2KiB", 2 << 10}, {"16KiB", 16 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		batch := randomBatch(rand.New(rand.NewPCG(7, 8)), size.bytes)
		b.Run(size.name+"/stamped", func(b *testing.B) {
			for b.Loop() {
				StampedCRC(batch, 1<<40, 0, 7)
			}
		})
		b.Run(size.name+"/anew", func(b *testing.B) {
			for b.Loop() {
				crc32.Checksum(batch[offAttributes:], castagnoli)
			}
		})
	}
}
