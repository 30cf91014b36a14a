package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

// tapped is a simulator's socket as a character device, and keeps the answers.
type tapped struct {
	net.Conn
	answers *[][]byte
}

func (t *tapped) Poll(time.Duration) (bool, error) { return true, nil }

func (t *tapped) Read(p []byte) (int, error) {
	if _, err := io.ReadFull(t.Conn, p[:10]); err != nil {
		return 0, err
	}
	size := int(binary.BigEndian.Uint32(p[2:]))
	if _, err := io.ReadFull(t.Conn, p[10:size]); err != nil {
		return 0, err
	}
	*t.answers = append(*t.answers, bytes.Clone(p[:size]))
	return size, nil
}

// life is what an agent does with its TPM from one start to the next enrollment.
func life(d *tpm.Device, f *tpm.KeyFile, c attest.Challenge) {
	ctx := context.Background()
	if k, err := d.LoadKey(ctx, f); err == nil {
		_, _ = k.Sign(nil, make([]byte, 32), crypto.SHA256)
		_, _ = k.Attest(ctx, make([]byte, 32))
		_, _ = k.Activate(ctx, c)
		_, _ = k.Sign(nil, make([]byte, 32), crypto.SHA256)
	}
	_ = d.Inspect(ctx, tpm.Known{SRK: []byte{1}})
	_ = d.Close()
}

// FuzzReplay replays a certified TPM's answers with bytes of one of them changed, so that the
// change is met where it means something.
func FuzzReplay(f *testing.F) {
	s := tpmtest.Certified(f)
	d := open(f, s.Address(), tpm.Options{})
	file := newKey(f, d, tpm.KeySpec{})
	k := load(f, d, file)
	c, _ := challenge(f, mustAttest(f, k), 1)
	if err := d.Close(); err != nil {
		f.Fatal(err)
	}
	var answers [][]byte
	d, err := tpm.OpenDescriptors(tpm.Options{Path: "/dev/tpmrm0"}, func() (tpm.Descriptor, error) {
		conn, err := net.Dial("unix", s.Socket())
		return &tapped{conn, &answers}, err
	})
	if err != nil {
		f.Fatal(err)
	}
	life(d, file, c)
	for i := range answers {
		f.Add(uint8(i), uint16(10), []byte{0xFF, 0xFF})
		f.Add(uint8(i), uint16(14), []byte{0xFF, 0xFF})
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, change []byte) {
		i := int(which) % len(answers)
		if len(change) == 0 || len(change) > 64 || 10+len(change) > len(answers[i]) {
			return
		}
		spoilt := bytes.Clone(answers[i])
		copy(spoilt[6+int(at)%(len(spoilt)-6):], change)
		var steps []tpmtest.Step
		for j, answer := range answers {
			if j == i {
				answer = spoilt
			}
			steps = append(steps, tpmtest.Step{Answer: answer})
		}
		steps = append(steps, steps...) // where one goes back to the beginning
		next := func() (tpm.Descriptor, error) { return tpmtest.NewDescriptor(steps...), nil }
		d, err := tpm.OpenDescriptors(tpm.Options{Path: "/dev/tpmrm0", CommandTimeout: time.Millisecond, RetryBudget: 1}, next)
		if err != nil {
			t.Fatal(err)
		}
		life(d, file, c)
	})
}
