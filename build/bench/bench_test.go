package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"ferrule/agent/config"
)

// The witness finds the number of every message, alone and joined, and finds none elsewhere.
func TestNumbers(t *testing.T) {
	one := appendEntry(nil, 1)
	if len(one) != entryBytes {
		t.Fatalf("an entry has %d bytes, not %d: %s", len(one), entryBytes, one)
	}
	joined := []byte{'['}
	want := []int{7, 123456789, 0, 99}
	for i, n := range want {
		if i > 0 {
			joined = append(joined, ',')
		}
		joined = appendEntry(joined, uint64(n))
	}
	joined = append(joined, ']')
	for _, c := range []struct {
		payload []byte
		want    []int
	}{
		{one, []int{1}},
		{joined, want},
		{joined[:len(joined)-2], want[:3]},
		{nil, nil},
		{[]byte("["), nil},
		{make([]byte, 600), nil},
	} {
		var got []int
		numbers(c.payload, func(n int) { got = append(got, n) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%.40q…: %v, want %v", c.payload, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	got := parse("goos: linux\nBenchmarkPoll/19200baud-2 \t 10 \t 100 ns/op\t 1.05 p50/limit\t 0 B/op\n" +
		"BenchmarkPoll/19200baud-2 \t 10 \t 300 ns/op\t 1.02 p50/limit\t 0 B/op\nPASS\nok  \tx\t1.2s\n")
	m := got["Poll/19200baud"]
	if !slices.Equal(m["ns/op"], spread{100, 300}) || !slices.Equal(m["p50/limit"], spread{1.05, 1.02}) || len(got) != 1 {
		t.Errorf("%v", got)
	}
	all, err := got.all("Poll/", "ns/op")
	if name, values := slowest(all); err != nil || name != "Poll/19200baud" || values.median() != 200 {
		t.Errorf("%s, %v, %v", name, values, err)
	}
	if _, err := got.all("Plan/", "ns/op"); !errors.Is(err, errVoid) {
		t.Errorf("benchmarks that are not there: %v", err)
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values spread
		want   string
	}{
		{spread{3, 1, 2}, "2.0 (1.0–3.0)"},
		{spread{4, 1, 2, 3}, "2.5 (1.0–4.0)"},
		{nil, "-"},
	} {
		if got := c.values.text("%.1f", ""); got != c.want {
			t.Errorf("%v: %q, want %q", c.values, got, c.want)
		}
	}
}

type arrived struct {
	mqtt.Message
	payload []byte
}

func (a arrived) Payload() []byte { return a.payload }

// A run that lost one message, or turned two round, is void; one that got one twice is not.
func TestWitness(t *testing.T) {
	for _, c := range []struct {
		name    string
		numbers []uint64
		void    bool
	}{
		{"all", []uint64{1, 2, 3}, false},
		{"one twice", []uint64{1, 2, 1, 2, 3}, false},
		{"one missing", []uint64{1, 3}, true},
		{"two turned round", []uint64{2, 1, 3}, true},
	} {
		s := &witness{}
		s.expect(3)
		for _, n := range c.numbers {
			s.take(nil, arrived{payload: appendEntry(nil, n)})
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.all(ended); errors.Is(err, errVoid) != c.void {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What is fed arrives at the rate that was asked for, whole frames only.
func TestTerminal(t *testing.T) {
	end, err := newTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer end.close()
	const rate = 100_000
	pieces := 0
	read := make(chan []byte, 1)
	go func() { // ends when all was said
		var all []byte
		buf := make([]byte, 4096)
		for !bytes.HasSuffix(all, []byte("end")) {
			n, err := end.keep.Read(buf)
			if err != nil {
				break
			}
			all = append(all, buf[:n]...)
		}
		read <- all
	}()
	said, err := end.feed(t.Context(), rate, 100*time.Millisecond, func() []byte { pieces++; return bytes.Repeat([]byte("a"), 1000) })
	if err != nil {
		t.Fatal(err)
	}
	if err := end.speak(t.Context(), rate, []byte("end")); err != nil {
		t.Fatal(err)
	}
	if got := <-read; len(got) != said+3 || said != pieces*1000 || said > rate/10+1000 {
		t.Errorf("%d bytes arrived, %d were said in %d pieces", len(got), said, pieces)
	}
}

// Every line that is flooded has a configuration and a frame that its protocol takes.
func TestListeners(t *testing.T) {
	lines, err := listeners()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, l := range lines {
		if len(l.frame) == 0 {
			t.Errorf("%s has no frame", l.name)
		}
		text.WriteString(lineOf(l, "/dev/ttyS"+l.name))
	}
	if _, err := config.Parse("ferrule.toml", []byte("[session]\nbrokers = [\"mqtts://127.0.0.1:8883\"]\n"+text.String())); err != nil {
		t.Error(err)
	}
	if n := bytes.Count(epoch(), []byte("\n")); n != epochSentences {
		t.Errorf("an epoch has %d sentences", n)
	}
}
