package kafkawire

import "hash/crc32"

// A CRC without its first and last complement is linear over GF(2), and zero
// bytes after a message multiply its CRC by x^8 each, modulo the polynomial
// (Rocksoft model, as in R. Williams, "A Painless Guide to CRC Error Detection
// Algorithms"). So the checksums of two messages of one length that differ in
// some bytes differ by the CRC of that difference, multiplied by x^8 for every
// byte that follows it: what the messages have in common need not be read.

// shiftBits is the number of bits of a length that crcShift takes: a batch has
// fewer than 2^31 bytes.
const shiftBits = 31

// shiftTables multiplies by x^(8 * 2^k): shiftTables[k][j][v] is the product
// with the value v in the j-th group of four bits.
var shiftTables = makeShiftTables()

func makeShiftTables() (tables [shiftBits][8][16]uint32) {
	power := uint32(1 << (31 - 8)) // x^8; the highest bit is x^0
	for k := range tables {
		for j := range tables[k] {
			group := &tables[k][j]
			for bit := range 4 {
				column := mulMod(power, 1<<(4*j+bit))
				for v := range 1 << bit {
					group[1<<bit|v] = group[v] ^ column
				}
			}
		}
		power = mulMod(power, power)
	}
	return tables
}

// mulMod multiplies two polynomials modulo Castagnoli's. The highest bit is
// x^0, as in the table that hash/crc32 uses.
func mulMod(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}

// crcShift is what becomes of the CRC-32C of a message, taken without its
// complements, when n zero bytes are appended; n is not negative.
func crcShift(crc uint32, n int) uint32 {
	for k := 0; n != 0 && k < shiftBits; k, n = k+1, n>>1 {
		if n&1 == 0 {
			continue
		}
		t := &shiftTables[k]
		crc = t[0][crc&15] ^ t[1][crc>>4&15] ^ t[2][crc>>8&15] ^ t[3][crc>>12&15] ^
			t[4][crc>>16&15] ^ t[5][crc>>20&15] ^ t[6][crc>>24&15] ^ t[7][crc>>28]
	}
	return crc
}

// bareCRC is the CRC-32C of b without the complements before and after.
func bareCRC(b []byte) uint32 { return ^crc32.Update(^uint32(0), castagnoli, b) }
