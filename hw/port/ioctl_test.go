package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// driver is the calls that a pseudo terminal lacks. It sees the bytes that the kernel would see.
type driver struct {
	calls []uint // the requests, in order
	do    map[uint]func(b []byte) error
}

// sizes of the structures in linux/serial.h and asm/termbits.h
var sizes = map[uint]int{unix.TIOCSRS485: 32, unix.TIOCGRS485: 32, unix.TIOCGICOUNT: 80, unix.TIOCGSERIAL: 56 + int(unsafe.Sizeof(uintptr(0)))*2, unix.TIOCSSERIAL: 56 + int(unsafe.Sizeof(uintptr(0)))*2, unix.TCGETS2: 44, unix.TIOCOUTQ: 4}

func (d *driver) ioctl(_ uintptr, request uint, arg unsafe.Pointer) error {
	d.calls = append(d.calls, request)
	do, ok := d.do[request]
	if !ok {
		return unix.ENOTTY
	}
	return do(unsafe.Slice((*byte)(arg), sizes[request]))
}

func words(b []byte) []uint32 {
	w := make([]uint32, len(b)/4)
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// on is a machine whose ports have that driver, and what they log.
func on(t *testing.T, d *driver) (m *machine, log *bytes.Buffer, o Options) {
	m, log = newMachine(t).deaf(), new(bytes.Buffer)
	m.sys.ioctl = d.ioctl
	return m, log, Options{Settings: usual, Log: slog.New(slog.NewTextHandler(log, nil))}
}

// The layout must be the kernel's on every architecture.
func TestStructures(t *testing.T) {
	pointer := unsafe.Sizeof(uintptr(0))
	want := map[uintptr]uintptr{4: 60, 8: 72}[pointer]
	var s serialInfo
	for what, sizes := range map[string][2]uintptr{
		"serial_rs485":               {unsafe.Sizeof(serialRS485{}), 32},
		"serial_icounter_struct":     {unsafe.Sizeof(serialCounters{}), 80},
		"serial_struct":              {unsafe.Sizeof(s), want},
		"serial_struct.flags":        {unsafe.Offsetof(s.flags), 16},
		"serial_struct.close_delay":  {unsafe.Offsetof(s.closeDelay), 32},
		"serial_struct.closing_wait": {unsafe.Offsetof(s.closingWait), 40},
		"serial_struct.iomem_base":   {unsafe.Offsetof(s.memory), (44 + pointer - 1) / pointer * pointer},
		"serial_struct.iomap_base":   {unsafe.Offsetof(s.mapBase), want - pointer},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s: %d; want %d", what, sizes[0], sizes[1])
		}
	}
}

// Row "TIOCGRS485": asked for, it is set as the kernel wants it; see TestRS485IsNotTouchedUnasked.
func TestRS485(t *testing.T) {
	for name, c := range map[string]struct {
		asked RS485
		want  []uint32
	}{
		"plain":   {RS485{}, []uint32{1 | 1<<1, 0, 0}},
		"delays":  {RS485{DelayBefore: 1500 * time.Microsecond, DelayAfter: time.Nanosecond}, []uint32{1 | 1<<1, 2, 1}},
		"RTS low": {RS485{Mode: RS485Kernel, RTSLowOnSend: true}, []uint32{1 | 1<<2, 0, 0}},
		"more":    {RS485{Terminate: true, ReceiveOnSend: true, DelayAfter: 100 * time.Millisecond}, []uint32{1 | 1<<1 | 1<<4 | 1<<5, 0, 100}},
		"off":     {RS485{Mode: RS485Off, Terminate: true, DelayAfter: time.Second / 20}, []uint32{0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []uint32
			d := &driver{do: map[uint]func([]byte) error{unix.TIOCSRS485: func(b []byte) error { got = words(b); return nil }}}
			m, log, o := on(t, d)
			m.plug("ttyUSB0")
			o.RS485 = &c.asked
			m.open(byID, o)
			if !slices.Equal(got, append(c.want, 0, 0, 0, 0, 0)) {
				t.Errorf("the kernel is told %x; want %x", got, c.want)
			}
			if strings.Contains(log.String(), "RS-485") || slices.Contains(d.calls, unix.TIOCGRS485) {
				t.Errorf("calls %x, log %q", d.calls, log)
			}
		})
	}
}

// The paragraph on TIOCGRS485: some USB adapters do not survive the question.
func TestRS485IsNotTouchedUnasked(t *testing.T) {
	d := &driver{}
	m, _, o := on(t, d)
	m.plug("ttyUSB0")
	m.open(byID, o)
	if slices.Contains(d.calls, unix.TIOCGRS485) || slices.Contains(d.calls, unix.TIOCSRS485) {
		t.Errorf("calls %x", d.calls)
	}
}

func TestRS485Refused(t *testing.T) {
	refuse := func(err error) func([]byte) error { return func([]byte) error { return err } }
	change := func(b []byte) error { binary.NativeEndian.PutUint32(b[8:], 50); return nil }
	clear := func(b []byte) error { copy(b, make([]byte, 32)); return nil }
	for name, c := range map[string]struct {
		mode  RS485Mode
		do    func([]byte) error
		fails bool
		warns string
	}{
		"auto without":          {RS485Auto, nil, false, "lacks a feature"},
		"auto against the wish": {RS485Auto, refuse(unix.EINVAL), false, "lacks a feature"},
		"auto, broken":          {RS485Auto, refuse(unix.EIO), true, ""},
		"auto, other delays":    {RS485Auto, change, false, "delays 0 ms and 50 ms"},
		"auto, not switched":    {RS485Auto, clear, false, "in its own way"},
		"kernel without":        {RS485Kernel, nil, true, ""},
		"kernel, not switched":  {RS485Kernel, clear, true, ""},
		"off without":           {RS485Off, nil, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := &driver{do: map[uint]func([]byte) error{}}
			if c.do != nil {
				d.do[unix.TIOCSRS485] = c.do
			}
			m, log, o := on(t, d)
			m.plug("ttyUSB0")
			before := len(descriptors())
			o.RS485 = &RS485{Mode: c.mode, DelayAfter: time.Millisecond}
			p, err := m.sys.open(t.Context(), byID, o)
			if (err != nil) != c.fails || c.fails && c.mode == RS485Kernel && hint.Of(err) == "" {
				t.Errorf("Open: %v, hint %q", err, hint.Of(err))
			}
			if err == nil {
				p.Close()
			}
			if n := strings.Count(log.String(), "WARN") - strings.Count(log.String(), "holds bytes back"); (c.warns == "") != (n == 0) || n > 1 || !strings.Contains(log.String(), c.warns) {
				t.Errorf("log %q; want one warning with %q", log, c.warns)
			}
			if after := len(descriptors()); after != before {
				t.Errorf("%d descriptors; before %d", after, before)
			}
		})
	}
	m, _, o := on(t, &driver{})
	m.plug("ttyUSB0")
	o.RS485 = &RS485{DelayBefore: time.Second}
	if _, err := m.sys.open(t.Context(), byID, o); err == nil || hint.Of(err) == "" {
		t.Errorf("a second of delay: %v", err)
	}
}

// The paragraph on error counters.
func TestCounters(t *testing.T) {
	d := &driver{do: map[uint]func([]byte) error{unix.TIOCGICOUNT: func(b []byte) error {
		for i := range 11 {
			binary.NativeEndian.PutUint32(b[4*i:], uint32(i+1))
		}
		return nil
	}}}
	m, _, o := on(t, d)
	m.plug("ttyUSB0")
	p := m.open(byID, o)
	if c, err := p.Counters(); err != nil || c != (Counters{Frame: 7, Overrun: 8, Parity: 9, Break: 10, BufferOverrun: 11}) {
		t.Errorf("%+v, %v", c, err)
	}
	delete(d.do, unix.TIOCGICOUNT)
	if _, err := p.Counters(); !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ErrGone) {
		t.Errorf("no counters: %v; want ErrUnsupported", err)
	}
	p.Close()
	if _, err := p.Counters(); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v; want ErrClosed", err)
	}
}

// Row "FTDI" (16 ms latency timer) and row "TIOCGSERIAL": first sysfs, then the driver, else one warning.
func TestLowLatency(t *testing.T) {
	unwritable := func(t *testing.T, a *adapter) { // readable, and written by nobody, root included
		if err := errors.Join(os.Remove(a.timer()), os.Symlink("/proc/version", a.timer())); err != nil {
			t.Fatal(err)
		}
	}
	var flags uint32
	info := map[uint]func([]byte) error{
		unix.TIOCGSERIAL: func(b []byte) error { b[0], b[16], b[len(b)-1] = 7, 1<<4, 9; return nil },
		unix.TIOCSSERIAL: func(b []byte) error {
			if b[0] != 7 || b[len(b)-1] != 9 {
				t.Errorf("the rest has changed: %x", b)
			}
			flags = words(b)[4]
			return nil
		},
	}
	for name, c := range map[string]struct {
		prepare func(*testing.T, *adapter)
		do      map[uint]func([]byte) error
		timer   string
		flags   uint32
		warns   int
	}{
		"by sysfs":   {func(*testing.T, *adapter) {}, info, "1", 0, 0},
		"by driver":  {unwritable, info, "", 1<<13 | 1<<4, 0},
		"by neither": {unwritable, nil, "", 0, 1},
		"no timer":   {func(t *testing.T, a *adapter) { os.Remove(a.timer()) }, info, "", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			flags = 0
			m, log, o := on(t, &driver{do: c.do})
			a := m.plug("ttyUSB0")
			c.prepare(t, a)
			m.open(byID, o)
			if b, err := os.ReadFile(a.timer()); c.timer != "" && (err != nil || string(b) != c.timer) {
				t.Errorf("the timer is %q, %v", b, err)
			}
			if n := strings.Count(log.String(), "holds bytes back"); n != c.warns || strings.Count(log.String(), "WARN") != c.warns {
				t.Errorf("log %q; want %d warnings", log, c.warns)
			}
			if flags != c.flags {
				t.Errorf("flags %#x; want %#x", flags, c.flags)
			}
		})
	}
}

// Row "SetMode 250000": a driver takes the nearest speed it has, and says so only when asked.
func TestOtherSpeedIsWarnedOf(t *testing.T) {
	speed := uint32(19300)
	d := &driver{do: map[uint]func([]byte) error{unix.TCGETS2: func(b []byte) error { binary.NativeEndian.PutUint32(b[40:], speed); return nil }}}
	m, log, o := on(t, d)
	os.Remove(m.plug("ttyUSB0").timer())
	p := m.open(byID, o)
	if log.Len() != 0 {
		t.Errorf("half a per cent is warned of: %s", log)
	}
	s := usual
	for _, s.Baud = range []int{38400, 19200, 38400} {
		if err := p.Configure(s); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(log.String(), "WARN") != 1 || !strings.Contains(log.String(), "asked=38400 got=19300") {
		t.Errorf("log %q; want one warning", log)
	}
}

// recorder notes what is asked of the library.
type recorder struct {
	serial.Port
	calls     []string
	interrupt int
}

func (r *recorder) Drain() error {
	if r.interrupt > 0 {
		r.interrupt--
		return unix.EINTR
	}
	r.calls = append(r.calls, "drain")
	return r.Port.Drain()
}

func (r *recorder) SetMode(m *serial.Mode) error {
	r.calls = append(r.calls, "mode")
	return r.Port.SetMode(m)
}

// Per-unit settings: the switch comes after what was written is sent, and only where there is one.
// A signal of Go's runtime cuts no wait short.
func TestConfigure(t *testing.T) {
	m := newMachine(t).deaf()
	a := m.plug("ttyUSB0")
	p := m.open(byID, Options{})
	r := &recorder{Port: p.(*serialPort).mode, interrupt: 3}
	p.(*serialPort).mode = r
	other, err := ParseSettings("2400 7E2")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Settings{usual, other, other, usual} {
		if err := p.Configure(s); err != nil {
			t.Fatal(err)
		}
		mode, err := unix.IoctlGetTermios(int(a.far.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[int]uint32{19200: unix.B19200, 2400: unix.B2400}[s.Baud]; mode.Cflag&unix.CBAUD != want {
			t.Errorf("%s: speed bits %#x; want %#x", s, mode.Cflag&unix.CBAUD, want)
		}
	}
	if want := []string{"drain", "mode", "drain", "mode"}; !slices.Equal(r.calls, want) {
		t.Errorf("calls %v; want %v", r.calls, want)
	}
	if err := p.Configure(Settings{}); err == nil {
		t.Error("no settings are taken")
	}
	load(t, a, p)
}

// stuck is an adapter that never sends what it was given.
type stuck struct {
	serial.Port
	thrown chan struct{}
}

func (s *stuck) Drain() error             { <-s.thrown; return nil }
func (s *stuck) ResetOutputBuffer() error { close(s.thrown); return nil }

func TestDrainIsBounded(t *testing.T) {
	d := &driver{do: map[uint]func([]byte) error{unix.TIOCOUTQ: func(b []byte) error { binary.NativeEndian.PutUint32(b, 19); return nil }}}
	m, _, o := on(t, d)
	m.sys.slack = 10 * time.Millisecond
	m.plug("ttyUSB0")
	p := m.open(byID, o)
	mode := p.(*serialPort).mode
	other := usual
	other.Baud = 300
	for what, do := range map[string]func() error{"Drain": p.Drain, "Configure": func() error { return p.Configure(other) }} {
		p.(*serialPort).mode = &stuck{mode, make(chan struct{})}
		if err := do(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v; want os.ErrDeadlineExceeded", what, err)
		}
	}
	p.(*serialPort).mode = mode
	if err := errors.Join(p.Drain(), p.Configure(other)); err != nil {
		t.Error(err)
	}
}
