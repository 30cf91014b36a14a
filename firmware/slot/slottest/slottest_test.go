package slottest_test

import (
	"fmt"
	"io/fs"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

func TestUBootScript(t *testing.T)         { run(t, slottest.UBootScript()) }
func TestUBootRedundant(t *testing.T)      { run(t, slottest.UBootRedundant(false, false)) }
func TestUBootFiles(t *testing.T)          { run(t, slottest.UBootRedundant(true, false)) }
func TestUBootBootcount(t *testing.T)      { run(t, slottest.UBootRedundant(false, true)) }
func TestUBootBootcountFiles(t *testing.T) { run(t, slottest.UBootRedundant(true, true)) }
func TestGRUB(t *testing.T)                { run(t, slottest.GRUB()) }
func TestTryboot(t *testing.T)             { run(t, slottest.Tryboot()) }
func TestEFI(t *testing.T)                 { run(t, slottest.EFI()) }
func TestDirectory(t *testing.T)           { run(t, slottest.Directory()) }

func run(t *testing.T, h slottest.Harness) {
	t.Helper()
	t.Parallel()
	t.Logf("%d disks", slottest.Run(t, h))
}

// verdict stands in for a test that is expected to fail.
type verdict struct{ said []string }

func (v *verdict) Helper() {}
func (v *verdict) Errorf(f string, a ...any) {
	v.said = append(v.said, fmt.Sprintf(f, a...))
	if len(v.said) > 20 {
		panic(v)
	}
}
func (v *verdict) Fatalf(f string, a ...any) { v.said = append(v.said, fmt.Sprintf(f, a...)); panic(v) }

func (v *verdict) of(h slottest.Harness) {
	defer func() {
		if r := recover(); r != nil && r != any(v) {
			panic(r)
		}
	}()
	slottest.Run(v, h)
}

// lazy is a file system whose files forget to sync.
type lazy struct{ disk.FS }

func (l lazy) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	return lazyFile{f}, err
}

type lazyFile struct{ disk.File }

func (lazyFile) Sync() error { return nil }

// The negative control: each of these devices can be bricked, or loops, and the suite must see it.
func TestRunRefuses(t *testing.T) {
	for name, spoil := range map[string]func(h *slottest.Harness){
		"a medium that does not sync": func(h *slottest.Harness) {
			h.FS = func(d *disktest.Disk) disk.FS { return lazy{d} }
		},
		"a boot loader that does not count": func(h *slottest.Harness) {
			boot := h.Boot
			h.Boot = func(fsys disk.FS, p slottest.Power) slot.Slot {
				// It reads what is there and writes to a copy that nobody sees.
				return boot(fsys.(*disktest.Disk).Kill(), p)
			}
		},
		"a boot loader that does not fall over": func(h *slottest.Harness) {
			boot := h.Boot
			h.Boot = func(fsys disk.FS, p slottest.Power) slot.Slot {
				s := boot(fsys, slottest.Power{Asked: p.Asked})
				if p.Broken[s] {
					return slottest.Nothing
				}
				return s
			}
		},
		"a boot loader that never tries": func(h *slottest.Harness) {
			h.Boot = func(disk.FS, slottest.Power) slot.Slot { return slot.A }
		},
		"one copy where there should be two": func(h *slottest.Harness) {
			disk := h.Disk
			h.Config.Environment = "/etc/fw_env.config single=yes"
			h.Disk = func() *disktest.Disk {
				d := disk()
				d.SetContent("/dev/env", slottest.UBootEnv(slottest.EnvSize, -1, "ferrule_active=a"))
				d.SetContent("/etc/fw_env.config", []byte("/dev/env 0x0 0x600\n"))
				return d.Kill()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := slottest.UBootRedundant(false, false)
			spoil(&h)
			var v verdict
			v.of(h)
			if len(v.said) == 0 {
				t.Fatal("the suite found nothing")
			}
			t.Log(v.said[0])
		})
	}
}
