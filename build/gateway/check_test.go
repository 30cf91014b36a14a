package gateway

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// choice is what the boot loader makes of an environment, by the words of docs/image.md alone: the
// slots in the order in which it boots them.
type choice struct {
	slots  []string // the first is what boots; the others follow where it cannot be loaded
	sound  int      // copies of the environment whose sum is right
	active string
	try    string
	tries  uint64
}

// choose reads both copies, which lie one after the other.
func choose(env []byte) choice {
	c := choice{active: "a"}
	top := uint64(0)
	for n := range 2 {
		variables := opened(env[n*copySize:][:copySize])
		if variables == nil {
			continue
		}
		c.sound++
		seq, err := strconv.ParseUint(value(variables, "seq"), 16, 64)
		if err != nil || seq <= top {
			continue
		}
		top, c.active, c.try, c.tries = seq, "a", value(variables, "try"), 0
		if value(variables, "active") == "b" {
			c.active = "b"
		}
		if tries, err := strconv.ParseUint(value(variables, "tries"), 16, 64); err == nil {
			c.tries = tries
		}
	}
	other := map[string]string{"a": "b", "b": "a"}[c.active]
	c.slots = []string{c.active, other}
	if c.try == other && c.tries > 0 {
		c.slots = []string{other, c.active}
	}
	return c
}

func value(variables []string, name string) string {
	for _, v := range variables {
		if text, ok := strings.CutPrefix(v, name+"="); ok {
			return text
		}
	}
	return ""
}

// verified are the digests of the images that a gateway may boot: those that were flashed, or that the
// engine had verified.
type verified map[[32]byte]string

func (v verified) add(t *testing.T, version, image string) {
	t.Helper()
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	v[digest(t, file, 0)] = version
}

func digest(t *testing.T, disk io.ReaderAt, at int64) (sum [32]byte) {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(disk, at, slotSize), make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	h.Sum(sum[:0])
	return sum
}

func offset(slot string) int64 {
	if slot == "b" {
		return slotBAt
	}
	return slotAAt
}

// sound says which slot and version a disk boots, or what is wrong with it: no copy of the environment
// is sound, or the slot is none of the verified images.
func (v verified) sound(t *testing.T, disk io.ReaderAt) (slot, version string, err error) {
	t.Helper()
	env := make([]byte, 2*copySize)
	if _, err := disk.ReadAt(env, envAt); err != nil {
		return "", "", err
	}
	c := choose(env)
	if c.sound == 0 {
		return "", "", fmt.Errorf("no copy of the environment is sound")
	}
	version, ok := v[digest(t, disk, offset(c.slots[0]))]
	if !ok {
		return "", "", fmt.Errorf("slot %s boots, and what is in it was never verified", c.slots[0])
	}
	return c.slots[0], version, nil
}

// The checker itself, against environments whose outcome TestBootScript holds against U-Boot.
func TestChooseAsUBootDoes(t *testing.T) {
	blank := make([]byte, copySize)
	for name, c := range map[string]struct {
		copies [2][]byte
		want   string
	}{
		"flashed":      {[2][]byte{sealed("seq=1", "active=a"), blank}, "a b"},
		"hex":          {[2][]byte{sealed("seq=a", "active=b"), sealed("seq=9", "active=a")}, "b a"},
		"trial":        {[2][]byte{sealed("seq=9", "active=a", "try=b", "tries=3"), sealed("seq=8", "active=a")}, "b a"},
		"no tries":     {[2][]byte{sealed("seq=9", "active=a", "try=b", "tries=0"), spoilt}, "a b"},
		"spoilt":       {[2][]byte{spoilt, spoilt}, "a b"},
		"trial of one": {[2][]byte{sealed("seq=9", "active=a", "try=a", "tries=3"), spoilt}, "a b"},
	} {
		if got := strings.Join(choose(slices.Concat(c.copies[0], c.copies[1])).slots, " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if got := opened(bytes.Repeat([]byte{0}, copySize)); got != nil {
		t.Errorf("a blank copy says %q", got)
	}
}
