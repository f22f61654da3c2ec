package kafkawire

import (
	"encoding/binary"
	"math/bits"
)

const (
	xxPrime1 uint32 = 2654435761
	xxPrime2 uint32 = 2246822519
	xxPrime3 uint32 = 3266489917
	xxPrime4 uint32 = 668265263
	xxPrime5 uint32 = 374761393
)

// xxh32 is the 32-bit xxHash of b with seed 0 (xxhash_spec.md), the checksum
// of lz4 frames.
func xxh32(b []byte) uint32 {
	total := uint32(len(b))
	acc := xxPrime5
	if len(b) >= 16 {
		p1, p2 := xxPrime1, xxPrime2
		lanes := [4]uint32{p1 + p2, p2, 0, -p1}
		for ; len(b) >= 16; b = b[16:] {
			for i := range lanes {
				lanes[i] = bits.RotateLeft32(lanes[i]+binary.LittleEndian.Uint32(b[4*i:])*xxPrime2, 13) * xxPrime1
			}
		}
		acc = bits.RotateLeft32(lanes[0], 1) + bits.RotateLeft32(lanes[1], 7) +
			bits.RotateLeft32(lanes[2], 12) + bits.RotateLeft32(lanes[3], 18)
	}
	acc += total
	for ; len(b) >= 4; b = b[4:] {
		acc = bits.RotateLeft32(acc+binary.LittleEndian.Uint32(b)*xxPrime3, 17) * xxPrime4
	}
	for _, c := range b {
		acc = bits.RotateLeft32(acc+uint32(c)*xxPrime5, 11) * xxPrime1
	}
	acc = (acc ^ acc>>15) * xxPrime2
	acc = (acc ^ acc>>13) * xxPrime3
	return acc ^ acc>>16
}
