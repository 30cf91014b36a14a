package modbus_test

import (
	"os"
	"sync"
	"testing"
	"time"

	"ferrule/hw/modbus"
)

// memoryLine is a port without a kernel, for bubbles of synctest: what react returns for a written
// request arrives after the delays it says.
type memoryLine struct {
	react func(request []byte) []arrival

	mu       sync.Mutex
	change   *sync.Cond
	in       []byte
	deadline time.Time
	alarm    *time.Timer
	over     error
}

type arrival struct {
	after time.Duration
	bytes []byte
}

func newMemoryLine(react func([]byte) []arrival) *memoryLine {
	l := &memoryLine{react: react}
	l.change = sync.NewCond(&l.mu)
	return l
}

func (l *memoryLine) Write(p []byte) (int, error) {
	for _, a := range l.react(append([]byte(nil), p...)) {
		time.AfterFunc(a.after, func() {
			l.push(a.bytes)
		})
	}
	return len(p), nil
}

// push has bytes arrive now.
func (l *memoryLine) push(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in = append(l.in, p...)
	l.change.Broadcast()
}

// end fails all reads from now on.
func (l *memoryLine) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = err
	l.change.Broadcast()
}

func (l *memoryLine) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if !l.deadline.IsZero() && !time.Now().Before(l.deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if len(l.in) > 0 {
			n := copy(p, l.in)
			l.in = append(l.in[:0], l.in[n:]...)
			return n, nil
		}
		if l.over != nil {
			return 0, l.over
		}
		l.change.Wait()
	}
}

func (l *memoryLine) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	if l.alarm != nil {
		l.alarm.Stop()
	}
	l.alarm = time.AfterFunc(time.Until(t), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.change.Broadcast()
	})
	return nil
}

func (l *memoryLine) SetWriteDeadline(time.Time) error { return nil }

func (l *memoryLine) client(c modbus.ClientConfig) *modbus.Client {
	c.Sleep = time.Sleep
	return modbus.NewClient(l, c)
}

// quickLine answers at once and allocates nothing.
type quickLine struct {
	answer []byte
	at     int
}

func (l *quickLine) Write(p []byte) (int, error)        { l.at = 0; return len(p), nil }
func (l *quickLine) SetReadDeadline(time.Time) error    { return nil }
func (l *quickLine) SetWriteDeadline(t time.Time) error { return nil }
func (l *quickLine) Read(p []byte) (int, error) {
	n, err := l.TryRead(p)
	if n == 0 && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func (l *quickLine) TryRead(p []byte) (int, error) {
	n := copy(p, l.answer[l.at:min(l.at+8, len(l.answer))])
	l.at += n
	return n, nil
}

func TestPollAllocatesNothing(t *testing.T) {
	for _, f := range []modbus.Framing{modbus.RTU, modbus.ASCII} {
		l := &quickLine{answer: in(f, modbus.Response{Unit: 3, Function: 4, Data: make([]byte, 120)}.Append(nil))}
		l.at = len(l.answer)
		c := modbus.NewClient(l, modbus.ClientConfig{Framing: f, Timeout: time.Second})
		buf := make([]byte, 0, 256)
		if n := testing.AllocsPerRun(1000, func() {
			if _, err := c.Read(t.Context(), 3, modbus.Address{Table: modbus.InputRegisters}, 60, buf); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations per poll; want 0", f, n)
		}
	}
}

func TestSniffingAllocatesNothing(t *testing.T) {
	request := modbus.Request{Unit: 3, Function: 4, Count: 60}.Append(nil)
	answer := modbus.Response{Unit: 3, Function: 4, Data: make([]byte, 120)}.Append(nil)
	n, at := 0, time.Unix(0, 0)
	s := modbus.NewSniffer(modbus.SnifferConfig{}, func(t modbus.Transaction) { n += len(t.Response.Data) })
	if allocs := testing.AllocsPerRun(1000, func() {
		s.Feed(request, at)
		s.Feed(answer, at)
	}); allocs != 0 || n != 1001*120 {
		t.Errorf("%v allocations per transaction; want 0; %d bytes", allocs, n)
	}
}
