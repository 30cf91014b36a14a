package dsmr_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ferrule/hw/dsmr"
	"ferrule/hw/port"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const meterLines = "F.F(00000000)\r\n0.0.0(12345678)\r\n1.8.0(0012345.678*kWh)\r\n1.8.0*01(0010000.000*kWh)\r\n0.9.1(120000)\r\n"

const meterReadings = `error_code = 00000000
property_number = 12345678
active_energy_import = 12345.678 kWh
1-0:1.8.0*1 = 10000.0 kWh
time_of_day = 120000
`

// block is a data message: STX, lines, "!", ETX and BCC (IEC 62056-21, 6.3.4).
func block(lines string) []byte {
	b := []byte("\x02" + lines + "!\r\n\x03")
	var bcc byte
	for _, c := range b[1:] {
		bcc ^= c
	}
	return append(b, bcc)
}

// meter is our end of the line: it hears and says what a meter would.
type meter struct {
	t    *testing.T
	wire io.ReadWriter
}

func (m meter) hear(want string) {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(m.wire, got); err != nil || string(got) != want {
		m.t.Errorf("the meter hears %q, %v; want %q", got[:n], err, want)
	}
}

func (m meter) say(s string) {
	if _, err := io.WriteString(m.wire, s); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		m.t.Errorf("the meter cannot say %q: %v", s, err)
	}
}

// exchange is one read-out and what comes of it.
type exchange struct {
	config  dsmr.ReadoutConfig
	address string
	fixed   bool // the port cannot change its speed
	meter   func(m meter)

	name  string
	bauds string
	err   error
	took  time.Duration
}

func (x *exchange) run(t *testing.T, times int) (got string) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		var bauds []int
		if !x.fixed {
			x.config.Configure = func(baud int) error { bauds = append(bauds, baud); return nil }
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.meter(meter{t, far})
			io.Copy(io.Discard, far)
		}()
		r := dsmr.NewReadout(near, x.config)
		start := time.Now()
		for range times {
			name, readings, err := r.Read(t.Context(), x.address, nil)
			x.name, got, x.err = name, show(readings), err
		}
		x.took, x.bauds = time.Since(start), fmt.Sprint(bauds)
		near.Close()
		<-done
		far.Close()
	})
	return got
}

func TestReadoutModes(t *testing.T) {
	for name, c := range map[string]struct {
		exchange
		bauds string
		want  string
	}{
		"mode C at 9600": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ5mode-C\r\n")
			m.hear("\x06050\r\n")
			m.say(string(block(meterLines)))
		}}, "[300 9600]", "XYZ5mode-C"},
		"mode C at 300": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ0x\r\n")
			m.hear("\x06000\r\n")
			m.say(string(block(meterLines)))
		}}, "[300]", "XYZ0x"},
		"mode C at a speed to come": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ9x\r\n")
			m.hear("\x06000\r\n")
			m.say(string(block(meterLines)))
		}}, "[300]", "XYZ9x"},
		"mode E read out as mode C": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ6\\2mode-E\r\n")
			m.hear("\x06060\r\n")
			m.say(string(block(meterLines)))
		}}, "[300 19200]", "XYZ6_2mode-E"},
		"mode B": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZDmode-B\r\n")
			m.say(string(block(meterLines)))
		}}, "[300 4800]", "XYZDmode-B"},
		"mode A": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ mode-A\r\n")
			m.say(string(block(meterLines)))
		}}, "[300]", "XYZ_mode-A"},
		"with an address": {exchange{address: "00 12aB", meter: func(m meter) {
			m.hear("/?00 12aB!\r\n")
			m.say("/XYZ5\r\n")
			m.hear("\x06050\r\n")
			m.say(string(block(meterLines)))
		}}, "[300 9600]", "XYZ5"},
		"addressed at 2400": {exchange{config: dsmr.ReadoutConfig{Baud: 2400}, meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ5\r\n")
			m.hear("\x06050\r\n")
			m.say(string(block(meterLines)))
		}}, "[2400 9600]", "XYZ5"},
		"an optical head that echoes": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("\x00\xff/?!\r\n/XYZ5\r\n")
			m.hear("\x06050\r\n")
			m.say("\x06050\r\n" + string(block(meterLines)))
		}}, "[300 9600]", "XYZ5"},
		"a port of one speed": {exchange{fixed: true, meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ5\r\n")
			m.hear("\x06000\r\n")
			m.say(string(block(meterLines)))
		}}, "[]", "XYZ5"},
		"slow, and in pieces": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			time.Sleep(1400 * time.Millisecond)
			for _, c := range "/XYZ5\r\n" {
				m.say(string(c))
				time.Sleep(1400 * time.Millisecond)
			}
			m.hear("\x06050\r\n")
			time.Sleep(1400 * time.Millisecond)
			for _, c := range block(meterLines) {
				m.say(string(c))
				time.Sleep(100 * time.Millisecond)
			}
		}}, "[300 9600]", "XYZ5"},
		"noise before the data": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ5\r\n")
			m.hear("\x06050\r\n")
			m.say("\x00\x00" + string(block(meterLines)))
		}}, "[300 9600]", "XYZ5"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.run(t, 1)
			if c.err != nil || c.name != c.want || c.exchange.bauds != c.bauds || got != meterReadings {
				t.Errorf("it reads %q at %s, %v\n%s\nwant %q at %s", c.name, c.exchange.bauds, c.err, got, c.want, c.bauds)
			}
		})
	}
}

// The meter is answered no sooner than 200 ms after it identified itself (IEC 62056-21, 6.3.14).
func TestReadoutLeavesTheMeterItsTime(t *testing.T) {
	var waited time.Duration
	x := exchange{meter: func(m meter) {
		m.hear("/?!\r\n")
		m.say("/XYZ5\r\n")
		start := time.Now()
		m.hear("\x06050\r\n")
		waited = time.Since(start)
		m.say(string(block(meterLines)))
	}}
	if x.run(t, 1); waited < 200*time.Millisecond || waited > 1500*time.Millisecond || x.err != nil {
		t.Errorf("the meter was answered after %s, %v", waited, x.err)
	}
}

func TestReadoutWakes(t *testing.T) {
	var awake time.Duration
	x := exchange{config: dsmr.ReadoutConfig{Wake: true}, meter: func(m meter) {
		m.hear(strings.Repeat("\x00", 66))
		start := time.Now()
		m.hear("/?!\r\n")
		awake = time.Since(start)
		m.say("/XYZ5\r\n")
		m.hear("\x06050\r\n")
		m.say(string(block(meterLines)))
	}}
	// 2.2 s of sending are still going on when the last of it is handed to the port.
	if got := x.run(t, 1); got != meterReadings || awake < 3600*time.Millisecond || awake > 4*time.Second {
		t.Errorf("%s after waking it: %v, %s", awake, x.err, got)
	}
}

func TestReadoutErrors(t *testing.T) {
	greet := func(m meter) {
		m.hear("/?!\r\n")
		m.say("/XYZ5\r\n")
		m.hear("\x06050\r\n")
	}
	for name, c := range map[string]struct {
		exchange
		want  error
		frame string
		most  time.Duration
	}{
		"silence":                  {exchange{meter: func(m meter) { m.hear("/?!\r\n") }}, dsmr.ErrTimeout, "", 3 * time.Second},
		"silence after the choice": {exchange{meter: greet}, dsmr.ErrTimeout, "", 4 * time.Second},
		"a cut identification":     {exchange{meter: func(m meter) { m.hear("/?!\r\n"); m.say("/XY") }}, dsmr.ErrTimeout, "/XY", 5 * time.Second},
		"a short identification":   {exchange{meter: func(m meter) { m.hear("/?!\r\n"); m.say("/XY\r\n") }}, dsmr.ErrMismatch, "/XY", time.Second},
		"an endless identification": {exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/" + strings.Repeat("x", 100))
		}}, dsmr.ErrMismatch, "/xxx", time.Second},
		"data cut off": {exchange{meter: func(m meter) { greet(m); m.say(string(block(meterLines)[:40])) }}, dsmr.ErrTimeout, "\x02F.F", 6 * time.Second},
		"a wrong BCC": {exchange{meter: func(m meter) {
			greet(m)
			b := block(meterLines)
			b[20] ^= 1
			m.say(string(b))
		}}, dsmr.ErrChecksum, "\x02F.F", 4 * time.Second},
		"no end of the data": {exchange{meter: func(m meter) { greet(m); m.say(string(block(meterLines + "\x03"))) }}, dsmr.ErrChecksum, "\x02F.F", 4 * time.Second},
		"a block without !":  {exchange{meter: func(m meter) { greet(m); m.say("\x02abc\x03\x63") }}, dsmr.ErrMismatch, "\x02abc", 4 * time.Second},
		"noise for ever": {exchange{meter: func(m meter) {
			greet(m)
			for range 100 {
				m.say(strings.Repeat("noise", 20))
			}
		}}, dsmr.ErrMismatch, "", 4 * time.Second},
		"data for ever": {exchange{meter: func(m meter) {
			greet(m)
			m.say("\x02")
			for range 400 {
				m.say(strings.Repeat("data ", 20))
			}
		}}, dsmr.ErrMismatch, "\x02data", time.Minute},
		"data for ever, slowly": {exchange{meter: func(m meter) {
			greet(m)
			m.say("\x02")
			for range 60 {
				m.say("x")
				time.Sleep(time.Second)
			}
		}}, dsmr.ErrMismatch, "\x02x", time.Minute},
		"mode B on a port of one speed": {exchange{fixed: true, meter: func(m meter) { m.hear("/?!\r\n"); m.say("/XYZD\r\n") }}, dsmr.ErrSpeed, "", time.Second},
		"no address":                    {exchange{address: "1!", meter: func(m meter) {}}, dsmr.ErrAddress, "", 0},
		"a long address":                {exchange{address: strings.Repeat("1", 33), meter: func(m meter) {}}, dsmr.ErrAddress, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.run(t, 1)
			if !errors.Is(c.err, c.want) || got != "" || c.took > c.most {
				t.Errorf("after %s it reads %q, %v; want %v", c.took, got, c.err, c.want)
			}
			wrong, ok := errors.AsType[*dsmr.FrameError](c.err)
			if c.frame != "" && (!ok || !strings.HasPrefix(string(wrong.Frame), c.frame) || len(wrong.Frame) > 256) {
				t.Errorf("the error shows %+v, want %q", wrong, c.frame)
			}
		})
	}
}

// Every bit of the answer's data that is wrong is noticed.
func TestReadoutFlippedBits(t *testing.T) {
	b := block("1.8.0(0012345.678*kWh)\r\n")
	for bit := 8; bit < 8*len(b); bit++ {
		damaged := bytes.Clone(b)
		damaged[bit/8] ^= 1 << (bit % 8)
		x := exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say("/XYZ5\r\n")
			m.hear("\x06050\r\n")
			m.say(string(damaged))
		}}
		if got := x.run(t, 1); x.err == nil || got != "" {
			t.Errorf("bit %d of byte %d flipped is not noticed: %s", bit%8, bit/8, got)
		}
	}
}

// After a read-out that ended early, the rest of the meter's answer is waited for.
func TestReadoutAfterAnError(t *testing.T) {
	x := exchange{meter: func(m meter) {
		m.hear("/?!\r\n")
		m.say("/XYZ5\r\n")
		m.hear("\x06050\r\n")
		m.say("\x02abc\x03x" + meterLines)
		time.Sleep(time.Second)
		m.say("/LATE5\r\n")
		time.Sleep(time.Second)
		m.say("/LATE5\r\n")
		m.hear("/?!\r\n")
		m.say("/XYZ5\r\n")
		m.hear("\x06050\r\n")
		m.say(string(block(meterLines)))
	}}
	if got := x.run(t, 2); x.err != nil || got != meterReadings || x.bauds != "[300 9600 300 9600]" {
		t.Errorf("the second read-out is %v at %s\n%s", x.err, x.bauds, got)
	}
}

// A line on which somebody talks without end is given up.
func TestReadoutOfABusyLine(t *testing.T) {
	x := exchange{meter: func(m meter) {
		m.hear("/?!\r\n")
		for range 40 {
			m.say("/XY\r\n")
			time.Sleep(time.Second)
		}
	}}
	if x.run(t, 2); !errors.Is(x.err, dsmr.ErrMismatch) || x.took > 40*time.Second {
		t.Errorf("after %s: %v", x.took, x.err)
	}
}

func TestReadoutEnds(t *testing.T) {
	t.Run("by the context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go io.Copy(io.Discard, far)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			_, _, err := dsmr.NewReadout(near, dsmr.ReadoutConfig{}).Read(ctx, "", nil)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 1300*time.Millisecond {
				t.Errorf("after %s: %v", took, err)
			}
		})
	})
	t.Run("when the port is closed", func(t *testing.T) {
		near, far := net.Pipe()
		far.Close()
		_, _, err := dsmr.NewReadout(near, dsmr.ReadoutConfig{}).Read(t.Context(), "", nil)
		if err == nil || errors.Is(err, dsmr.ErrTimeout) {
			t.Errorf("it ends with %v", err)
		}
	})
	t.Run("when the speed cannot be changed", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		broken := errors.New("no such speed")
		c := dsmr.ReadoutConfig{Configure: func(int) error { return broken }}
		if _, _, err := dsmr.NewReadout(near, c).Read(t.Context(), "", nil); !errors.Is(err, broken) {
			t.Errorf("it ends with %v", err)
		}
	})
}

// The real port on a pseudo terminal: the speed is changed when the choice is sent, and not before.
func TestReadoutOnAPort(t *testing.T) {
	far, near, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	defer near.Close()
	p, err := port.Open(t.Context(), near.Name(), port.Options{Settings: port.Settings{Baud: 300, DataBits: 7, Parity: 'E', StopBits: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	done := make(chan error, 1)
	go func() { done <- ptyMeter(t, far) }()
	r := dsmr.NewReadout(p, dsmr.ReadoutConfig{Configure: func(baud int) error {
		return p.Configure(port.Settings{Baud: baud, DataBits: 7, Parity: 'E', StopBits: 1})
	}})
	for range 2 {
		name, readings, err := r.Read(t.Context(), "", nil)
		if err != nil || name != "XYZ5pty" || show(readings) != meterReadings {
			t.Errorf("it reads %q, %v\n%s", name, err, show(readings))
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// ptyMeter answers twice, and looks at the speed of the port meanwhile.
func ptyMeter(t *testing.T, wire *os.File) error {
	m := meter{t, wire}
	for range 2 {
		m.hear("/?!\r\n")
		if baud := speedOf(t, wire); baud != 300 {
			return fmt.Errorf("the meter is addressed at %d baud", baud)
		}
		m.say("/XYZ5pty\r\n")
		m.hear("\x06050\r\n")
		for deadline := time.Now().Add(5 * time.Second); speedOf(t, wire) != 9600; {
			if time.Now().After(deadline) {
				return fmt.Errorf("the speed is %d baud after the choice of 9600", speedOf(t, wire))
			}
		}
		m.say(string(block(meterLines)))
	}
	return nil
}

// speedOf reads the speed from the flags, which is all that qemu gives.
func speedOf(t *testing.T, wire *os.File) int {
	var attr *unix.Termios
	raw, err := wire.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { attr, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	}
	if err != nil || attr == nil {
		t.Errorf("the speed of the port cannot be read: %v", err)
		return 0
	}
	return map[uint32]int{unix.B300: 300, unix.B9600: 9600}[uint32(attr.Cflag)&unix.CBAUD]
}

// FuzzReadout gives any answers to the question and to the choice.
func FuzzReadout(f *testing.F) {
	f.Add([]byte("/XYZ5\r\n"), block(meterLines))
	f.Add([]byte("/XYZA\r\n"), block("1.8.0(1*kWh)\r\n"))
	f.Add([]byte("/?!\r\n/XYZ \r\n"), []byte("\x02!\x03\x22"))
	f.Fuzz(func(t *testing.T, ident, data []byte) {
		if len(ident)+len(data) > 4096 {
			return
		}
		x := exchange{meter: func(m meter) {
			m.hear("/?!\r\n")
			m.say(string(ident))
			m.say(string(data))
		}}
		got := x.run(t, 1)
		if x.err != nil && got != "" || x.took > time.Minute {
			t.Errorf("after %s: %v and readings\n%s", x.took, x.err, got)
		}
	})
}
