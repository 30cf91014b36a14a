package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/firmware/slot/blocktest"
	"ferrule/internal/disk"
)

// samples is how many of the rebuilt disks are really booted, and mounts of how many the data partition is
// read: the journal of its file system must not be what keeps a gateway from starting.
const (
	samples = 24
	mounts  = 200
)

// TestEveryPowerCut records the writes of one update with its commit and of one rollback, boot loader's,
// engine's and file system's, rebuilds every disk that a power cut at any of them may leave, and holds
// it against what may boot. Some are booted.
func TestEveryPowerCut(t *testing.T) {
	t.Parallel()
	w, m := newWorld(t), newMachine(t)
	r := newReleases(t, w)
	r.publish(t, flashed)
	w.provision(t, m, r.table(3), map[string]string{"root.json": r.root})
	m.on(t)
	w.reading(t, 0)
	m.cut()
	base := filepath.Join(m.dir, "base.img")
	mustRun(t, "cp", "--sparse=always", m.disk, base)

	m.log = filepath.Join(m.dir, "writes.log")
	if err := os.WriteFile(m.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.on(t)
	w.reading(t, w.heard())
	r.publish(t, goodRelease, "--security-version", "2", "--allow", "security-jump", "--within", "60s")
	w.apply(t)
	w.outcome(t, "committed", "1.1.0")
	r.publish(t, panics, "--within", "60s")
	w.apply(t)
	w.outcome(t, "rolled-back", "1.2.0")
	w.runs(t, "1.1.0", "b")
	m.cut()

	good := verified{}
	for _, k := range []kind{flashed, goodRelease, panics} {
		good.add(t, k.version, build(t, k))
	}
	p := openReplay(t, base, m.log, good)
	kept := p.check(t)
	for n, s := range kept {
		t.Run(fmt.Sprintf("boot %d", n+1), func(t *testing.T) {
			t.Parallel()
			bootState(t, base, s)
		})
	}
}

// replay is a recorded log and what is needed to judge its states.
type replay struct {
	log      *blocktest.Log
	base     *os.File
	good     verified
	settled  map[string][]settled // slot → what is known of it after each request
	contents map[string]string    // slot and last write in it → version, "" if it was never verified
	parsed   map[string]error     // environment → what firmware/slot says of it
}

// settled is how a slot stands after one request.
type settled struct {
	last    int  // the last request that wrote to it, -1: none
	flushed bool // and all of that has reached the medium
}

func openReplay(t *testing.T, base, log string, good verified) *replay {
	t.Helper()
	p := &replay{good: good, contents: map[string]string{}, parsed: map[string]error{}}
	var err error
	if p.base, err = os.Open(base); err != nil {
		t.Fatal(err)
	}
	writes, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = p.base.Close(), writes.Close() })
	if p.log, err = blocktest.OpenLog(writes); err != nil {
		t.Fatal(err)
	}
	p.settled = map[string][]settled{"a": settle(t, writes, p.log.Entries(), slotAAt), "b": settle(t, writes, p.log.Entries(), slotBAt)}
	return p
}

// settle reads a log as the kernel documents it (Documentation/admin-guide/device-mapper/log-writes.rst): a
// header of one sector, then entries of one sector and their data.
func settle(t *testing.T, log io.ReaderAt, entries int, from int64) (all []settled) {
	t.Helper()
	const flush, fua, discard = 1, 2, 4
	now, at := settled{last: -1, flushed: true}, int64(512)
	for n := range entries {
		var head [32]byte
		if _, err := log.ReadAt(head[:], at); err != nil {
			t.Fatal(err)
		}
		begin, size := int64(binary.LittleEndian.Uint64(head[0:]))*512, int64(binary.LittleEndian.Uint64(head[8:]))*512
		flags := binary.LittleEndian.Uint64(head[16:])
		if flags&flush != 0 {
			now.flushed = true
		}
		if size > 0 && begin < from+slotSize && begin+size > from {
			now.last, now.flushed = n, flags&fua != 0 && now.flushed
		}
		at += 512
		if flags&discard == 0 {
			at += size
		}
		all = append(all, now)
	}
	return all
}

// check judges every state, and keeps those that are to be booted: one of each environment, and others
// in between.
func (p *replay) check(t *testing.T) (kept []*blocktest.State) {
	t.Helper()
	info, err := p.base.Stat()
	if err != nil {
		t.Fatal(err)
	}
	options := blocktest.Options{Base: p.base, Size: info.Size()}
	total := 0
	for range p.log.States(options) {
		total++
	}
	bricks, n := 0, 0
	boots, environments := map[string]int{}, map[string]bool{}
	for s := range p.log.States(options) {
		env := make([]byte, 2*copySize)
		if _, err := s.ReadAt(env, envAt); err != nil {
			t.Fatal(err)
		}
		what, err := p.judge(t, s, env)
		if err != nil {
			bricks++
			t.Errorf("%v: %v", s, err)
		}
		boots[what]++
		if !environments[string(env)] || n%(total/samples+1) == 0 {
			kept = append(kept, s.Keep())
		}
		if n%(total/mounts+1) == 0 {
			p.mends(t, s)
		}
		environments[string(env)] = true
		n++
	}
	t.Logf("%d requests, %d states, %d environments, %d bricks; what boots: %v", p.log.Entries(), total, len(environments), bricks, boots)
	return thin(kept, samples)
}

// mends has the data partition's journal replayed, as the kernel does when it mounts it: 1 says that this
// was all there was to do.
func (p *replay) mends(t *testing.T, s *blocktest.State) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for at := int64(0); at < dataSize; at += int64(len(block)) {
		if _, err := s.ReadAt(block, dataAt+at); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(block, make([]byte, len(block))) {
			if _, err := file.WriteAt(block, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(file.Truncate(dataSize), file.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(need(t, "e2fsck"), "-p", name).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
		t.Errorf("%v: the data partition: %v\n%s", s, err, out)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// thin keeps n of all, spread evenly.
func thin(all []*blocktest.State, n int) (some []*blocktest.State) {
	for k := range min(n, len(all)) {
		some = append(some, all[k*len(all)/min(n, len(all))])
	}
	return some
}

// judge says which slot and version a state boots, or what is wrong with it.
func (p *replay) judge(t *testing.T, s *blocktest.State, env []byte) (string, error) {
	if _, known := p.parsed[string(env)]; !known {
		p.parsed[string(env)] = parses(t, env)
	}
	if err := p.parsed[string(env)]; err != nil {
		return "", fmt.Errorf("the agent cannot read the environment: %w", err)
	}
	c := choose(env)
	if c.sound == 0 {
		return "", fmt.Errorf("no copy of the environment is sound")
	}
	first := c.slots[0]
	stands := settled{last: -1, flushed: true}
	if s.Cut() >= 0 {
		stands = p.settled[first][s.Cut()]
	}
	// Where all of a slot has reached the medium, every state that has come so far has the same in it.
	key := fmt.Sprintf("%s %d", first, stands.last)
	version, known := p.contents[key]
	if !known || !stands.flushed {
		version = p.good[digest(t, s, offset(first))]
		if stands.flushed {
			p.contents[key] = version
		}
	}
	if version == "" {
		return "", fmt.Errorf("slot %s boots, and what is in it was never verified", first)
	}
	return first + " " + version, nil
}

// parses has the agent's own code read an environment.
func parses(t *testing.T, env []byte) error {
	dir := t.TempDir()
	file, config := filepath.Join(dir, "env"), filepath.Join(dir, "fw_env.config")
	for name, text := range map[string]string{file: string(env), config: fmt.Sprintf("%s 0x0 0x4000\n%s 0x4000 0x4000\n", file, file)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	boot, err := slot.NewUBoot(disk.OS(), slot.A, slot.UBoot{Config: config, Script: true})
	if err != nil {
		return err
	}
	_, err = boot.State()
	return err
}

// bootState boots a rebuilt disk until an agent runs on it.
func bootState(t *testing.T, base string, s *blocktest.State) {
	name := filepath.Join(t.TempDir(), "disk.img")
	mustRun(t, "cp", "--sparse=always", base, name)
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Patch(file); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	qemu := start(t, "a rebuilt disk", bootWords(t, "-m", "320", "-nic", "none", "-blockdev", "driver=file,node-name=d0,filename="+name, "-device", "virtio-blk-device,drive=d0")...)
	l, _ := qemu.wait(t, 0, ", agent started")
	t.Logf("%v: %s", s, l.text)
	qemu.kill()
}
