package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"strconv"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// message sizes: every message is entryBytes long and carries its number at a fixed place, so
// that the witness finds it without decoding, alone or in a JSON array.
const (
	entryBytes   = 256
	numberDigits = 12
	entryHead    = `{"n":"`
	entryTail    = `","pad":"`
)

// appendEntry appends message number n.
func appendEntry(dst []byte, n uint64) []byte {
	start := len(dst)
	dst = append(dst, entryHead...)
	digits := strconv.AppendUint(nil, n, 10)
	dst = append(dst, bytes.Repeat([]byte("0"), numberDigits-len(digits))...)
	dst = append(append(dst, digits...), entryTail...)
	dst = append(dst, bytes.Repeat([]byte("x"), entryBytes-2-(len(dst)-start))...)
	return append(dst, `"}`...)
}

// numbers calls f with every number in a payload: one entry, or an array of them.
func numbers(payload []byte, f func(n int)) {
	step := entryBytes
	if len(payload) > 0 && payload[0] == '[' {
		payload, step = payload[1:], entryBytes+1 // and a comma
	}
	for ; len(payload) >= entryBytes; payload = payload[min(step, len(payload)):] {
		digits := payload[len(entryHead) : len(entryHead)+numberDigits]
		if n, err := strconv.Atoi(string(digits)); err == nil && bytes.HasPrefix(payload, []byte(entryHead)) {
			f(n)
		}
	}
}

// tally is what arrived of one run.
type tally struct {
	distinct, duplicates, misordered, messages int

	entries int // of readings
}

// witness is an independent subscriber. It counts what arrives at the broker.
type witness struct {
	client mqtt.Client

	mu      sync.Mutex
	tally   tally
	seen    []bool // by number, from 1
	highest int
	done    chan struct{} // closed when all have arrived

	status chan statusMessage
}

// statusMessage is what came on the status topic, and when.
type statusMessage struct {
	at      time.Time
	payload []byte
}

// clientOptions are those of a plain paho client, with nothing automatic.
func clientOptions(url, id string) *mqtt.ClientOptions {
	return mqtt.NewClientOptions().AddBroker(url).SetClientID(id).SetProtocolVersion(4).SetCleanSession(true).
		SetAutoReconnect(false).SetConnectRetry(false).SetWriteTimeout(patience).SetConnectTimeout(10 * time.Second)
}

// newWitness subscribes at the broker with a certificate of its own.
func newWitness(w *world, topics ...string) (*witness, error) {
	client, err := w.client("witness")
	if err != nil {
		return nil, fmt.Errorf("connecting the witness: %w", err)
	}
	s := &witness{client: client, status: make(chan statusMessage, 64)}
	for _, topic := range topics {
		if err := wait(s.client.Subscribe(topic, 1, s.take)); err != nil {
			return nil, fmt.Errorf("subscribing the witness: %w", err)
		}
	}
	return s, nil
}

// client connects to the broker with a certificate of its own.
func (w *world) client(name string) (mqtt.Client, error) {
	cert, key, err := w.issue(name)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	client := mqtt.NewClient(clientOptions("ssl://"+w.address, name).
		SetTLSConfig(&tls.Config{RootCAs: w.roots, Certificates: []tls.Certificate{pair}}))
	if err := wait(client.Connect()); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, func() { client.Disconnect(100) })
	return client, nil
}

func wait(token mqtt.Token) error {
	if !token.WaitTimeout(patience) {
		return fmt.Errorf("no answer within %v", patience)
	}
	return token.Error()
}

// expect begins a run of n messages.
func (s *witness) expect(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally, s.highest, s.seen, s.done = tally{}, 0, make([]bool, n+1), make(chan struct{})
}

func (s *witness) take(_ mqtt.Client, m mqtt.Message) {
	if bytes.HasPrefix(m.Payload(), []byte(`{"online"`)) {
		select {
		case s.status <- statusMessage{at: time.Now(), payload: m.Payload()}:
		default: // nobody measures starts
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally.messages++
	s.tally.entries += bytes.Count(m.Payload(), []byte(`"seq":`))
	numbers(m.Payload(), func(n int) {
		switch {
		case n < 1 || n >= len(s.seen): // a probe
		case s.seen[n]:
			s.tally.duplicates++
		default:
			if n < s.highest {
				s.tally.misordered++
			}
			s.seen[n], s.highest = true, max(n, s.highest)
			if s.tally.distinct++; s.tally.distinct == len(s.seen)-1 {
				close(s.done)
			}
		}
	})
}

// all waits until everything has arrived, or too long; it returns what did.
func (s *witness) all(ctx context.Context) (tally, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-s.done:
	case <-timeout.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	want := len(s.seen) - 1
	switch {
	case s.tally.distinct < want:
		return s.tally, fmt.Errorf("%w: %d of %d messages are missing", errVoid, want-s.tally.distinct, want)
	case s.tally.misordered > 0:
		return s.tally, fmt.Errorf("%w: %d messages came out of order", errVoid, s.tally.misordered)
	}
	return s.tally, ctx.Err()
}
