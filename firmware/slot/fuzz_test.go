package slot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"

	"ferrule/internal/disk/disktest"
)

// The seeds are what the tests of foreign programs meet too.
func FuzzUBootEnv(f *testing.F) {
	l := layout{size: 256, flags: true}
	good, _ := l.encode(variables{"a=1", "a=2", "ferrule_try=b", "no value", "=x"}, 7)
	f.Add(good)
	f.Add(make([]byte, 256))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, flags := range []bool{true, false} {
			l := layout{size: len(raw), flags: flags}
			if l.size < minCopy {
				continue
			}
			// What no checksum protects is reached only behind one.
			sealed := seal(slices.Clone(raw), l)
			v, age, err := l.decode(sealed)
			if err != nil {
				t.Fatal(err)
			}
			again, err := l.encode(v, age)
			if err != nil {
				if !errors.Is(err, errFull) {
					t.Fatal(err)
				}
				continue
			}
			if w, _, err := l.decode(again); err != nil || !slices.Equal(v, w) {
				t.Errorf("%q became %q, %v", v, w, err)
			}
			changed := v.with("ferrule_try", "b").with("ferrule_try", "")
			for _, entry := range changed {
				if strings.HasPrefix(entry, "ferrule_try=") {
					t.Errorf("it is still there: %q", changed)
				}
			}
		}
	})
}

func seal(raw []byte, l layout) []byte {
	binary.LittleEndian.PutUint32(raw, crc32.ChecksumIEEE(raw[l.header():]))
	return raw
}

func FuzzFwEnvConfig(f *testing.F) {
	f.Add("/dev/mmcblk0p1 0x0 0x4000\n/dev/mmcblk0p1 0x4000 0x4000\n")
	f.Add("# none\n/boot/uboot.env 0 16384 0x200 1")
	f.Add("/a 0 99999999999999999999\n")
	f.Fuzz(func(t *testing.T, text string) {
		places, err := parseConfig(text)
		if err != nil {
			return
		}
		for _, p := range places {
			if p.size < minCopy || p.size > maxCopy || p.offset < 0 || p.path[0] != '/' {
				t.Errorf("%+v", p)
			}
		}
		if n := len(places); n < 1 || n > 2 {
			t.Errorf("%d copies", n)
		}
	})
}

func FuzzGrubenv(f *testing.F) {
	block, _ := formatGrubenv([]grubLine{{name: "a", value: `b\c` + "\nd"}, {other: "# x"}}, grubMin)
	f.Add(block)
	f.Add(bytes.Repeat([]byte("#"), grubMin))
	f.Fuzz(func(t *testing.T, raw []byte) {
		lines, err := parseGrubenv(raw)
		if err != nil {
			if !errors.Is(err, errGrubenv) {
				t.Fatal(err)
			}
			return
		}
		again, err := formatGrubenv(grubSet(lines, choice{B, A, 3}), len(raw))
		if err != nil {
			return
		}
		back, err := parseGrubenv(again)
		if err != nil || grubGet(back, "ferrule_active") != "b" || grubGet(back, "ferrule_try") != "a" || !ordered(back) {
			t.Errorf("%q, %v", back, err)
		}
		var foreign []grubLine
		for _, l := range lines {
			if !strings.HasPrefix(l.name, "ferrule_") {
				foreign = append(foreign, l)
			}
		}
		kept := slices.DeleteFunc(slices.Clone(back), func(l grubLine) bool { return strings.HasPrefix(l.name, "ferrule_") })
		if len(foreign) != len(lines) {
			return // there were some of ours before
		}
		if !slices.Equal(foreign, kept) {
			t.Errorf("%q became %q", foreign, kept)
		}
	})
}

func FuzzAutoboot(f *testing.F) {
	f.Add("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n")
	f.Add("boot_partition=2\r\n[none]\nx=1\n# ferrule: trial=b boot=1\n[tryboot]\n")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAutoboot([]byte(text))
		if err != nil {
			return
		}
		raw, err := a.format()
		if err != nil {
			return
		}
		b, err := parseAutoboot(raw)
		if err != nil || a.plain != b.plain || a.try != b.try {
			t.Fatalf("%q became %q: %v", text, raw, err)
		}
		again, err := b.format()
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%q became %q, %v", raw, again, err)
		}
	})
}

func FuzzEntryName(f *testing.F) {
	for _, name := range []string{"ferrule-a.conf", "ferrule-b+3.conf", "ferrule-b+2-1.conf", "x+-.conf", "+1.conf", "a+99999999999.conf"} {
		f.Add(name, "title x\nversion 3\n")
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		id, left, _, counted, ok := parseEntryName(name)
		if ok && (left < 0 || left > 1<<16 || !strings.HasPrefix(name, id) || !counted && left != 0) {
			t.Errorf("%q: %q, %d, %v", name, id, left, counted)
		}
		if v := entryVersion(text); v < 0 {
			t.Errorf("version %d", v)
		}
		if got := entryVersion(withVersion(text, 1234)); got != 1234 {
			t.Errorf("%q: version %d", withVersion(text, 1234), got)
		}
	})
}

func FuzzNote(f *testing.F) {
	f.Add(string(note{seq: 3, choice: choice{A, B, 2}, other: []string{"x=y"}}.format()))
	f.Add("sum=4294967295\n")
	f.Add("seq=1\nsum=1\nseq=2\n")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseNote([]byte(text))
		if err != nil {
			// Give it the checksum that it lacks, so that what is behind it is reached.
			body := strings.TrimRight(text, "\n") + "\n"
			if n, err = parseNote(fmt.Appendf(nil, "%ssum=%d\n", body, cksum([]byte(body)))); err != nil {
				return
			}
		}
		back, err := parseNote(n.format())
		if err != nil || back.seq != n.seq || back.choice != n.choice || !slices.Equal(back.other, n.other) {
			t.Errorf("%+v became %+v, %v", n, back, err)
		}
	})
}

func FuzzRunning(f *testing.F) {
	f.Add("console=ttyS0 ferrule.slot=a quiet\n")
	f.Add("ferrule.slot=a ferrule.slot=b")
	f.Fuzz(func(t *testing.T, line string) {
		if s, err := Running(line); err == nil && s != A && s != B {
			t.Errorf("%q", s)
		}
	})
}

// FuzzEnvironment lets each boot loader's whole environment be garbage: State and Cancel answer, and
// what they leave is read again.
func FuzzEnvironment(f *testing.F) {
	f.Add([]byte("# GRUB Environment Block\n"), uint8(2))
	f.Add([]byte("[all]\nboot_partition=2\n"), uint8(1))
	f.Add([]byte("seq=1\nactive=a\nsum=1\n"), uint8(4))
	f.Fuzz(func(t *testing.T, data []byte, which uint8) {
		d := disktest.New()
		write := func(name string, data []byte) {
			file, err := d.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = file.Write(data)
			_ = file.Close()
		}
		a := A
		c := Config{Running: &a, BootID: "x", FS: d}
		switch which % 5 {
		case 0:
			write("/conf", []byte("/env 0 40\n/env 64 0x40\n"))
			write("/env", data)
			c.Boot, c.Environment = "uboot", "/conf format=script"
		case 1:
			write("/autoboot.txt", data)
			c.Boot, c.Environment = "tryboot", "/autoboot.txt"
		case 2:
			write("/grubenv", data)
			c.Boot, c.Environment = "grub", "/grubenv"
		case 3:
			_ = d.MkdirAll("/loader/entries", 0o755)
			write("/loader/entries/ferrule-a.conf", data)
			write("/loader/entries/ferrule-b+3-x.conf", data)
			c.Boot, c.Environment = "efi", "/"
		case 4:
			write("/environment.0", data)
			c.Boot, c.Environment = "directory", "/"
		}
		b, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.State(); err != nil {
			if !errors.Is(err, ErrEnvironment) {
				t.Fatal(err)
			}
			return
		}
		if err := b.Cancel(); err != nil && !errors.Is(err, ErrEnvironment) {
			t.Fatal(err)
		}
		if s, err := b.State(); err != nil || s.Trial != "" {
			t.Errorf("after Cancel: %+v, %v", s, err)
		}
	})
}
