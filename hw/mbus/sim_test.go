package mbus

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"ferrule/hw/frame"
)

// meter is a simulated unit: EN 13757-2's frame count bit, EN 13757-7's selection.
type meter struct {
	address   byte
	ident     [8]byte  // as in the header and in a selection
	bodies    [][]byte // the records of its telegrams
	deaf      bool     // knows no SND_NKE
	dead      bool
	selected  bool
	last      bool // the frame count bit of the last request
	next      int
	access    byte
	sent      []byte
	requests  []C
	responses int
}

func newMeter(address byte, id uint32, bodies ...[]byte) *meter {
	m := &meter{address: address, bodies: bodies}
	for i := range 4 {
		m.ident[i] = byte(id >> (8 * i))
	}
	m.ident[4], m.ident[5], m.ident[6], m.ident[7] = 0x24, 0x23, 0x28, 0x04 // HYD, version 28h, heat
	return m
}

// hear returns what the meter answers, if anything.
func (m *meter) hear(f *Frame) []byte {
	mine := f.A == m.address || f.A == networkAddress && m.selected
	switch {
	case m.dead:
	case f.A == networkAddress && f.CI == ciSelect && f.Kind == Long:
		m.selected = m.fits(f.Data)
		if m.selected {
			m.last, m.next, m.sent = false, 0, nil
			return AppendAck(nil)
		}
	case !mine:
	case f.C == SndNKE && !m.deaf:
		m.requests = append(m.requests, f.C)
		m.last, m.next, m.sent = false, 0, nil
		m.selected = m.selected && f.A != networkAddress
		return AppendAck(nil)
	case f.Kind == Long && f.CI == ciReset:
		m.next = 0
		return AppendAck(nil)
	case f.C&^fcb == ReqUD2:
		m.requests = append(m.requests, f.C)
		return m.respond(f.C&fcb != 0)
	}
	return nil
}

func (m *meter) fits(mask []byte) bool {
	for i, want := range mask {
		have := m.ident[i]
		if i >= 4 {
			if want != 0xFF && want != have {
				return false
			}
		} else if want>>4 != 0xF && want>>4 != have>>4 || want&0xF != 0xF && want&0xF != have&0xF {
			return false
		}
	}
	return true
}

// respond sends the next telegram if the bit changed, else the last one again.
func (m *meter) respond(bit bool) []byte {
	m.responses++
	if bit == m.last && m.sent != nil {
		return m.sent
	}
	m.last = bit
	m.access++
	data := append(m.ident[:8:8], m.access, 0, 0, 0)
	data = append(data, m.bodies[m.next]...)
	if m.next++; m.next == len(m.bodies) {
		m.next = 0
	} else {
		data = append(data, difMore)
	}
	m.sent, _ = AppendLong(nil, RspUD, m.address, ciVariable, data)
	return m.sent
}

// wire is what is common to the lines below: who is on it, and what goes wrong on it.
type wire struct {
	meters []*meter
	echo   bool
	late   []byte // comes with the next answer
	// tamper, if there is one, returns what arrives of an answer.
	tamper func(request, answer []byte) []byte
}

// send returns what comes back for a request: where several meters speak at once, a 0 wins.
func (w *wire) send(raw []byte) []byte {
	f := parse(raw)
	var answer []byte
	for _, m := range w.meters {
		for i, c := range m.hear(&f) {
			if i < len(answer) {
				answer[i] &= c
			} else {
				answer = append(answer, c)
			}
		}
	}
	late := w.late
	w.late = nil
	if w.tamper != nil {
		answer = w.tamper(raw, answer)
	}
	back := append(bytes.Clone(late), answer...)
	if w.echo {
		back = append(bytes.Clone(raw), back...)
	}
	return back
}

// memoryPort is a line in memory with a clock of its own, which only waiting moves: a second of silence
// takes no time.
type memoryPort struct {
	wire
	clock    time.Time
	deadline time.Time
	delay    time.Duration // until an answer begins
	char     time.Duration
	lump     int // bytes per Read; 0: all
	pending  []byte
	ready    time.Time
	sent     [][]byte
	waited   time.Duration
}

func (p *memoryPort) now() time.Time                     { return p.clock }
func (p *memoryPort) SetReadDeadline(t time.Time) error  { p.deadline = t; return nil }
func (p *memoryPort) SetWriteDeadline(t time.Time) error { return nil }

func (p *memoryPort) Write(b []byte) (int, error) {
	if p.sent != nil {
		p.sent = append(p.sent, bytes.Clone(b))
	}
	p.pending = append(p.pending, p.send(b)...)
	p.ready = p.clock.Add(time.Duration(len(b))*p.char + p.delay)
	return len(b), nil
}

func (p *memoryPort) Read(b []byte) (int, error) {
	n := min(len(b), len(p.pending))
	if p.lump > 0 {
		n = min(n, p.lump)
	}
	at := p.ready.Add(time.Duration(n) * p.char)
	if n == 0 || at.After(p.deadline) {
		if p.deadline.After(p.clock) {
			p.waited += p.deadline.Sub(p.clock)
			p.clock = p.deadline
		}
		return 0, os.ErrDeadlineExceeded
	}
	if at.After(p.clock) {
		p.clock = at
	}
	p.ready = p.clock
	copy(b, p.pending[:n])
	p.pending = append(p.pending[:0], p.pending[n:]...)
	return n, nil
}

func newMemory(meters ...*meter) (*memoryPort, *Master) {
	p := &memoryPort{wire: wire{meters: meters}, clock: time.Unix(1_800_000_000, 0), delay: 30 * time.Millisecond,
		char: charBits * time.Second / 2400, lump: 8}
	return p, NewMaster(p, Config{Now: p.now})
}

// ptyWire runs w on a pseudo terminal until the test ends, and returns the master's end.
func ptyWire(t *testing.T, w *wire) *os.File {
	t.Helper()
	far, near, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	raw(t, near)
	var group sync.WaitGroup
	group.Go(func() {
		cutter := frame.NewCutter(Split, MaxFrame)
		buf := make([]byte, 64)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			cutter.Feed(buf[:n], func(raw []byte) {
				back := w.send(raw)
				for len(back) > 0 {
					n := min(7, len(back))
					if _, err := far.Write(back[:n]); err != nil {
						return
					}
					back = back[n:]
				}
			})
		}
	})
	t.Cleanup(func() {
		near.Close()
		far.Close()
		group.Wait()
	})
	return near
}

func raw(t *testing.T, f *os.File) {
	t.Helper()
	c, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		tio, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err == nil {
			tio.Iflag, tio.Oflag, tio.Lflag = 0, 0, 0
			tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
			err = unix.IoctlSetTermios(int(fd), unix.TCSETS, tio)
		}
		failed = err
	})
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}
