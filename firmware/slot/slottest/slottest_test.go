package slottest_test

import (
	"testing"

	"ferrule/firmware/slot/slottest"
)

func TestUBootScript(t *testing.T)    { run(t, slottest.UBootScript()) }
func TestUBootRedundant(t *testing.T) { run(t, slottest.UBootRedundant(false, false)) }
func TestUBootFiles(t *testing.T)     { run(t, slottest.UBootRedundant(true, false)) }
func TestUBootBootcount(t *testing.T) { run(t, slottest.UBootRedundant(false, true)) }
func TestGRUB(t *testing.T)           { run(t, slottest.GRUB()) }
func TestTryboot(t *testing.T)        { run(t, slottest.Tryboot()) }
func TestEFI(t *testing.T)            { run(t, slottest.EFI()) }
func TestDirectory(t *testing.T)      { run(t, slottest.Directory()) }

func run(t *testing.T, h slottest.Harness) {
	t.Helper()
	t.Parallel()
	t.Logf("%d disks", slottest.Run(t, h))
}
