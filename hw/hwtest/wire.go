// Package hwtest simulates an RS-485 line with Modbus units on a pseudo terminal, for tests and the
// demo. Bytes arrive as fast as the baud rate carries them, in lumps as an UART's FIFO gives them,
// and the line itself notes every request that came before t3.5 of silence. A pseudo terminal has no
// parity and no modem lines, so those are beyond it.
package hwtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/hw/modbus"
)

// fifo is how many bytes an UART gathers before it says so.
const fifo = 8

// patience is how long a line without a baud rate waits for the rest of a request.
const patience = 20 * time.Millisecond

// WireConfig says what line is simulated.
type WireConfig struct {
	Baud        int  // bits per second; 0: bytes take no time, and no silence is wanted
	BitsPerChar int  // with start, parity and stop bits; 0: 11
	Echo        bool // the adapter returns every byte it sends
	Framing     modbus.Framing
}

// WireStats counts what happened on a wire since it was made.
type WireStats struct {
	Requests   uint64        `json:"requests"`    // sound requests, to whatever unit
	Answers    uint64        `json:"answers"`     // sent whole, whatever the script did to them
	BytesIn    uint64        `json:"bytes_in"`    // from the master
	BytesOut   uint64        `json:"bytes_out"`   // to the master, echoes included
	Broken     uint64        `json:"broken"`      // frames from the master that were no requests
	Unanswered uint64        `json:"unanswered"`  // requests for units that are not there
	Violations uint64        `json:"violations"`  // frames that began before t3.5 of silence
	Collisions uint64        `json:"collisions"`  // frames from the master while a unit was sending
	Lost       uint64        `json:"lost"`        // bytes that nobody read and that had no room
	CPU        time.Duration `json:"cpu_seconds"` // processor time of the simulation itself
}

// Wire is a simulated line. One goroutine on a thread of its own runs it until Close.
type Wire struct {
	framing modbus.Framing
	timing  modbus.Timing
	echo    bool
	path    string
	fd      int      // the wire's end of the pseudo terminal
	keep    *os.File // the other end, kept open so that a master may come and go
	wake    [2]int   // a pipe, closed to end the goroutine
	done    chan struct{}
	close   sync.Once

	mu    sync.Mutex
	units map[byte]*Unit
	stats WireStats
	tid   int

	// What follows belongs to the goroutine.
	in      []byte    // the request so far
	inEnd   time.Time // when its last byte is through
	quiet   time.Time // the last byte of anybody
	pending []transmission
	sending transmission
	sent    int // bytes of sending
}

// transmission is bytes that a unit, or the echo, puts on the wire in one go.
type transmission struct {
	at    time.Time
	bytes []byte
	whole func(time.Time) // called when the last byte is through
	echo  bool
}

// NewWire makes a line and starts it.
func NewWire(c WireConfig) (*Wire, error) {
	if c.BitsPerChar == 0 {
		c.BitsPerChar = 11
	}
	w := &Wire{
		framing: c.Framing, timing: modbus.TimingOf(c.Baud, c.BitsPerChar), echo: c.Echo,
		units: map[byte]*Unit{}, done: make(chan struct{}),
	}
	if c.Framing == modbus.ASCII {
		w.timing.T15, w.timing.T35 = 0, 0 // a colon and a line end mark a frame
	}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("making a wire: %w", err)
	}
	go w.run()
	return w, nil
}

func (w *Wire) open() error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/ptmx: %w", err)
	}
	if w.path, err = unlock(fd); err == nil {
		w.keep, err = os.OpenFile(w.path, os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.Pipe2(w.wake[:], unix.O_CLOEXEC)
	}
	if err != nil {
		unix.Close(fd)
		if w.keep != nil {
			w.keep.Close()
		}
		return err
	}
	w.fd = fd
	return nil
}

// unlock readies the pseudo terminal whose master is fd and returns the path of its other end.
// Both ends share their mode, which is made raw, or the terminal would echo by itself.
func unlock(fd int) (string, error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return "", fmt.Errorf("asking for the terminal's number: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return "", fmt.Errorf("unlocking the terminal: %w", err)
	}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("reading the terminal's mode: %w", err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		return "", fmt.Errorf("setting the terminal's mode: %w", err)
	}
	return fmt.Sprintf("/dev/pts/%d", n), nil
}

// Path is the serial port to give to the master.
func (w *Wire) Path() string { return w.path }

// Attach puts a unit on the wire, in place of another with its address.
func (w *Wire) Attach(u *Unit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.units[u.address] = u
}

// Detach takes the unit with that address off the wire: it answers no more.
func (w *Wire) Detach(address byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.units, address)
}

// Stats is what was counted so far.
func (w *Wire) Stats() WireStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	if w.tid != 0 {
		var cpu unix.Timespec
		if unix.ClockGettime(int32(^w.tid<<3|6), &cpu) == nil { // the clock of one thread
			s.CPU = time.Duration(cpu.Nano())
		}
	}
	return s
}

// Close ends the wire and waits for it. Whoever has the port open sees it hang up.
func (w *Wire) Close() error {
	w.close.Do(func() {
		unix.Close(w.wake[1])
		<-w.done
		unix.Close(w.wake[0])
		w.keep.Close()
		unix.Close(w.fd)
	})
	return nil
}

// run is the line: it reads what the master sends, and sends when something is due.
func (w *Wire) run() {
	defer close(w.done)
	// The thread is given back as it was: to end it would end children that a goroutine started on it
	// before, and asked the kernel to end with it (PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
	w.mu.Lock()
	w.tid = unix.Gettid()
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.tid = 0
		w.mu.Unlock()
	}()
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.wake[0]), Events: unix.POLLIN}}
	for {
		var timeout *unix.Timespec
		if next := w.next(); !next.IsZero() {
			t := unix.NsecToTimespec(int64(max(time.Until(next), 0)))
			timeout = &t
		}
		if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			w.receive()
		}
		for w.step(time.Now()) {
		}
	}
}

// next is when something is due; the zero time: nothing.
func (w *Wire) next() time.Time {
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if len(w.in) > 0 {
		sooner(w.inDue())
	}
	if w.sending.bytes != nil {
		sooner(w.chunkDue())
	} else if len(w.pending) > 0 {
		sooner(w.pending[0].at)
	}
	return next
}

// step does one thing that is due.
func (w *Wire) step(now time.Time) bool {
	switch {
	case w.sending.bytes != nil && !w.chunkDue().After(now):
		w.sendChunk()
	case w.sending.bytes == nil && len(w.pending) > 0 && !w.pending[0].at.After(now):
		w.sending, w.sent = w.pending[0], 0
		w.pending = append(w.pending[:0], w.pending[1:]...)
	case len(w.in) > 0 && !w.inDue().After(now):
		w.handle()
	default:
		return false
	}
	return true
}

func (w *Wire) receive() {
	var buf [512]byte
	n, err := unix.Read(w.fd, buf[:])
	now := time.Now()
	if err != nil || n == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.BytesIn += uint64(n)
	begin := now
	if len(w.in) > 0 && w.inEnd.After(now) {
		begin = w.inEnd
	} else if len(w.in) == 0 {
		w.police(now)
	}
	w.in = append(w.in, buf[:n]...)
	w.inEnd = begin.Add(w.timing.Chars(n))
	w.quiet = w.inEnd
	if w.echo {
		w.queue(transmission{at: begin, bytes: append([]byte(nil), buf[:n]...), echo: true})
	}
}

// police notes a frame that begins too soon.
func (w *Wire) police(now time.Time) {
	if w.sending.bytes != nil && !w.sending.echo {
		w.stats.Collisions++
	}
	if !w.quiet.IsZero() && now.Sub(w.quiet) < w.timing.T35 {
		w.stats.Violations++
	}
}

// inDue is when the request ends: by silence, or without a baud rate by its length, or by a line end.
func (w *Wire) inDue() time.Time {
	switch n := modbus.RequestLength(w.in); {
	case w.framing == modbus.ASCII:
		if w.in[len(w.in)-1] == '\n' {
			return w.inEnd
		}
		return w.inEnd.Add(time.Second)
	case w.timing.Char > 0:
		return w.inEnd.Add(w.timing.T35)
	case n < 0 || n > 0 && n <= len(w.in):
		return w.inEnd
	}
	return w.inEnd.Add(patience)
}

// handle has the request answered by its unit, or executed by all of them.
func (w *Wire) handle() {
	due := w.inDue()
	frame, err := append([]byte(nil), w.in...), error(nil)
	w.in = w.in[:0]
	if w.framing == modbus.ASCII {
		frame, err = modbus.DecodeASCII(nil, frame, 0)
	}
	var r modbus.Request
	if err == nil {
		r, err = modbus.DecodeRequest(frame)
	}
	refusal, refused := errors.AsType[modbus.Exception](err)
	var units []*Unit
	w.mu.Lock()
	if err != nil {
		w.stats.Broken++
	} else {
		w.stats.Requests++
	}
	switch u := w.units[r.Unit]; {
	case err != nil && (!refused || r.Unit == 0):
	case r.Unit == 0:
		units = slices.Collect(maps.Values(w.units))
	case u == nil && err == nil:
		w.stats.Unanswered++
	case u != nil:
		units = append(units, u)
	}
	w.mu.Unlock()
	for _, u := range units { // calls hooks, which may ask for Stats
		answer := u.answer
		if refused {
			answer = func(r modbus.Request, due time.Time, f modbus.Framing) []transmission {
				return u.refuse(r, refusal, due, f)
			}
		}
		for _, t := range answer(r, due, w.framing) {
			w.queue(t)
		}
	}
}

// queue keeps the transmissions in the order of their times.
func (w *Wire) queue(t transmission) {
	i := len(w.pending)
	for i > 0 && w.pending[i-1].at.After(t.at) {
		i--
	}
	w.pending = append(w.pending, transmission{})
	copy(w.pending[i+1:], w.pending[i:])
	w.pending[i] = t
}

// chunkDue is when the next lump of what is being sent is through.
func (w *Wire) chunkDue() time.Time {
	return w.sending.at.Add(w.timing.Chars(min(w.sent+fifo, len(w.sending.bytes))))
}

func (w *Wire) sendChunk() {
	end := len(w.sending.bytes)
	if w.timing.Char > 0 {
		end = min(w.sent+fifo, end)
	}
	chunk := w.sending.bytes[w.sent:end]
	now := time.Now() // before the write: the master may see the bytes before we get to look again
	n, err := unix.Write(w.fd, chunk)
	if err != nil {
		n = 0
	}
	w.sent = end
	w.quiet = now
	last := end == len(w.sending.bytes)
	w.mu.Lock()
	w.stats.BytesOut += uint64(n)
	w.stats.Lost += uint64(len(chunk) - n)
	if last && !w.sending.echo {
		w.stats.Answers++
	}
	w.mu.Unlock()
	if !last {
		return
	}
	if w.sending.whole != nil && n == len(chunk) {
		w.sending.whole(now)
	}
	if len(w.pending) > 0 && w.pending[0].at.Before(now) {
		w.pending[0].at = now // two cannot send at once: this one waited
	}
	w.sending = transmission{}
}
