package mbus

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// docs/mbus.md lists every quantity and every unit of the tables.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/mbus.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range [][]entry{primaryTable, mainTable, secondTable, alternateTable, fixedTable} {
		if !slices.IsSortedFunc(table, func(a, b entry) int { return int(a.first) - int(b.last) }) {
			t.Error("a table has ranges that overlap")
		}
		for _, e := range table {
			if !strings.Contains(string(text), "`"+e.quantity+"`") {
				t.Errorf("docs/mbus.md says nothing of %s", e.quantity)
			}
			if e.uom != "" && e.uom != "h,m,s" && e.uom != "D,M,Y" && !strings.Contains(string(text), e.uom) {
				t.Errorf("docs/mbus.md says nothing of the unit %s", e.uom)
			}
		}
	}
}
