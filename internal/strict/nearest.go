package strict

import (
	"cmp"
	"slices"
	"strings"
)

// maxNear is how many names a hint offers.
const maxNear = 3

// Nearest returns the candidates that are most like name, the likest first; none where any
// likeness would be chance. A candidate that contains the name is like it: "sdm630" is
// "eastron-sdm630".
func Nearest(name string, candidates []string) []string {
	name = strings.ToLower(name)
	distance := func(candidate string) int {
		if len(name) > 2 && strings.Contains(strings.ToLower(candidate), name) {
			return 0
		}
		return edits(name, strings.ToLower(candidate))
	}
	near := slices.DeleteFunc(slices.Clone(candidates), func(c string) bool { return 2*distance(c) > len(name) })
	slices.SortStableFunc(near, func(a, b string) int { return cmp.Compare(distance(a), distance(b)) })
	return near[:min(len(near), maxNear)]
}

// edits is the Levenshtein distance of a and b in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j]+1, row[j+1]+1, substitution)
		}
	}
	return row[len(b)]
}
