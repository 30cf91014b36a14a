package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

func TestCommandLine(t *testing.T) {
	for line, want := range map[string]boot{
		"quiet ferrule.slot=a\n":                               {slot: "a"},
		"ferrule.slot=b ferrule.trial=1":                       {slot: "b", trial: true},
		"ferrule.slot=b ferrule.trial=0":                       {slot: "b"},
		"ferrule.slot=a ferrule.partitions=firmware,slot-a,x ": {slot: "a", labels: []string{"firmware", "slot-a", "x"}},
	} {
		if got, err := parseCommandLine(line); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "quiet", "ferrule.slot=c", "ferrule.slot=", "xferrule.slot=a"} {
		if got, err := parseCommandLine(line); err == nil {
			t.Errorf("%q names slot %q", line, got.slot)
		}
	}
}

func TestRebootFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "reboot")
	if _, ok := readReboot(name); ok {
		t.Error("a reboot is wanted without a file")
	}
	for text, want := range map[string]string{
		"": "", "\n": "", "0 tryboot\n": "0 tryboot", "3": "3",
		"0 tryboot; rm": "", "\x00": "", strings.Repeat("a", 65): "", strings.Repeat("a", 64): strings.Repeat("a", 64),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := readReboot(name); !ok || got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, ok, want)
		}
	}
}

// An agent that does not get ready hangs, and so does one that was and falls silent.
func TestWatch(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	run := func(feed func(said chan<- string)) (hung int) {
		said, done := make(chan string), make(chan struct{})
		go func() { watch(said, 90*time.Second, time.Minute, log, func() { hung++ }); close(done) }()
		feed(said)
		close(said)
		<-done
		return hung
	}
	synctest.Test(t, func(t *testing.T) {
		if hung := run(func(said chan<- string) {
			time.Sleep(89 * time.Second)
			said <- "STATUS=up\nREADY=1"
			time.Sleep(59 * time.Second)
		}); hung != 0 {
			t.Error("one that starts slowly was taken for hanging")
		}
		if hung := run(func(chan<- string) { time.Sleep(time.Hour) }); hung != 1 {
			t.Errorf("one that says nothing was noticed %d times, want once", hung)
		}
		if hung := run(func(said chan<- string) {
			for range 100 {
				said <- "WATCHDOG=1"
				time.Sleep(59 * time.Second)
			}
		}); hung != 0 {
			t.Error("one that lives was taken for hanging")
		}
		if hung := run(func(said chan<- string) { said <- "WATCHDOG=1"; time.Sleep(time.Hour) }); hung != 1 {
			t.Errorf("one that hangs was noticed %d times, want once", hung)
		}
	})
}

func TestConsoleShowsNoControls(t *testing.T) {
	var out bytes.Buffer
	slog.New(newConsole(&out)).Info("a\x1b[2Jb", "key", "c\r\nd"+strings.Repeat("e", 600))
	text := strings.TrimSuffix(out.String(), "\r\n")
	if strings.ContainsAny(text, "\x1b\r\n") || !strings.Contains(text, "a?[2Jb key=c??d") || len(text) > 600 {
		t.Errorf("the console shows %q", text)
	}
}

func TestResolvers(t *testing.T) {
	if got := string(resolvers([]net.IP{net.IPv4(10, 0, 2, 3), net.IPv4(1, 1, 1, 1)})); got != "nameserver 10.0.2.3\nnameserver 1.1.1.1\n" {
		t.Errorf("resolv.conf is %q", got)
	}
}

// The kernel reads this struct; on a 64-bit machine it has 120 bytes.
func TestRouteIsAsTheKernelReadsIt(t *testing.T) {
	var entry rtentry
	if unsafe.Offsetof(entry.destination) != 8 || unsafe.Offsetof(entry.gateway) != 24 || unsafe.Offsetof(entry.flags) != 56 {
		t.Error("the route's fields are not where the kernel looks for them")
	}
	if size := unsafe.Sizeof(entry); size != 120 {
		t.Errorf("a route has %d bytes, want 120", size)
	}
}
