package port

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// Row "peer hangup", and the paragraph on unplugging: the descriptors must go at once, or the kernel
// gives the adapter another number. Nobody reads, nobody closes, and each way of noticing is alone.
func TestGoneWhileNobodyReads(t *testing.T) {
	for name, c := range map[string]struct {
		make   func(t *testing.T) *machine
		unplug func(a *adapter)
	}{
		"hangup": {func(t *testing.T) *machine { m := newMachine(t).deaf(); m.sys.scan = time.Hour; return m }, func(a *adapter) { a.far.Close() }},
		"uevent": {func(t *testing.T) *machine { m := newMachine(t); m.sys.scan = time.Hour; return m }, func(a *adapter) {
			a.m.tell("")
			a.m.tell("remove@/devices/x\x00ACTION=remove\x00MAJOR=" + strings.Repeat("9", 9000))
			a.m.tell(uevent("add", a.tty, a.rdev))
			a.m.tell(uevent("remove", a.tty, a.rdev+1))
			a.m.tell(uevent("remove", a.tty, a.rdev))
		}},
		"scan": {func(t *testing.T) *machine { m := newMachine(t).deaf(); m.sys.scan = 10 * time.Millisecond; return m }, (*adapter).forget},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.make(t)
			a := m.plug("ttyUSB3")
			before := len(descriptors())
			p := m.open(byID, Options{})
			c.unplug(a)
			within(t, "Gone", p.Gone())
			p.(*serialPort).shut() // waits for the goroutine that does it
			_, read := p.Read(make([]byte, 1))
			_, write := p.Write([]byte("x"))
			_, try := p.TryRead(make([]byte, 1))
			_, counters := p.Counters()
			s := usual
			s.Baud = 300
			for what, err := range map[string]error{"Read": read, "Write": write, "TryRead": try, "Counters": counters, "Flush": p.Flush(),
				"Drain": p.Drain(), "Configure": p.Configure(s), "SetDTR": p.SetDTR(true), "SetReadDeadline": p.SetReadDeadline(time.Now())} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("%s: %v; want ErrGone", what, err)
				}
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if _, err := p.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) || errors.Is(err, ErrGone) {
				t.Errorf("Read after Close: %v; want ErrClosed", err)
			}
			m.hangUpSockets()
			far := 1
			if name == "hangup" {
				far = 0
			}
			if after := len(descriptors()); after > before-1+far {
				t.Errorf("%d descriptors; before Open %d, of which %d the line", after, before, 1-far)
			}
		})
	}
}

// Unplugging a real adapter wakes only those who wait to read or write, other than the end of a
// pseudo terminal does. Then the next look finds the hangup.
func TestHangupIsFoundByTheScan(t *testing.T) {
	m := newMachine(t).deaf()
	m.sys.scan = 10 * time.Millisecond
	a := m.plug("ttyUSB3")
	p := m.open(byID, Options{}).(*serialPort)
	err := p.control(func(fd uintptr) error {
		return p.watch.raw.Control(func(epoll uintptr) {
			if err := unix.EpollCtl(int(epoll), unix.EPOLL_CTL_DEL, int(fd), nil); err != nil {
				t.Error(err)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	a.far.Close()
	within(t, "Gone", p.Gone())
}

// More messages than are worth reading one by one, and a socket that breaks: the watch looks for
// itself, and does not wait for the slow scan any more.
func TestWatchWithoutEvents(t *testing.T) {
	m := newMachine(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	m.sys.uevents = func() (int, error) { return pair[1], nil }
	for range 70 {
		if err := unix.Sendto(pair[0], []byte("add@/devices/x\x00"), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	w, err := m.sys.newWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if e, err := w.next(time.Hour); err != nil || !e.scan {
		t.Errorf("a flood: %+v, %v; want to look", e, err)
	}
	if err := unix.Sendto(pair[0], []byte(uevent("add", "ttyUSB0", 7)), 0, nil); err != nil {
		t.Fatal(err)
	}
	if e, err := w.next(time.Hour); err != nil || e != (event{action: "add", rdev: 7}) {
		t.Errorf("after the flood: %+v, %v; want the event", e, err)
	}

	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	if _, err := unix.Write(pipe[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	m.sys.uevents = func() (int, error) { return pipe[0], nil }
	broken, err := m.sys.newWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer broken.close()
	if d := broken.interval(); d != slowScan {
		t.Errorf("with events a look every %s; want %s", d, slowScan)
	}
	if e, err := broken.next(time.Hour); err != nil || !e.scan {
		t.Errorf("a broken socket: %+v, %v; want to look", e, err)
	}
	if d := broken.interval(); d != m.sys.scan {
		t.Errorf("without events a look every %s; want %s", d, m.sys.scan)
	}
}

// A call that waits is freed when the device is told to be gone, even if the driver does not hang up.
func TestGoneFreesCalls(t *testing.T) {
	m := newMachine(t)
	m.sys.scan = time.Hour
	a := m.plug("ttyUSB3")
	p := m.open("usb:0403:6001:A50285BI:0", Options{})
	ended := make(chan error, 2)
	go func() { _, err := p.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := p.Write(make([]byte, 1<<20)); ended <- err }()
	m.tell(uevent("remove", a.tty, a.rdev))
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, ErrGone) {
			t.Errorf("%v; want ErrGone", err)
		}
	}
}

// Under load, the adapter is pulled and comes back under another number behind the
// same stable name. The line carries bytes again, no descriptor is left, no child has one.
func TestReplugUnderLoad(t *testing.T) {
	for what, make := range map[string]func(t *testing.T) *machine{
		"the kernel tells":     newMachine,
		"the kernel is silent": func(t *testing.T) *machine { return newMachine(t).deaf() },
	} {
		for _, name := range []string{byID, "usb:0403:6001:a50285bi:00"} {
			t.Run(what+"/"+name[:strings.IndexAny(name, "/:")], func(t *testing.T) { replug(t, make(t), name) })
		}
	}
}

func replug(t *testing.T, m *machine, name string) {
	a := m.plug("ttyUSB0")
	open, children := len(descriptors()), inherited(t)
	for round, next := range []string{"ttyUSB1", "ttyUSB0", "ttyUSB12"} {
		p := m.open(name, Options{})
		load(t, a, p)
		if got := inherited(t); got != children {
			t.Errorf("a child has the descriptors %q; want %q", got, children)
		}
		reader, writer := make(chan error, 1), make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, struct{ io.Reader }{p}); reader <- err }()
		go func() {
			for {
				if _, err := p.Write([]byte("$GPTXT,under load*00\r\n")); err != nil {
					writer <- err
					return
				}
			}
		}()
		far, path := newLine(t) // before the other goes, so that it is another terminal, too
		a.unplug()
		start := time.Now()
		within(t, "Gone", p.Gone())
		if err := <-reader; !errors.Is(err, ErrGone) {
			t.Errorf("reading: %v; want ErrGone", err)
		}
		if err := <-writer; !errors.Is(err, ErrGone) {
			t.Errorf("writing: %v; want ErrGone", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		gone := time.Since(start)
		back := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		go func() { back <- m.sys.await(ctx, name) }()
		a = m.plugInto(next, far, path)
		a.link("dev/serial/"+byID, "../../"+next)
		start = time.Now()
		if err := <-back; err != nil {
			t.Fatal(err)
		}
		cancel()
		p = m.open(name, Options{})
		load(t, a, p)
		t.Logf("round %d: closed %s after the unplug, carrying bytes %s after the return as %s", round, gone, time.Since(start), next)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	m.hangUpSockets()
	if n := len(descriptors()); n != open {
		t.Errorf("%d descriptors; before the first Open %d", n, open)
	}
	if got := inherited(t); got != children {
		t.Errorf("a child has the descriptors %q; want %q", got, children)
	}
}

// load passes bytes both ways.
func load(t *testing.T, a *adapter, p Port) {
	t.Helper()
	b := make([]byte, 4)
	if _, err := p.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a.far, b); err != nil || string(b) != "ping" {
		t.Fatalf("far end has %q, %v", b, err)
	}
	if _, err := a.far.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "pong" {
		t.Fatalf("port reads %q, %v", b, err)
	}
}

func TestAwait(t *testing.T) {
	const server = "tcp://127.0.0.1:1"
	m := newMachine(t).deaf()
	m.sys.scan = 10 * time.Millisecond
	m.plug("ttyUSB0")
	for _, name := range []string{byID, filepath.Join(m.sys.dev, "ttyUSB0"), "usb:0403:6001:A50285BI:0", server} {
		if err := m.sys.await(t.Context(), name); err != nil {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	m.sys.scan = time.Hour
	for _, name := range []string{byID, "by-id/other", "usb:0403:6001:other:0", server} {
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.sys.await(ctx, name) }()
		cancel(nil)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v; want the context's error", name, err)
		}
	}
	if err := Await(t.Context(), "ttyUSB0"); err == nil || hint.Of(err) == "" {
		t.Errorf("a bad name: %v; want an error with a hint", err)
	}
}

// Two adapters that call themselves the same are not guessed between: the wrong one would give
// wrong values. Await does not wait for what will not change, so Open can say so.
func TestAmbiguousName(t *testing.T) {
	m := newMachine(t).deaf()
	m.sys.scan = 10 * time.Millisecond
	const name = "usb:0403:6001:A50285BI:0"
	m.plug("ttyUSB0")
	far, path := newLine(t)
	m.plugInto("ttyUSB1", far, path)
	if err := m.sys.await(t.Context(), name); err != nil {
		t.Error(err)
	}
	if _, err := m.sys.open(t.Context(), name, Options{Settings: usual}); err == nil || !strings.Contains(hint.Of(err), "by-path") {
		t.Errorf("%v, hint %q; want to hear of by-path", err, hint.Of(err))
	}
	infos, err := list(m.sys.sys, m.sys.dev, "")
	if err != nil || len(infos) != 2 || infos[0].USB != "" || infos[1].USB != "" {
		t.Errorf("%+v, %v; want two ports without USB names", infos, err)
	}
}

// The real socket: what the kernel says is heard, what a process says is not.
func TestOnlyTheKernelIsHeard(t *testing.T) {
	w, err := host().newWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if w.netlink < 0 {
		t.Log("ATTENTION: no socket for the kernel's events here; the scan alone is left")
		return
	}
	own, err := unix.Getsockname(w.netlink)
	if err != nil {
		t.Fatal(err)
	}
	liar, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(liar)
	if err := unix.Sendto(liar, []byte(uevent("remove", "ttyLIAR", unix.Mkdev(188, 77))), 0, own); err != nil {
		t.Logf("ATTENTION: a process may not send to the socket (%v), so that it is not heard remains untried", err)
	}
	if err := os.WriteFile("/sys/class/tty/ptmx/uevent", []byte("change"), 0); err != nil {
		t.Logf("ATTENTION: the kernel cannot be asked for an event (%v), so that it is heard remains untried", err)
		return
	}
	for {
		e, err := w.next(patience)
		if err != nil || e.scan || e.rdev == unix.Mkdev(188, 77) {
			t.Fatalf("%+v, %v; want the kernel's event", e, err)
		}
		if e.action == "change" && e.rdev == unix.Mkdev(5, 2) {
			return
		}
	}
}

func TestFromKernel(t *testing.T) {
	for from, want := range map[unix.Sockaddr]bool{
		&unix.SockaddrNetlink{Groups: kernelEvents}:           true,
		&unix.SockaddrNetlink{Pid: 1, Groups: kernelEvents}:   false,
		&unix.SockaddrUnix{Name: "@/org/kernel/udev/monitor"}: false,
	} {
		if got := fromKernel(from); got != want {
			t.Errorf("%+v: %v", from, got)
		}
	}
	if fromKernel(nil) {
		t.Error("nobody is taken for the kernel")
	}
}

func TestParseUevent(t *testing.T) {
	good := uevent("remove", "ttyUSB0", unix.Mkdev(188, 3))
	if e, ok := parseUevent([]byte(good)); !ok || e != (event{action: "remove", rdev: unix.Mkdev(188, 3)}) {
		t.Errorf("%+v, %v", e, ok)
	}
	for _, bad := range []string{
		"", "\x00", "@", "remove@\x00", "remove", "libudev\x00\xfe\xed\xca\xfe", good[:len(good)-1],
		strings.Replace(good, "ACTION=remove", "ACTION=add", 1), strings.Replace(good, "SUBSYSTEM=tty", "SUBSYSTEM=usb", 1),
		strings.Replace(good, "MAJOR=188", "MAJOR=-1", 1), strings.Replace(good, "MAJOR=188", "MAJOR=4096", 1),
		strings.Replace(good, "MINOR=3", "MINOR=x", 1), strings.Replace(good, "MINOR=3\x00", "", 1), good + "MINOR=4\x00",
	} {
		if e, ok := parseUevent([]byte(bad)); ok {
			t.Errorf("%q is taken for %+v", bad, e)
		}
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte(uevent("add", "ttyUSB0", unix.Mkdev(188, 0))))
	f.Add([]byte("change@/devices/virtual/tty/ptmx\x00ACTION=change\x00SUBSYSTEM=tty\x00MAJOR=5\x00MINOR=2\x00"))
	f.Add([]byte("libudev\x00\xfe\xed\xca\xfe"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseUevent(b)
		if !ok {
			return
		}
		if e.action == "" || e.hangup || e.scan || unix.Major(e.rdev) > 4095 || unix.Minor(e.rdev) >= 1<<20 || !bytes.Contains(b, []byte("SUBSYSTEM=tty\x00")) {
			t.Errorf("%q: %+v", b, e)
		}
	})
}
