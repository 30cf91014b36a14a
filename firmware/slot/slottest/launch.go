package slottest

import (
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"path"
	"strconv"
	"strings"

	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// Note makes one copy of the environment of ferrule-launch.
func Note(lines string) []byte {
	return fmt.Appendf(nil, "%ssum=%d\n", lines, posixSum([]byte(lines)))
}

// posixSum is the CRC of cksum(1). It is the mirror image of the usual CRC-32, without its preset.
func posixSum(data []byte) uint32 {
	mirrored := make([]byte, 0, len(data)+4)
	for _, b := range data {
		mirrored = append(mirrored, bits.Reverse8(b))
	}
	for n := len(data); n > 0; n >>= 8 {
		mirrored = append(mirrored, bits.Reverse8(byte(n)))
	}
	return ^bits.Reverse32(^crc32.Update(0xFFFFFFFF, crc32.IEEETable, mirrored))
}

// Directory is ferrule-launch as Go, for the disks that it could not be run on.
func Directory() Harness {
	const folder = "/var/lib/ferrule/program"
	return Harness{
		Disk: func() *disktest.Disk {
			return diskWith(map[string][]byte{
				folder + "/environment.0":      Note("seq=7\nactive=a\ntry=\ntries=0\ncolour=blue\n"),
				folder + "/releases/a/ferrule": nil, folder + "/releases/b/ferrule": nil,
			})
		},
		FS:     plain,
		Config: slot.Config{Boot: "directory", Environment: folder},
		Boot:   func(fsys disk.FS, p Power) slot.Slot { return bootDirectory(fsys, folder, p) },
		Copies: []Copy{{folder + "/environment.0", 0}, {folder + "/environment.1", 0}},
	}
}

// launched is one copy as ferrule-launch reads it.
type launched struct {
	seq                int
	active, try, other string
	tries              int
}

func readLaunched(fsys disk.FS, name string) (l launched, ok bool) {
	data, err := disk.ReadFile(fsys, name, 4096)
	if err != nil {
		return l, false
	}
	var body string
	for _, line := range strings.SplitAfter(string(data), "\n") {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "sum":
			return l, value == strconv.FormatUint(uint64(posixSum([]byte(body))), 10) && l.seq > 0
		case "seq":
			l.seq, _ = strconv.Atoi(value)
		case "active":
			l.active = value
		case "try":
			l.try = value
		case "tries":
			l.tries, _ = strconv.Atoi(value)
		default:
			l.other += line
		}
		body += line
	}
	return l, false
}

func bootDirectory(fsys disk.FS, folder string, p Power) slot.Slot {
	name := func(i int) string { return path.Join(folder, "environment."+strconv.Itoa(i)) }
	l0, ok0 := readLaunched(fsys, name(0))
	l1, ok1 := readLaunched(fsys, name(1))
	l, older := l0, 1
	switch {
	case !ok0 && !ok1:
		return ""
	case !ok0 || ok1 && l1.seq > l0.seq:
		l, older = l1, 0
	}
	boot := l.active
	if l.try != "" {
		if l.tries > 0 {
			boot = l.try
			l.tries--
		} else {
			l.try = ""
		}
		lines := fmt.Sprintf("seq=%d\nactive=%s\ntry=%s\ntries=%d\n%s", l.seq+1, l.active, l.try, l.tries, l.other)
		if !writeLaunched(fsys, name(older), Note(lines)) {
			boot = l.active
		}
	}
	if l.active == "" {
		return first(p, "", slot.Slot(boot))
	}
	return first(p, "", slot.Slot(boot), slot.Slot(l.active), slot.Slot(l.active).Other())
}

func writeLaunched(fsys disk.FS, name string, data []byte) bool {
	f, err := fsys.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return false
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	_ = f.Close()
	return err == nil && fsys.Rename(name+".new", name) == nil && fsys.SyncDir(path.Dir(name)) == nil
}
