package tpm

import (
	"encoding/binary"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Stats count what the TPM was asked since it was opened.
type Stats struct {
	Commands map[string]uint64 `json:"commands"`  // by name, e.g. "Sign"; a repeated command counts once
	BytesOut uint64            `json:"bytes_out"` // of commands, repeats not included
	BytesIn  uint64            `json:"bytes_in"`  // of their last answers
	Retries  uint64            `json:"retries"`   // repeats that the TPM asked for
	Reopened uint64            `json:"reopened"`  // times a lost TPM was opened again
	Failed   uint64            `json:"failed"`    // commands that got no answer
	Wall     time.Duration     `json:"wall_ns"`   // from sending to the last answer, repeats included
}

// Stats returns a copy of the counters.
func (d *Device) Stats() Stats {
	c := &d.counters
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Commands = maps.Clone(s.Commands)
	if s.Commands == nil {
		s.Commands = map[string]uint64{}
	}
	return s
}

// Total is the number of commands of all names.
func (s Stats) Total() uint64 {
	var n uint64
	for _, c := range s.Commands {
		n += c
	}
	return n
}

type counters struct {
	mu    sync.Mutex
	stats Stats
}

func (c *counters) add(cmd, rsp []byte, wall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stats.Commands == nil {
		c.stats.Commands = make(map[string]uint64)
	}
	c.stats.Commands[commandName(cmd)]++
	c.stats.BytesOut += uint64(len(cmd))
	c.stats.BytesIn += uint64(len(rsp))
	c.stats.Wall += wall
	if rsp == nil {
		c.stats.Failed++
	}
}

func (c *counters) retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Retries++
}

func (c *counters) reopened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Reopened++
}

// commandName names the command code in cmd as Part 2, 6.5.2 does, without TPM2_.
func commandName(cmd []byte) string {
	if len(cmd) < headerSize {
		return "malformed"
	}
	code := tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:]))
	switch code {
	case tpm2.TPMCCActivateCredential:
		return "ActivateCredential"
	case tpm2.TPMCCCertify:
		return "Certify"
	case tpm2.TPMCCCreate:
		return "Create"
	case tpm2.TPMCCCreatePrimary:
		return "CreatePrimary"
	case tpm2.TPMCCEvictControl:
		return "EvictControl"
	case tpm2.TPMCCFlushContext:
		return "FlushContext"
	case tpm2.TPMCCGetCapability:
		return "GetCapability"
	case tpm2.TPMCCGetRandom:
		return "GetRandom"
	case tpm2.TPMCCLoad:
		return "Load"
	case tpm2.TPMCCNVDefineSpace:
		return "NV_DefineSpace"
	case tpm2.TPMCCNVIncrement:
		return "NV_Increment"
	case tpm2.TPMCCNVRead:
		return "NV_Read"
	case tpm2.TPMCCNVReadPublic:
		return "NV_ReadPublic"
	case tpm2.TPMCCNVUndefineSpace:
		return "NV_UndefineSpace"
	case tpm2.TPMCCNVWrite:
		return "NV_Write"
	case tpm2.TPMCCNVWriteLock:
		return "NV_WriteLock"
	case tpm2.TPMCCPolicyOR:
		return "PolicyOR"
	case tpm2.TPMCCPolicySecret:
		return "PolicySecret"
	case tpm2.TPMCCQuote:
		return "Quote"
	case tpm2.TPMCCReadClock:
		return "ReadClock"
	case tpm2.TPMCCReadPublic:
		return "ReadPublic"
	case tpm2.TPMCCSign:
		return "Sign"
	case tpm2.TPMCCStartAuthSession:
		return "StartAuthSession"
	}
	return fmt.Sprintf("%#x", uint32(code))
}
