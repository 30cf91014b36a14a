package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// Targets of the running agent.
const (
	mostMemory = 20.0 // MiB of PSS; 12 is the goal
	goalMemory = 12.0
	mostStart  = 1.0 // seconds from exec to CONNACK, the TPM's signature included
)

// running measures acceptance (d) and (f): the released binary, with its key in a TPM and one
// simulated unit that it polls once a second.
func running(ctx context.Context, o options) ([]row, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	lines, err := poller(w)
	if err != nil {
		return nil, err
	}
	ferrule, config, err := gateway(ctx, w, lines)
	if err != nil {
		return nil, err
	}
	witness, err := newWitness(w, "ferrule/gw-bench/status")
	if err != nil {
		return nil, err
	}
	starts, err := startTimes(ctx, witness, ferrule, config, o.starts)
	if err != nil {
		return nil, err
	}
	memory, idle, err := watch(ctx, witness, ferrule, config, o.watch)
	if err != nil {
		return nil, err
	}
	most := memory.most()
	return []row{
		{"agent: PSS in MiB, one line, 1 message/s, most in " + o.watch.String(), fmt.Sprintf("%.1f (median %.1f)", most, memory.median()), "",
			fmt.Sprintf("≤ %v, goal %v", mostMemory, goalMemory), most <= mostMemory},
		{"  CPU in per cent of one core", fmt.Sprintf("%.2f", idle), "", "", false},
		{"agent: s from exec to the first message after CONNACK, swtpm", starts.text("%.3f", ""), "", fmt.Sprintf("≤ %v", mostStart), starts.most() <= mostStart},
	}, nil
}

// poller makes one line with a unit that is polled once a second.
func poller(w *world) (lines string, err error) {
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 19200, BitsPerChar: 11})
	if err != nil {
		return "", err
	}
	w.closers = append(w.closers, func() { _ = wire.Close() })
	unit := hwtest.NewUnit(3)
	unit.Set(modbus.InputRegisters, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	wire.Attach(unit)

	var text strings.Builder
	fmt.Fprintf(&text, "[[line]]\nname = \"rs485-1\"\nport = %q\nsettings = \"19200 8E1\"\nprotocol = \"modbus-rtu\"\n", wire.Path())
	fmt.Fprintf(&text, "[[line.unit]]\nname = \"meter\"\naddress = 3\nevery = \"1s\"\n")
	for i := range 10 {
		fmt.Fprintf(&text, "[[line.unit.point]]\nname = \"p%d\"\nat = \"input:%d\"\ntype = \"uint16\"\n", i, i)
	}
	return text.String(), nil
}

// gateway builds the agent, gives it lines and a TPM, and enrolls it.
func gateway(ctx context.Context, w *world, lines string) (ferrule, config string, err error) {
	if ferrule, err = w.build(ctx, "ferrule"); err != nil {
		return "", "", err
	}
	tpm, err := w.startTPM(ctx)
	if err != nil {
		return "", "", err
	}
	registrar, err := w.startRegistrar(ctx)
	if err != nil {
		return "", "", err
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "state_dir = %q\n[identity]\ntpm = %q\n", filepath.Join(w.dir, "state"), tpm.Address())
	fmt.Fprintf(&text, "[enroll]\nmethod = \"registrar\"\nurl = %q\nroots = %q\n", registrar, w.ca("root.crt"))
	fmt.Fprintf(&text, "[session]\nbrokers = [\"mqtts://%s\"]\nroots = %q\n", w.address, w.ca("root.crt"))
	fmt.Fprintf(&text, "[local]\nsocket = %q\n%s", filepath.Join(w.dir, "f.sock"), lines)
	config = filepath.Join(w.dir, "ferrule.toml")
	if err := os.WriteFile(config, text.Bytes(), 0o600); err != nil {
		return "", "", err
	}
	token, err := w.token(ctx, "gw-bench")
	if err != nil {
		return "", "", err
	}
	_, err = output(ctx, token+"\n", ferrule, "enroll", "--config", config, "--token", "-")
	return ferrule, config, err
}

// startTimes starts the agent n times and takes the time until the witness has its status,
// which is published after CONNACK: never too short.
func startTimes(ctx context.Context, s *witness, ferrule, config string, n int) (spread, error) {
	var times spread
	for range n {
		began := time.Now()
		p, err := start("ferrule run", ferrule, "run", "--config", config)
		if err != nil {
			return nil, err
		}
		at, err := online(ctx, s, p)
		p.stop()
		if err != nil {
			return nil, err
		}
		times = append(times, at.Sub(began).Seconds())
	}
	return times, nil
}

// online waits for the agent's next status message that says online.
func online(ctx context.Context, s *witness, p *process) (time.Time, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case m := <-s.status:
			if bytes.Contains(m.payload, []byte(`"online":true`)) {
				return m.at, nil
			}
		case <-p.ended:
			return time.Time{}, fmt.Errorf("the agent ended: %s", last(p.output()))
		case <-timeout.C:
			return time.Time{}, fmt.Errorf("the agent did not connect: %s", last(p.output()))
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

// watch runs the agent for a while and takes its memory in MiB every second, and the share of
// a core that it used. Readings are counted at the broker; where they do not come the run is void.
func watch(ctx context.Context, s *witness, ferrule, config string, during time.Duration) (memory spread, percent float64, err error) {
	p, err := start("ferrule run", ferrule, "run", "--config", config)
	if err != nil {
		return nil, 0, err
	}
	defer p.stop()
	if _, err := online(ctx, s, p); err != nil {
		return nil, 0, err
	}
	s.expect(0)
	if err := wait(s.client.Subscribe("ferrule/gw-bench/readings/#", 1, s.take)); err != nil {
		return nil, 0, err
	}
	before, err := p.cpu()
	if err != nil {
		return nil, 0, err
	}
	seconds := int(during.Seconds())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range seconds {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
		bytes, err := p.pss()
		if err != nil {
			return nil, 0, errors.Join(err, errors.New(last(p.output())))
		}
		memory = append(memory, float64(bytes)/(1<<20))
	}
	after, err := p.cpu()
	s.mu.Lock()
	messages := s.tally.messages
	s.mu.Unlock()
	if messages < seconds-2 {
		return nil, 0, fmt.Errorf("%w: %d messages in %d s, one a second was to come", errVoid, messages, seconds)
	}
	return memory, 100 * (after - before).Seconds() / during.Seconds(), err
}
