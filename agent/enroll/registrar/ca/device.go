package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"
)

// How long the certificates of devices live: an operational certificate (LDevID) is renewed
// long before that, a factory certificate (IDevID) outlives its device.
const (
	DeviceLife  = 365 * 24 * time.Hour
	FactoryLife = 20 * 365 * 24 * time.Hour
)

// Leaf is what the certificate of a device says.
type Leaf struct {
	Device string
	Key    crypto.PublicKey
	Life   time.Duration
	// Factory makes it a factory certificate (IDevID), which names the TPM by EK where there is
	// one: the SHA-256 of the endorsement key, hex.
	Factory bool
	EK      string
}

// Names in certificates of devices.
var (
	oidAltName        = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidHardwareModule = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // id-on-hardwareModuleName, RFC 4108, 5
	oidTPM20          = asn1.ObjectIdentifier{2, 23, 133, 1, 2}          // tcg-sv-tpm20: a TPM of the family 2.0
)

// Device signs the certificate of a device. Nothing of a request but its public key comes in
// here. It never outlives the CA, whose end would be its end all the same. The chain is the
// certificate, then the device CA.
func (c *CA) Device(l Leaf) (chain []*x509.Certificate, err error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: l.Device},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	urn := url.URL{Scheme: "urn", Opaque: "ferrule:device:" + url.PathEscape(l.Device)}
	names, err := altNames(urn.String(), l)
	if err != nil {
		return nil, fmt.Errorf("naming %s: %w", l.Device, err)
	}
	template.ExtraExtensions = []pkix.Extension{names}
	life := min(l.Life, time.Until(c.device.certificate.NotAfter))
	der, err := sign(template, c.device.certificate, l.Key, c.device.key, life)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", l.Device, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", l.Device, err)
	}
	return []*x509.Certificate{leaf, c.device.certificate}, nil
}

// hardwareModule is the HardwareModuleName of RFC 4108, 5.
type hardwareModule struct {
	Type   asn1.ObjectIdentifier
	Serial []byte
}

// altNames is the subject's alternative names: the urn, and for a factory certificate with a
// TPM the hardware module's name (IEEE 802.1AR, 8.10.4).
func altNames(urn string, l Leaf) (pkix.Extension, error) {
	// GeneralName, RFC 5280, 4.2.1.6: [6] is a URI, [0] another name.
	names := []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(urn)}}
	if l.Factory && l.EK != "" {
		serial, err := hex.DecodeString(l.EK)
		if err != nil {
			return pkix.Extension{}, fmt.Errorf("reading the hash of its EK: %w", err)
		}
		module, err := asn1.Marshal(hardwareModule{oidTPM20, serial})
		if err != nil {
			return pkix.Extension{}, err
		}
		other, err := asn1.MarshalWithParams(struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}{oidHardwareModule, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: module}}, "tag:0")
		if err != nil {
			return pkix.Extension{}, err
		}
		names = append(names, asn1.RawValue{FullBytes: other})
	}
	der, err := asn1.Marshal(names)
	return pkix.Extension{Id: oidAltName, Value: der}, err
}

// HardwareSerial returns what a factory certificate says of its TPM, the SHA-256 of the
// endorsement key in hex, or "" where it names none.
func HardwareSerial(c *x509.Certificate) string {
	for _, extension := range c.Extensions {
		if !extension.Id.Equal(oidAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return ""
		}
		for _, name := range names {
			if serial := moduleSerial(name); serial != "" {
				return serial
			}
		}
	}
	return ""
}

func moduleSerial(name asn1.RawValue) string {
	var other struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if name.Class != asn1.ClassContextSpecific || name.Tag != 0 {
		return ""
	}
	if rest, err := asn1.UnmarshalWithParams(name.FullBytes, &other, "tag:0"); err != nil || len(rest) > 0 || !other.Type.Equal(oidHardwareModule) {
		return ""
	}
	var module hardwareModule
	if rest, err := asn1.Unmarshal(other.Value.Bytes, &module); err != nil || len(rest) > 0 || !module.Type.Equal(oidTPM20) {
		return ""
	}
	return hex.EncodeToString(module.Serial)
}
