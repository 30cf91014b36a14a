package identity

import (
	"math"
	"time"

	"ferrule/tpm"
)

// Status is what the agent shows of its identity.
type Status struct {
	Device      string    `json:"device"`
	Key         string    `json:"key"`
	Weak        bool      `json:"weak"`
	TPM         *TPM      `json:"tpm,omitempty"`
	Serial      string    `json:"serial"`
	Issuer      string    `json:"issuer"`
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	// DaysLeft is rounded down, and below zero for an expired certificate.
	DaysLeft int  `json:"days_left"`
	Staged   bool `json:"staged,omitempty"`
	// FullHandshakes each cost one signature of the key, Resumed ones none.
	FullHandshakes uint64 `json:"full_handshakes"`
	Resumed        uint64 `json:"resumed_handshakes"`
}

// TPM is the chip as it was found at the start, with what was asked of it since.
type TPM struct {
	tpm.Health
	tpm.Stats
}

// Status returns the identity as it is now. It asks the TPM nothing.
func (i *Identity) Status() Status {
	c := i.Current()
	s := Status{
		Device: i.Device(), Key: i.key.Ref(), Weak: i.key.Weak(),
		Serial: c.leaf.SerialNumber.Text(16), Issuer: c.leaf.Issuer.CommonName, Fingerprint: c.fingerprint,
		NotBefore: c.leaf.NotBefore, NotAfter: c.leaf.NotAfter,
		DaysLeft:       int(math.Floor(c.leaf.NotAfter.Sub(i.o.Now()).Hours() / 24)),
		Staged:         i.Staged() != nil,
		FullHandshakes: i.counters.full.Load(), Resumed: i.counters.resumed.Load(),
	}
	if i.device != nil {
		s.TPM = &TPM{Health: i.health, Stats: i.device.Stats()}
	}
	return s
}
