package frametest_test

import (
	"bytes"
	"fmt"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
)

func line(data []byte, lost bool) frame.Cut {
	switch i := bytes.IndexByte(data, '\n'); {
	case i < 0:
		return frame.Cut{}
	case lost || i == 0:
		return frame.Cut{Skip: i + 1, Quiet: i == 0}
	default:
		return frame.Cut{Size: i + 1}
	}
}

func TestLineConforms(t *testing.T) {
	frametest.Conforms(t, line, 16, []byte("12.5\n"), []byte("6\n"))
}

// verdict stands in for a test that is expected to fail.
type verdict struct{ said []string }

func (v *verdict) Helper()                   {}
func (v *verdict) Errorf(f string, a ...any) { v.said = append(v.said, fmt.Sprintf(f, a...)) }
func (v *verdict) Fatalf(f string, a ...any) { v.Errorf(f, a...); panic(v) }
func (v *verdict) try(f func()) (failed bool) {
	defer func() { failed = recover() != nil || len(v.said) > 0 }()
	f()
	return
}

// The negative control: each of these Splits breaks one promise.
func TestConformsRefuses(t *testing.T) {
	for name, split := range map[string]frame.Split{
		"a read taken for a frame": func(data []byte, _ bool) frame.Cut { return frame.Cut{Size: len(data)} },
		"no end in sight taken for garbage": func(data []byte, lost bool) frame.Cut {
			if cut := line(data, lost); cut != (frame.Cut{}) {
				return cut
			}
			return frame.Cut{Skip: len(data)}
		},
		"the tail of a frame taken for a frame": func(data []byte, _ bool) frame.Cut { return line(data, false) },
		"beyond the end":                        func(data []byte, lost bool) frame.Cut { return frame.Cut{Size: 17} },
		"state": func() frame.Split {
			n := 0
			return func(data []byte, lost bool) frame.Cut {
				if n++; n%5 == 0 {
					return frame.Cut{Skip: 1}
				}
				return line(data, lost)
			}
		}(),
	} {
		v := &verdict{}
		if !v.try(func() { frametest.Conforms(v, split, 16, []byte("12.5\n"), []byte("6\n")) }) {
			t.Errorf("%s: the suite finds nothing wrong", name)
		}
	}
}
