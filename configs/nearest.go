package configs

import "strings"

// maxComparedKey bounds the work of nearest for hostile input: no key of ours
// is half as long.
const maxComparedKey = 100

// nearest returns the candidate path that was most likely meant by name. A
// name that only lacks its section or its end, or writes dots for underscores
// as Kafka does, is nearer than one with as many wrong letters. Ties go to the
// earlier candidate.
func nearest(name string, candidates []string) string {
	if len(name) > maxComparedKey {
		name = name[:maxComparedKey]
	}
	best, bestDistance := "", -1
	for _, candidate := range candidates {
		if d := keyDistance(name, candidate); bestDistance < 0 || d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// misplaced is what a right key under a wrong section counts, in edits.
const misplaced = 2

func keyDistance(name, candidate string) int {
	flatName, flat := flatten(name), flatten(candidate)
	d := editDistance(flatName, flat)
	if flatName != "" && strings.HasPrefix(flat, flatName) {
		d = min(d, 1+len(flat)-len(flatName), 2) // cut short
	}
	if _, unsectioned, ok := strings.Cut(candidate, "."); ok {
		d = min(d, misplaced+editDistance(flatName, flatten(unsectioned)),
			misplaced+editDistance(flatten(lastPart(name)), flatten(lastPart(candidate))))
	}
	return d
}

func flatten(key string) string {
	return strings.ReplaceAll(strings.ToLower(key), ".", "_")
}

func lastPart(path string) string { return path[strings.LastIndex(path, ".")+1:] }

// editDistance is the Levenshtein distance in bytes; keys are ASCII.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
