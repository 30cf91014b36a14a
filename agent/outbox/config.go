package outbox

import (
	"fmt"
	"time"

	"ferrule/internal/quantity"
)

// Config is the [outbox] table of the configuration.
type Config struct {
	// MaxBytes bounds what the outbox may occupy, on disk and in memory together. At least 64KiB.
	MaxBytes quantity.Size `toml:"max_bytes"`
	// Sync is the longest time a reading may be neither acknowledged nor on disk; "always" makes
	// every reading durable before the next one is taken.
	Sync Sync `toml:"sync"`
	// WhenFull says what gives way when max_bytes is reached: drop-oldest, drop-newest or block.
	WhenFull string `toml:"when_full"`
}

// The values of Config.WhenFull.
const (
	DropOldest = "drop-oldest"
	DropNewest = "drop-newest"
	Block      = "block"
)

// minBytes is the least MaxBytes: sixteen segments of one flash page.
const minBytes = 64 << 10

// Default is what an absent [outbox] table means.
func Default() Config {
	return Config{MaxBytes: 256 << 20, Sync: Sync(time.Second), WhenFull: DropOldest}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.MaxBytes < minBytes:
		return fmt.Errorf("max_bytes %v is less than %v", c.MaxBytes, quantity.Size(minBytes))
	case c.Sync < 0:
		return fmt.Errorf("sync %v is negative", c.Sync)
	case c.WhenFull != DropOldest && c.WhenFull != DropNewest && c.WhenFull != Block:
		return fmt.Errorf("when_full %q is not drop-oldest, drop-newest or block", c.WhenFull)
	}
	return nil
}

// Sync is a duration, or zero for "always".
type Sync time.Duration

// Always makes Append return only after fsync.
const Always Sync = 0

func (s Sync) String() string {
	if s == Always {
		return "always"
	}
	return time.Duration(s).String()
}

// MarshalText implements encoding.TextMarshaler.
func (s Sync) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Less than 10 ms is refused: it would be an
// fsync per reading that promises less than "always".
func (s *Sync) UnmarshalText(text []byte) error {
	if string(text) == "always" {
		*s = Always
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is neither a duration such as \"1s\" nor \"always\"", text)
	}
	if d < 10*time.Millisecond {
		return fmt.Errorf("sync %q is shorter than 10ms; \"always\" syncs every reading", text)
	}
	*s = Sync(d)
	return nil
}
