package identity

import (
	"errors"
	"fmt"
	"strings"

	"ferrule/internal/hint"
)

// Config is the [identity] section.
type Config struct {
	// The TPM: auto (/dev/tpmrm0, then /dev/tpm0), none, a device file, unix:PATH or
	// tcp:HOST:PORT of a simulator.
	TPM string `toml:"tpm"`
	// The device's key: tpm2:file=F (a TSS2 key file that only this TPM can use),
	// tpm2:handle=0x81010001 (a persistent object), signer:unix=PATH (a helper process), or
	// file:F.pem (a software key).
	Key string `toml:"key"`
	// File of the operational certificate (LDevID) and its issuers below the root, PEM. A renewed
	// one waits beside it, with .next behind its name, until a broker took it.
	Certificate string `toml:"certificate"`
	// Allows a key that is a file and can be copied. It is reported as weak everywhere.
	AllowSoftwareKey bool `toml:"allow_software_key"`
	// The factory identity: it is never shown to a broker, and is the way back where the operational
	// certificate has expired or was refused. Used where its certificate is there.
	Factory Factory `toml:"factory"`

	isFactory bool // made by ForFactory
}

// Factory is the [identity.factory] section: the factory certificate (IDevID).
type Factory struct {
	// The key of the factory certificate, as identity.key.
	Key string `toml:"key"`
	// File of the factory certificate and its issuers below the root, PEM.
	Certificate string `toml:"certificate"`
}

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{
		TPM: "auto", Key: "tpm2:file=device.key", Certificate: "device.crt",
		Factory: Factory{Key: "tpm2:file=factory.key", Certificate: "factory.crt"},
	}
}

// ForFactory returns c with the factory's key and certificate in the place of the operational
// ones: what is done with it, is done to the factory identity.
func (c Config) ForFactory() Config {
	c.Key, c.Certificate, c.Factory = c.Factory.Key, c.Factory.Certificate, Factory{}
	c.isFactory = true
	return c
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	if err := c.validateKey("identity.key", c.Key, c.TPM); err != nil {
		return err
	}
	if c.Certificate == "" {
		return errors.New("identity.certificate is empty")
	}
	if c.Factory == (Factory{}) {
		return nil
	}
	tpm := c.TPM
	if c.Factory == Default().Factory {
		tpm = "" // it was not asked for, and is not missed where there is no TPM
	}
	switch err := c.validateKey("identity.factory.key", c.Factory.Key, tpm); {
	case err != nil:
		return err
	case c.Factory.Certificate == "":
		return errors.New("identity.factory.certificate is empty")
	case c.Factory.Key == c.Key, c.Factory.Certificate == c.Certificate:
		return hint.With(errors.New("identity.factory names the key or the certificate of the operational identity"),
			"the factory identity is the way back when the operational one is gone: give it files of its own")
	}
	return nil
}

func (c Config) validateKey(name, key, tpm string) error {
	scheme, _, _ := strings.Cut(key, ":")
	switch {
	case scheme == "file" && !c.AllowSoftwareKey:
		return hint.With(fmt.Errorf("%s %q is a software key, which whoever reads the disk can copy", name, key),
			"use tpm2:file=device.key, or set allow_software_key = true")
	case scheme == "tpm2" && tpm == "none":
		return hint.With(fmt.Errorf("%s %q lies in a TPM, and identity.tpm is none", name, key), `set tpm = "auto"`)
	case scheme != "tpm2" && scheme != "file" && scheme != "signer":
		return hint.With(fmt.Errorf("%s %q is not known", name, key),
			"write tpm2:file=device.key, tpm2:handle=0x81010001, signer:unix=/run/signer.sock or file:device.pem")
	}
	return nil
}
