// Command consumer subscribes to the readings of devices, whatever they are written in, prints each
// entry once as a line of JSON, and proves by boot and seq that none is missing. The trap is the order:
// it is kept per unit, not over all units of a device, so a gap is final only when its unit has gone on.
//
//	consumer -broker ssl://broker.example:8883 -roots ca.pem -certificate me.crt -key me.key
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
}

type options struct {
	broker, roots, certificate, key string
	filter, client                  string
	level                           int
	every                           time.Duration
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("consumer", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.broker, "broker", "", "ssl://HOST:PORT")
	f.StringVar(&o.roots, "roots", "", "`FILE` with the authorities of the broker")
	f.StringVar(&o.certificate, "certificate", "", "`FILE` with our certificate")
	f.StringVar(&o.key, "key", "", "`FILE` with its key")
	f.StringVar(&o.filter, "topic", "ferrule/+/readings/#", "what to subscribe to")
	f.IntVar(&o.level, "device", 1, "which level of the topic names the device, from 0")
	f.StringVar(&o.client, "client", "consumer", "client id; the broker keeps what comes for it meanwhile")
	f.DurationVar(&o.every, "every", time.Minute, "how often to report")
	return o, f.Parse(args)
}

// run consumes until ctx ends. Entries go to stdout, what is to be said of them to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	config, err := tlsConfig(o)
	if err != nil {
		return err
	}
	decoder, err := newDecoder()
	if err != nil {
		return err
	}
	defer decoder.zstd.Close()
	messages := make(chan mqtt.Message)
	client := connect(o, config, func(m mqtt.Message) {
		select {
		case messages <- m: // taken by one goroutine, in order
		case <-ctx.Done():
		}
	}, stderr)
	defer client.Disconnect(250)
	c := consumer{options: o, decoder: decoder, out: json.NewEncoder(stdout), events: stderr}
	report := time.NewTicker(o.every)
	defer report.Stop()
	for {
		select {
		case m := <-messages:
			if err := c.take(m.Topic(), m.Payload()); err != nil {
				return err
			}
			m.Ack() // not before the entries are where they belong
		case <-report.C:
			c.ledger.report(stderr)
		case <-ctx.Done():
			c.ledger.report(stderr)
			return nil
		}
	}
}

// connect begins to connect, and to subscribe on every connection. A persistent session and QoS 1:
// the broker keeps what comes while nobody is here.
func connect(o options, config *tls.Config, handle func(mqtt.Message), stderr io.Writer) mqtt.Client {
	options := mqtt.NewClientOptions().AddBroker(o.broker).SetClientID(o.client).SetTLSConfig(config).
		SetCleanSession(false).SetAutoAckDisabled(true).SetConnectRetry(true).SetConnectRetryInterval(time.Second).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { handle(m) }).
		SetOnConnectHandler(func(client mqtt.Client) {
			token := client.Subscribe(o.filter, 1, nil)
			go func() {
				if token.Wait(); token.Error() != nil {
					fmt.Fprintln(stderr, "subscribing:", token.Error())
					return
				}
				fmt.Fprintln(stderr, "subscribed to", o.filter)
			}()
		})
	client := mqtt.NewClient(options)
	client.Connect()
	return client
}

// consumer takes messages one after the other.
type consumer struct {
	options options
	decoder *decoder
	ledger  ledger
	out     *json.Encoder
	events  io.Writer
}

// take prints the entries of a message that have not come before. The error is that of stdout: what
// cannot be stored must not be acknowledged. A message that cannot be read is said and passed over.
func (c *consumer) take(topic string, payload []byte) error {
	levels := strings.Split(topic, "/")
	if c.options.level >= len(levels) {
		fmt.Fprintf(c.events, "%q names no device\n", topic)
		return nil
	}
	device := levels[c.options.level]
	entries, err := c.decoder.decode(payload)
	if err != nil {
		fmt.Fprintf(c.events, "%q: %v\n", topic, err)
		return nil
	}
	for _, e := range entries {
		fresh, event := c.ledger.note(device, e.Boot, e.Seq)
		if event != "" {
			fmt.Fprintln(c.events, event)
		}
		if !fresh {
			continue
		}
		if err := c.out.Encode(struct {
			Device string `json:"device"`
			entry
		}{device, e}); err != nil {
			return err
		}
	}
	return nil
}

// tlsConfig is mutual TLS: the broker asks for our certificate as for a device's.
func tlsConfig(o options) (*tls.Config, error) {
	pem, err := os.ReadFile(o.roots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in " + o.roots)
	}
	pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}
