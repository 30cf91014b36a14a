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
	// tpm2:handle=0x81010001 (a persistent object), or file:F.pem (a software key).
	Key string `toml:"key"`
	// File of the certificate and its issuers below the root, PEM.
	Certificate string `toml:"certificate"`
	// Allows a key that is a file and can be copied. It is reported as weak everywhere.
	AllowSoftwareKey bool `toml:"allow_software_key"`
}

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{TPM: "auto", Key: "tpm2:file=device.key", Certificate: "device.crt"}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	scheme, _, _ := strings.Cut(c.Key, ":")
	switch {
	case c.Certificate == "":
		return errors.New("identity.certificate is empty")
	case scheme == "file" && !c.AllowSoftwareKey:
		return hint.With(fmt.Errorf("identity.key %q is a software key, which whoever reads the disk can copy", c.Key),
			"use tpm2:file=device.key, or set allow_software_key = true")
	case scheme == "tpm2" && c.TPM == "none":
		return hint.With(fmt.Errorf("identity.key %q lies in a TPM, and identity.tpm is none", c.Key), `set tpm = "auto"`)
	case scheme != "tpm2" && scheme != "file":
		return hint.With(fmt.Errorf("identity.key %q is not known", c.Key),
			"write tpm2:file=device.key, tpm2:handle=0x81010001 or file:device.pem")
	}
	return nil
}
