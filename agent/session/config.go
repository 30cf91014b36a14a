package session

import (
	"errors"
	"fmt"
	"time"

	"ferrule/agent/encode"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"

	"ferrule/agent/session/dial"
)

// Config is the [session] section of the configuration.
type Config struct {
	dial.Config
	// Brokers as mqtts://HOST:PORT, mqtts://HOST:443?alpn=PROTOCOL or wss://HOST:PORT/PATH. The one
	// that worked last is tried first, the others in this order. Required.
	Brokers []string `toml:"brokers"`
	// File with the PEM certificates of the authorities that brokers are checked against.
	// Empty: those of the operating system.
	Roots string `toml:"roots"`
	// MQTT client id; {device} is the CN of the certificate. Two sessions with the same id
	// throw each other out.
	ClientID string `toml:"client_id"`
	// Longest silence towards the broker before a ping is sent; whole seconds, at least 5s.
	Keepalive quantity.Duration `toml:"keepalive"`
	// Messages that may wait for their acknowledgement at one time; clouds allow 10 to 100.
	Window int `toml:"window"`
	// Longest time in which something must move on the link while messages wait; after it
	// the link counts as lost. At least 1s.
	WriteTimeout quantity.Duration `toml:"write_timeout"`
	// Most messages per second; 0: no limit. AWS IoT Core allows 100.
	Rate float64 `toml:"rate"`
	// Most bytes a day, in both directions together, as TCP carries them; 0: no limit. What a provider
	// counts is more by the headers of IP and TCP: a tenth with batches, half with single messages.
	// The day is that of UTC, or 24 hours while nobody vouches for the clock. When nine tenths are
	// used up readings wait in the outbox until the next day; the last tenth is for urgent lines, the
	// status and commands. Keeping the connection goes on: about 0.1MiB a day.
	DailyBytes quantity.Size `toml:"daily_bytes"`
	// Longest pause before the first attempt to connect again; 10ms to 10m. A fleet that loses its
	// broker comes back over this time, not in one second: with 45s no second holds more than a
	// twentieth of it. Further pauses are twice as long each, up to 2m. "2s" suits a broker that
	// few devices share.
	ReconnectSpread quantity.Duration `toml:"reconnect_spread"`
	// Largest packet that is taken from the broker; a larger one ends the connection. One that has
	// ended three is quarantined: skipped and acknowledged up to 4MiB, above that the device is
	// unsubscribed for an hour.
	MaxInbound quantity.Size `toml:"max_inbound"`
	// Templates of the topics.
	Topics encode.Topics `toml:"topics"`
}

// Default returns what an empty [session] section means; brokers have no default.
func Default() Config {
	return Config{
		Config:          dial.DefaultConfig(),
		ClientID:        "{device}",
		Keepalive:       quantity.Duration(time.Minute),
		Window:          64,
		WriteTimeout:    quantity.Duration(10 * time.Second),
		ReconnectSpread: quantity.Duration(45 * time.Second),
		MaxInbound:      256 << 10,
		Topics:          encode.DefaultTopics(),
	}
}

// Limits of the configuration.
const (
	maxWindow       = 1024                // far below MQTT's 65,535 packet identifiers
	maxKeepalive    = 65535 * time.Second // MQTT 3.1.1, 3.1.2.10
	minKeepalive    = 5 * time.Second
	minWriteTimeout = time.Second
	minMaxInbound   = 1 << 10
	maxMaxInbound   = 16 << 20
	minDailyBytes   = 1 << 20 // what keeping a connection costs several times over
	minSpread       = 10 * time.Millisecond
	maxSpread       = 10 * time.Minute
)

// Validate names every key that cannot be used.
func (c Config) Validate() error {
	var problems []error
	bad := func(repair, format string, args ...any) {
		problems = append(problems, hint.With(fmt.Errorf("session."+format, args...), repair))
	}
	if len(c.Brokers) == 0 {
		bad(`name one: brokers = ["mqtts://broker.example:8883"]`, "brokers: there is none")
	}
	for _, b := range c.Brokers {
		if _, err := dial.ParseBroker(b); err != nil {
			bad(`write it as "mqtts://broker.example:8883"`, "brokers: %q: %w", dial.Shown(b), err)
		}
	}
	if err := c.Config.Validate(); err != nil {
		problems = append(problems, err)
	}
	if _, err := encode.ExpandTopic(c.ClientID, map[string]string{"device": "x"}); err != nil {
		bad(`the usual value is "{device}"`, "client_id: %q cannot be used", c.ClientID)
	}
	if k := c.Keepalive.Std(); k < minKeepalive || k > maxKeepalive || k%time.Second != 0 {
		bad(fmt.Sprintf("use whole seconds from %v to %v", minKeepalive, maxKeepalive), "keepalive: %v", c.Keepalive)
	}
	if c.Window < 1 || c.Window > maxWindow {
		bad(fmt.Sprintf("use 1 to %d", maxWindow), "window: %d", c.Window)
	}
	if c.WriteTimeout.Std() < minWriteTimeout {
		bad(fmt.Sprintf("use %v or more", minWriteTimeout), "write_timeout: %v", c.WriteTimeout)
	}
	if !(c.Rate >= 0 && c.Rate <= 1e6) {
		bad("use messages per second, or 0 for no limit", "rate: %v", c.Rate)
	}
	if n := c.DailyBytes.Bytes(); n != 0 && n < minDailyBytes {
		bad("use 1MiB or more, or 0 for no limit", "daily_bytes: %v", c.DailyBytes)
	}
	if d := c.ReconnectSpread.Std(); d < minSpread || d > maxSpread {
		bad(`use "10ms" to "10m"; "45s" suits a fleet, "2s" a few devices`, "reconnect_spread: %v", c.ReconnectSpread)
	}
	if n := c.MaxInbound.Bytes(); n < minMaxInbound || n > maxMaxInbound {
		bad("use 1KiB to 16MiB", "max_inbound: %v", c.MaxInbound)
	}
	if err := c.Topics.Validate(); err != nil {
		problems = append(problems, fmt.Errorf("session.%w", err))
	}
	return errors.Join(problems...)
}
