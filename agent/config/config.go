// Package config reads the one configuration file, strictly: a key it does not know is an
// error with its line, its column and the key that was probably meant. Every section's
// struct belongs to the package that it configures; this one only reads the file into them.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/command/authorize"
	"ferrule/agent/encode"
	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/agent/trust"
	"ferrule/firmware"
	"ferrule/hw"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
	"ferrule/internal/strict"
)

// DefaultPath is where the configuration lies unless --config says otherwise.
const DefaultPath = "/etc/ferrule/ferrule.toml"

const (
	defaultProfileDir = "/etc/ferrule/profiles"
	defaultGrace      = 10 * time.Second
)

// maxFile bounds what is read of a configuration file, in bytes.
const maxFile = 4 << 20

// Config is the whole file.
type Config struct {
	// Directory of everything the agent keeps: key, certificate, outbox, journal. Relative
	// paths of other keys start here.
	StateDir string `toml:"state_dir"`
	// How long a stopping agent may take to have its last messages acknowledged.
	ShutdownGrace quantity.Duration `toml:"shutdown_grace"`

	// Directory of sensor profiles of your own, one file each, which go before those of the same
	// name that come with Ferrule. The default need not exist.
	ProfileDir string `toml:"profile_dir"`

	Identity identity.Config `toml:"identity"`
	Enroll   enroll.Config   `toml:"enroll"`
	Session  session.Config  `toml:"session"`
	// How brokers whose certificate was taken back are found (docs/trust.md).
	Revocation trust.RevocationConfig `toml:"revocation"`
	// Which commands need a token of an issuer (docs/authorised-commands.md).
	Authorize authorize.Config `toml:"authorize"`
	// The log of what mattered (docs/audit.md).
	Audit  audit.Config  `toml:"audit"`
	Encode encode.Config `toml:"encode"`
	Outbox outbox.Config `toml:"outbox"`
	Local  local.Config  `toml:"local"`
	// Signed updates of the device (docs/updates.md).
	Update firmware.Config `toml:"update"`

	Lines []hw.LineConfig `toml:"line"`
}

// Default returns the configuration of an empty file. Only lines and session.brokers have
// no default.
func Default() Config {
	return Config{
		StateDir:      "/var/lib/ferrule",
		ProfileDir:    defaultProfileDir,
		ShutdownGrace: quantity.Duration(defaultGrace),
		Identity:      identity.Default(),
		Enroll:        enroll.Default(),
		Session:       session.Default(),
		Revocation:    trust.DefaultRevocation(),
		Authorize:     authorize.Default(),
		Audit:         audit.Default(),
		Encode:        encode.Default(),
		Outbox:        outbox.Default(),
		Local:         local.Default(),
		Update:        firmware.Default(),
	}
}

// Load reads and checks the file at path. Mistakes in the file are a *strict.Error; all of them
// are found in one go where the file can be read at all.
func Load(path string) (*Config, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

func read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading the configuration: %w", err),
			"write one (docs/configuration.md has a complete example) or name it with --config")
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("reading the configuration: %s is larger than %s", path, quantity.Size(maxFile))
	}
	return text, nil
}

// Parse is Load for a text already read; path only names it in errors.
func Parse(path string, text []byte) (*Config, error) {
	c := Default()
	if err := strict.Decode(path, text, &c); err != nil {
		return nil, err
	}
	if err := errors.Join(c.resolve(), c.validate()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &c, nil
}

// Profiles loads the sensor profiles, those of the configuration at path included; where there is
// no such file, those of the default. The library is usable even with an error, which says what is
// wrong with single files, be it that of the configuration.
func Profiles(path string) (*profile.Library, error) {
	c := Default()
	text, err := read(path)
	if err == nil {
		err = strict.Decode(path, text, &c)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	library, problems := c.profiles()
	return library, errors.Join(err, problems)
}

func (c *Config) profiles() (*profile.Library, error) {
	if _, err := os.Stat(c.ProfileDir); c.ProfileDir == defaultProfileDir && errors.Is(err, fs.ErrNotExist) {
		return profile.Load()
	}
	return profile.Load(c.ProfileDir)
}

// resolve gives every unit the points of its profile. Profiles that no unit names may be broken.
func (c *Config) resolve() error {
	library, _ := c.profiles()
	var problems []error
	for i := range c.Lines {
		problems = append(problems, c.Lines[i].Resolve(library))
	}
	return errors.Join(problems...)
}

// validate checks what no single section can see, then asks every section.
func (c *Config) validate() error {
	var problems []error
	names := make(map[string]bool)
	ports := make(map[string]string)
	for _, line := range c.Lines {
		if names[line.Name] {
			problems = append(problems, fmt.Errorf("two lines are called %q", line.Name))
		}
		if other, taken := ports[line.Port]; taken {
			problems = append(problems, fmt.Errorf("lines %q and %q share the port %s; units on one port belong to one line",
				other, line.Name, line.Port))
		}
		names[line.Name], ports[line.Port] = true, line.Name
		problems = append(problems, line.Validate())
	}
	if len(c.Lines) == 0 {
		problems = append(problems, hint.With(errors.New("no [[line]] is configured"),
			"add one; ferrule ports lists the serial ports of this machine"))
	}
	problems = append(problems, c.Identity.Validate(), c.Enroll.Validate(), c.Session.Validate(), c.Revocation.Validate(), c.Authorize.Validate(), c.Audit.Validate(),
		c.Encode.Validate(), c.Outbox.Validate(), c.Local.Validate(), c.Update.Validate())
	return errors.Join(problems...)
}
