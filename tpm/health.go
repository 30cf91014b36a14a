package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Health is what an operator wants to know of a TPM before it fails.
type Health struct {
	Path            string `json:"path"`
	ResourceManager bool   `json:"resource_manager"`
	Manufacturer    string `json:"manufacturer"` // TCG vendor id, e.g. "IFX", "STM", "IBM" for swtpm
	Vendor          string `json:"vendor"`       // the vendor's own words
	Firmware        string `json:"firmware"`     // as the vendor counts: four 16-bit numbers
	LockoutCounter  uint32 `json:"lockout_counter"`
	MaxAuthFail     uint32 `json:"max_auth_fail"` // the counter at which lockout begins
	InLockout       bool   `json:"in_lockout"`
	TransientFree   uint32 `json:"transient_free"` // objects that can still be loaded
}

// Health asks the TPM; it costs two commands.
func (d *Device) Health(ctx context.Context) (Health, error) {
	h, _, err := d.health(ctx)
	return h, err
}

// health also returns the properties that change, TPM_PT_PERMANENT to TPM_PT_LOCKOUT_RECOVERY.
func (d *Device) health(ctx context.Context) (h Health, variable map[tpm2.TPMPT]uint32, err error) {
	h = Health{Path: d.path, ResourceManager: d.ResourceManager()}
	c := d.call(ctx)
	fixed, err := properties(c, tpm2.TPMPTManufacturer, tpm2.TPMPTFirmwareVersion2)
	if err != nil {
		return h, nil, commandError("asking for the TPM's vendor", err)
	}
	variable, err = properties(c, tpm2.TPMPTPermanent, tpm2.TPMPTLockoutRecovery)
	if err != nil {
		return h, nil, commandError("asking for the TPM's state", err)
	}
	h.Manufacturer = text(fixed[tpm2.TPMPTManufacturer])
	h.Vendor = text(fixed[tpm2.TPMPTVendorString1], fixed[tpm2.TPMPTVendorString2],
		fixed[tpm2.TPMPTVendorString3], fixed[tpm2.TPMPTVendorString4])
	v1, v2 := fixed[tpm2.TPMPTFirmwareVersion1], fixed[tpm2.TPMPTFirmwareVersion2]
	h.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xFFFF, v2>>16, v2&0xFFFF)
	h.LockoutCounter = variable[tpm2.TPMPTLockoutCounter]
	h.MaxAuthFail = variable[tpm2.TPMPTMaxAuthFail]
	h.InLockout = variable[tpm2.TPMPTPermanent]&inLockout != 0
	h.TransientFree = variable[tpm2.TPMPTHRTransientAvail]
	return h, variable, nil
}

// Bits of TPMA_PERMANENT (Part 2, 8.6).
const (
	ownerAuthSet       = 1 << 0
	endorsementAuthSet = 1 << 1
	lockoutAuthSet     = 1 << 2
	inLockout          = 1 << 9
)

// properties reads TPM_PT values from first to last (Part 3, 30.2).
func properties(c *call, first, last tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	rsp, err := tpm2.GetCapability{
		Capability:    tpm2.TPMCapTPMProperties,
		Property:      uint32(first),
		PropertyCount: uint32(last-first) + 1,
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	values := make(map[tpm2.TPMPT]uint32, len(list.TPMProperty))
	for _, p := range list.TPMProperty {
		values[p.Property] = p.Value
	}
	return values, nil
}

// text decodes strings that the TPM packs into numbers, four bytes each. Foreign bytes:
// only printable ASCII is kept.
func text(words ...uint32) string {
	var b []byte
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b)))
}
