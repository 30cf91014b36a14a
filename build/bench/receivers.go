package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Eight receivers, and what each says ten times a second.
const (
	receiverLines  = 8
	epochs         = 10     // per second
	receiverRate   = 11_520 // bytes per second: 115200 baud, ten bits for each
	epochSentences = 6
)

// epoch is what a receiver says of one moment.
func epoch() []byte {
	var b bytes.Buffer
	for _, body := range []string{
		"GPRMC,120000.00,A,4807.038,N,01131.000,E,22.4,084.4,211126,,,A", "GPVTG,084.4,T,,M,22.4,N,41.5,K,A",
		"GPGGA,120000.00,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "GPGSA,A,3,04,05,09,12,24,25,29,31,,,,,2.5,1.3,2.1",
		"GPGSV,2,1,08,04,40,083,46,05,17,308,41,09,07,344,39,12,22,228,45", "GPGSV,2,2,08,24,55,070,47,25,31,110,44,29,12,195,40,31,65,280,48",
	} {
		b.WriteString(nmea(body))
	}
	return b.Bytes()
}

// receivers measures eight lines at 115200 baud with a receiver on each that says six sentences ten
// times a second, through the released agent to the broker: every sentence is a message.
func receivers(ctx context.Context, o options) ([]row, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	var text strings.Builder
	var ends []*terminal
	for i := range receiverLines {
		end, err := newTerminal()
		if err != nil {
			return nil, err
		}
		w.closers = append(w.closers, end.close)
		ends = append(ends, end)
		fmt.Fprintf(&text, "[[line]]\nname = \"gnss-%d\"\nport = %q\nsettings = \"115200 8N1\"\nprotocol = \"nmea\"\n", i+1, end.path)
	}
	ferrule, config, err := gateway(ctx, w, text.String())
	if err != nil {
		return nil, err
	}
	witness, err := newWitness(w, "ferrule/gw-bench/status")
	if err != nil {
		return nil, err
	}
	p, err := start("ferrule run", ferrule, "run", "--config", config)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	if _, err := online(ctx, witness, p); err != nil {
		return nil, err
	}
	return watchReceivers(ctx, witness, p, ends, o.watch)
}

// watchReceivers feeds the lines and watches the agent meanwhile. Where less arrives than was said
// the run is void.
func watchReceivers(ctx context.Context, s *witness, p *process, ends []*terminal, during time.Duration) ([]row, error) {
	s.expect(0)
	if err := wait(s.client.Subscribe("ferrule/gw-bench/readings/#", 1, s.take)); err != nil {
		return nil, err
	}
	feeding, stop := context.WithCancel(ctx)
	var feeders sync.WaitGroup
	defer feeders.Wait()
	defer stop()
	for i, end := range ends {
		feeders.Go(func() { receive(feeding, end, time.Duration(i)*7*time.Millisecond) }) // ends with feeding
	}
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	var rss, pss spread
	for time.Since(begun) < during {
		if err := sleep(ctx, time.Second); err != nil {
			return nil, err
		}
		r, err := p.rss()
		if err != nil {
			return nil, err
		}
		q, err := p.pss()
		if err != nil {
			return nil, err
		}
		rss, pss = append(rss, float64(r)/(1<<20)), append(pss, float64(q)/(1<<20))
	}
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	took := time.Since(begun)
	stop()
	feeders.Wait()
	if err := sleep(ctx, time.Second); err != nil { // the witness has the last of it
		return nil, err
	}
	s.mu.Lock()
	entries := s.tally.entries
	s.mu.Unlock()
	said := float64(receiverLines*epochs*epochSentences) * took.Seconds()
	if float64(entries) < 0.98*said {
		return nil, fmt.Errorf("%w: %d sentences arrived, %.0f were said", errVoid, entries, said)
	}
	percent := 100 * (after - before).Seconds() / took.Seconds()
	return []row{
		{
			what: fmt.Sprintf("talkers: per cent of a core, %d lines at 115200 baud, %d × %d sentences per second each", receiverLines, epochs, epochSentences),
			ours: fmt.Sprintf("%.1f, %.0f sentences per second arrived", percent, float64(entries)/took.Seconds()), target: fmt.Sprintf("≤ %v", mostEight), met: percent <= mostEight,
		},
		{
			what: "  RSS in MiB, most in " + during.String(), ours: fmt.Sprintf("%.1f (median %.1f)", rss.most(), rss.median()),
			target: fmt.Sprintf("≤ %v", mostRSS), met: rss.most() <= mostRSS,
		},
		{what: "  PSS in MiB", ours: fmt.Sprintf("%.1f (median %.1f)", pss.most(), pss.median())},
	}, nil
}

// receive is a receiver: it says an epoch ten times a second.
func receive(ctx context.Context, end *terminal, phase time.Duration) {
	if sleep(ctx, phase) != nil {
		return
	}
	tick := time.NewTicker(time.Second / epochs)
	defer tick.Stop()
	for words := epoch(); end.speak(ctx, receiverRate, words) == nil; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
