package port

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// serialPort is a tty.
type serialPort struct {
	*stream
	sys  system
	path string // of the device node itself
	node string // what sysfs has of the device, a folder; "": nothing
	rdev uint64 // its device number

	mu   sync.RWMutex // held for writing while mode is closed
	mode serial.Port

	changing sync.Mutex // guards settings
	settings Settings   // the zero value: unknown

	ended   atomic.Bool // no more calls of mode
	release sync.Once
	result  error // of release
}

func (sys system) openSerial(a address, o Options) (*serialPort, error) {
	path, err := sys.resolve(a)
	if err != nil {
		return nil, err
	}
	f, err := openTTY(path)
	if err != nil {
		return nil, openError(err)
	}
	p, err := sys.adopt(a, f, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	if p.mode, err = openMode(path, o.Settings); err != nil {
		f.Close()
		return nil, err
	}
	p.settings = o.Settings
	if err := p.begin(o); err != nil {
		p.shut()
		return nil, err
	}
	return p, nil
}

// adopt locks f and makes it the data path.
func (sys system) adopt(a address, f conn, o Options) (*serialPort, error) {
	s, err := newStream(a.name, o.Log, f)
	if err != nil {
		return nil, err
	}
	p := &serialPort{stream: s, sys: sys}
	err = p.control(func(fd uintptr) error {
		if _, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err != nil {
			return fmt.Errorf("not a serial port: %w", err)
		}
		if err := unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return inUse()
		} else if err != nil {
			return fmt.Errorf("locking: %w", err)
		}
		var stat unix.Stat_t
		if err := unix.Fstat(int(fd), &stat); err != nil {
			return err
		}
		p.rdev = uint64(stat.Rdev)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, p.locate(a)
}

// locate makes sure that what was opened is still what the name means, and not an adapter that was
// given the same number in between.
func (p *serialPort) locate(a address) error {
	path, err := p.sys.resolve(a)
	if err != nil {
		return err
	}
	if p.path, err = filepath.EvalSymlinks(path); err != nil {
		return openError(err)
	}
	if rdev, err := deviceNumber(p.path); err != nil || rdev != p.rdev {
		return hint.With(fmt.Errorf("%w: it was replugged just now", ErrNotFound), "list the ports with: ferrule ports")
	}
	node := filepath.Join(p.sys.sys, "dev/char", strconv.Itoa(int(unix.Major(p.rdev)))+":"+strconv.Itoa(int(unix.Minor(p.rdev))))
	if _, err := os.Stat(node); err == nil {
		p.node = node
	}
	return nil
}

func deviceNumber(path string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, err
	}
	return uint64(s.Rdev), nil
}

// begin does what needs the port open and set, and starts to watch it.
func (p *serialPort) begin(o Options) error {
	if o.RS485 != nil {
		if err := p.setRS485(*o.RS485); err != nil {
			return err
		}
	}
	p.lowLatency()
	p.checkSpeed()
	if err := p.discard(unix.TCIOFLUSH); err != nil {
		return err
	}
	w, err := p.sys.newWatch()
	if err != nil {
		return err
	}
	if err := p.control(func(fd uintptr) error { return w.add(int(fd), 0) }); err != nil {
		w.close()
		return fmt.Errorf("watching: %w", err)
	}
	p.watch = w
	p.follow(p.missing, func() { p.shut() })
	return nil
}

// missing tells whether an event, or a look at the folders, says that the device is gone.
func (p *serialPort) missing(e event) bool {
	if e.action == "remove" && e.rdev == p.rdev {
		return true
	}
	if !e.scan {
		return false
	}
	if p.node != "" {
		if _, err := os.Stat(p.node); errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	if rdev, err := deviceNumber(p.path); errors.Is(err, os.ErrNotExist) || err == nil && rdev != p.rdev {
		return true
	}
	return p.isHungUp()
}

func (p *serialPort) isHungUp() (yes bool) {
	p.control(func(fd uintptr) error {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(poll, 0)
		yes = err == nil && n > 0 && poll[0].Revents&unix.POLLHUP != 0
		return nil
	})
	return yes
}

func inUse() error {
	return hint.With(ErrInUse, "find the other program with: fuser -v PORT, or give each line a port of its own")
}

func openError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return hint.With(fmt.Errorf("%w: %w", ErrNotFound, err), "list the ports with: ferrule ports")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return hint.With(fmt.Errorf("%w: %w", ErrPermission, err), "add the service user to group dialout")
	case errors.Is(err, unix.EBUSY):
		return inUse()
	}
	return err
}

func (p *serialPort) Flush() error { return p.discard(unix.TCIOFLUSH) }

func (p *serialPort) discard(queues int) error {
	err := p.control(func(fd uintptr) error { return unix.IoctlSetInt(int(fd), unix.TCFLSH, queues) })
	if err != nil {
		return p.failure("flushing", err)
	}
	return nil
}

func (p *serialPort) Drain() error {
	p.changing.Lock()
	defer p.changing.Unlock()
	return p.withMode("draining", p.drain)
}

// drain waits for the last byte to be sent, unless an adapter hangs and never will. The kernel alone
// would wait for ever. It needs changing.
func (p *serialPort) drain(m serial.Port) error {
	waiting := p.waiting()
	if waiting == 0 { // what the UART itself still holds the driver waits for, with a bound
		return drain(m)
	}
	limit := p.sys.slack
	if p.settings.Baud > 0 {
		limit += time.Duration(waiting*p.settings.BitsPerChar()) * time.Second / time.Duration(p.settings.Baud)
	}
	freed := make(chan struct{})
	timer := time.AfterFunc(limit, func() {
		defer close(freed)
		m.ResetOutputBuffer()
	})
	err := drain(m)
	if timer.Stop() {
		return err
	}
	<-freed
	return os.ErrDeadlineExceeded
}

// waiting is how many bytes the kernel holds that are not sent.
func (p *serialPort) waiting() (n int) {
	var count int32
	if p.control(func(fd uintptr) error { return p.sys.ioctl(fd, unix.TIOCOUTQ, unsafe.Pointer(&count)) }) != nil {
		return 0
	}
	return int(count)
}

// drain waits for the last byte to be sent. A signal of Go's runtime may end the call early.
func drain(m serial.Port) error {
	for {
		if err := m.Drain(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (p *serialPort) Configure(s Settings) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("configuring %s: %w", p.name, err)
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	if s == p.settings {
		return nil
	}
	err := p.withMode("configuring", func(m serial.Port) error {
		if err := p.drain(m); err != nil {
			return err
		}
		p.settings = Settings{} // until it is known that all of it is set
		if err := m.SetMode(modeOf(s)); err != nil {
			return modeError(s, err)
		}
		return nil
	})
	if err == nil {
		p.settings = s
		p.checkSpeed()
	}
	return err
}

// checkSpeed warns where the driver took the nearest speed that it has instead of the one asked
// for. An UART tolerates 2 to 3 %, both ends together.
func (p *serialPort) checkSpeed() {
	var t unix.Termios
	err := p.control(func(fd uintptr) error { return p.sys.ioctl(fd, unix.TCGETS2, unsafe.Pointer(&t)) })
	want, got := int64(p.settings.Baud), int64(t.Ospeed)
	if err != nil || got == 0 { // emulators and old kernels lack termios2
		return
	}
	if diff := max(got-want, want-got); diff*1000 > want*25 {
		p.warn("speed "+p.settings.String(), "serial port has another speed",
			slog.Int64("asked", want), slog.Int64("got", got))
	}
}

func (p *serialPort) SetDTR(on bool) error {
	return p.optional("dtr", p.withMode("setting DTR of", func(m serial.Port) error { return m.SetDTR(on) }))
}

func (p *serialPort) SetRTS(on bool) error {
	return p.optional("rts", p.withMode("setting RTS of", func(m serial.Port) error { return m.SetRTS(on) }))
}

func (p *serialPort) withMode(doing string, do func(serial.Port) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.ended.Load() {
		return p.failure(doing, ErrClosed)
	}
	if err := do(p.mode); err != nil {
		return p.failure(doing, err)
	}
	return nil
}

func (p *serialPort) Counters() (Counters, error) {
	var c serialCounters
	err := p.control(func(fd uintptr) error { return p.sys.ioctl(fd, unix.TIOCGICOUNT, unsafe.Pointer(&c)) })
	if err != nil {
		if lacks(err) {
			err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return Counters{}, p.failure("reading the counters of", err)
	}
	return Counters{Frame: uint32(c.frame), Parity: uint32(c.parity), Overrun: uint32(c.overrun),
		Break: uint32(c.brk), BufferOverrun: uint32(c.bufferOverruns)}, nil
}

// shut frees Read, Write and Drain wherever they wait, and the descriptors. The kernel would else
// wait for output that is not yet sent, up to half a minute.
func (p *serialPort) shut() error {
	p.release.Do(func() {
		p.ended.Store(true)
		p.discard(unix.TCIOFLUSH) // fails on a port that is gone, which needs no flush
		err := p.file.Close()
		p.mode.ResetOutputBuffer() // what a Write put there in between
		p.mu.Lock()
		defer p.mu.Unlock()
		if e := p.mode.Close(); err == nil {
			err = e
		}
		p.result = err
	})
	return p.result
}

func (p *serialPort) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	err := p.shut()
	p.stopWatch()
	if err != nil {
		return fmt.Errorf("closing %s: %w", p.name, err)
	}
	return nil
}
