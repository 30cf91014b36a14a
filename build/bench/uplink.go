package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Targets of the uplink: the CPU of a mosquitto bridge that does the same is the measure. The
// bridge stores nothing; our messages go through the outbox.
const (
	mostPerMessage = 1.6 // times the bridge's CPU, one message for each reading
	mostPerReading = 0.1 // times the bridge's CPU, batchReadings readings in a message
)

const (
	feedWindow    = 500 // messages in flight from the feeder to the bridge
	batchReadings = 60
	batchFactor   = 5 // a batched run is this many times longer, or its CPU were too small to measure
)

// sample is one run.
type sample struct {
	cpu       float64 // seconds for 100,000 readings
	brokerCPU float64
	rate      float64 // readings a second
	written   int64   // bytes
	tally     tally
}

// uplink measures acceptance (a): bridge, ours, ours batched, in turn, reps times.
func uplink(ctx context.Context, o options) ([]row, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	witness, err := newWitness(w, "bench/#")
	if err != nil {
		return nil, err
	}
	var plain, batched, bridged, ratio, batchRatio, readings spread
	var written int64
	for rep := range o.reps {
		bridge, err := bridgeRun(ctx, w, witness, fmt.Sprintf("bridge%d", rep), o.messages)
		if err != nil {
			return nil, fmt.Errorf("mosquitto bridge: %w", err)
		}
		ours, err := ownRun(ctx, w, witness, fmt.Sprintf("ours%d", rep), o.messages, false)
		if err != nil {
			return nil, fmt.Errorf("ferrule: %w", err)
		}
		batch, err := ownRun(ctx, w, witness, fmt.Sprintf("batch%d", rep), batchFactor*o.messages, true)
		if err != nil {
			return nil, fmt.Errorf("ferrule, batched: %w", err)
		}
		for name, s := range map[string]sample{"bridge": bridge, "ferrule": ours, "batched": batch} {
			say("uplink: rep %d: %-8s %.2f CPU s/100k, broker %.2f, %.0f readings/s, %d messages, %d duplicates, %d bytes to disk",
				rep+1, name, s.cpu, s.brokerCPU, s.rate, s.tally.messages, s.tally.duplicates, s.written)
		}
		bridged, plain, batched = append(bridged, bridge.cpu), append(plain, ours.cpu), append(batched, batch.cpu)
		ratio, batchRatio = append(ratio, ours.cpu/bridge.cpu), append(batchRatio, batch.cpu/bridge.cpu)
		readings = append(readings, float64(batch.tally.distinct)/float64(batch.tally.messages))
		written = max(written, ours.written, batch.written)
	}
	return []row{
		{"uplink: CPU s per 100,000 messages of 256 B", plain.text("%.2f", ""), "mosquitto bridge " + bridged.text("%.2f", ""), "", false},
		{"  beside the bridge", ratio.text("%.2f", " ×"), "", fmt.Sprintf("≤ %v ×", mostPerMessage), ratio.median() <= mostPerMessage},
		{"  per 100,000 readings, batched", batched.text("%.3f", ""), "", "", false},
		{"  batched, beside the bridge", batchRatio.text("%.3f", " ×"), "", fmt.Sprintf("≤ %v ×", mostPerReading), batchRatio.median() <= mostPerReading},
		{"  readings in a message", readings.text("%.1f", ""), "", "", false},
		{"  most bytes written to disk in a run", fmt.Sprint(written), "", "", false},
	}, nil
}

// measured runs one load and takes the CPU of the process that carries it, of the broker, and
// the time until the witness has everything.
func measured(ctx context.Context, w *world, s *witness, p *process, n int, load func() error) (sample, error) {
	s.expect(n)
	ours, err1 := p.cpu()
	broker, err2 := w.broker.cpu()
	wrote, err3 := p.written()
	if err := errors.Join(err1, err2, err3); err != nil {
		return sample{}, err
	}
	began := time.Now()
	if err := load(); err != nil {
		return sample{}, err
	}
	got, err := s.all(ctx)
	if err != nil {
		return sample{}, err
	}
	took := time.Since(began).Seconds()
	oursAfter, err1 := p.cpu()
	brokerAfter, err2 := w.broker.cpu()
	wroteAfter, err3 := p.written()
	per := 100_000 / float64(n)
	return sample{
		cpu:       (oursAfter - ours).Seconds() * per,
		brokerCPU: (brokerAfter - broker).Seconds() * per,
		rate:      float64(n) / took,
		written:   wroteAfter - wrote,
		tally:     got,
	}, errors.Join(err1, err2, err3)
}

// bridgeRun has a mosquitto carry n messages to the broker over mTLS at QoS 1. A feeder gives
// them to it over plain loopback and counts its acknowledgements.
func bridgeRun(ctx context.Context, w *world, s *witness, name string, n int) (sample, error) {
	cert, key, err := w.issue(name)
	if err != nil {
		return sample{}, err
	}
	bridge, address, err := w.mosquitto(ctx, name, fmt.Sprintf("allow_anonymous true\nconnection %s\naddress %s\n"+
		"topic bench/# out 1\nbridge_cafile %s\nbridge_certfile %s\nbridge_keyfile %s\nbridge_protocol_version mqttv311\n"+
		"notifications false\ntry_private false\n", name, w.address, w.ca("root.crt"), cert, key))
	if err != nil {
		return sample{}, err
	}
	defer bridge.stop()
	feeder := mqtt.NewClient(clientOptions("tcp://"+address, "feeder"))
	if err := wait(feeder.Connect()); err != nil {
		return sample{}, fmt.Errorf("connecting the feeder: %w", err)
	}
	defer feeder.Disconnect(100)
	// Number 0 is a probe: the bridge is up when one has come through.
	s.expect(1)
	if err := bridge.await(ctx, "the bridge", func() bool {
		_ = wait(feeder.Publish("bench/probe", 1, false, appendEntry(nil, 0)))
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.tally.messages > 0
	}); err != nil {
		return sample{}, err
	}
	return measured(ctx, w, s, bridge, n, func() error { return feed(feeder, n) })
}

// feed publishes n messages with feedWindow in flight. It returns when each is acknowledged.
func feed(client mqtt.Client, n int) error {
	tokens := make(chan mqtt.Token, feedWindow)
	reaped := make(chan error, 1)
	go func() { // ends with the channel, and feed waits for it
		var failed error
		for token := range tokens {
			if err := wait(token); err != nil && failed == nil {
				failed = fmt.Errorf("feeding the bridge: %w", err)
			}
		}
		reaped <- failed
	}()
	for i := 1; i <= n; i++ {
		tokens <- client.Publish("bench/bridge", 1, false, appendEntry(make([]byte, 0, entryBytes), uint64(i)))
	}
	close(tokens)
	return <-reaped
}

// ownRun has a process of ours, outbox and session without the rest of the agent, carry n
// messages. batch joins those that wait; else each is a message.
func ownRun(ctx context.Context, w *world, s *witness, name string, n int, batch bool) (sample, error) {
	cert, key, err := w.issue(name)
	if err != nil {
		return sample{}, err
	}
	state := filepath.Join(w.dir, name)
	if err := os.Mkdir(state, 0o700); err != nil {
		return sample{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	begin := filepath.Join(state, "begin")
	p, err := start(name, self, "publish", "-state", state, "-broker", "mqtts://"+w.address, "-roots", w.ca("root.crt"),
		"-cert", cert, "-key", key, "-begin", begin, "-messages", fmt.Sprint(n), fmt.Sprintf("-batch=%v", batch))
	if err != nil {
		return sample{}, err
	}
	defer p.stop()
	if err := p.awaitOutput(ctx, "session up"); err != nil {
		return sample{}, err
	}
	return measured(ctx, w, s, p, n, func() error {
		if err := os.WriteFile(begin, nil, 0o600); err != nil {
			return err
		}
		return p.awaitOutput(ctx, "all acknowledged")
	})
}
