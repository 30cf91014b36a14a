package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// An ekKind is one of the default endorsement keys of the TCG EK Credential Profile 2.5, and
// where a manufacturer leaves its certificate (2.2.1.4 and 2.2.1.5); 0 where there is no such
// index.
type ekKind struct {
	name        string
	template    tpm2.TPMTPublic
	certificate tpm2.TPMHandle
	nonce       tpm2.TPMHandle // goes into the unique field (low range only)
	whole       tpm2.TPMHandle // a template that replaces the default one
}

// ekKinds are in the order of preference: what a TPM computes fastest comes first.
func ekKinds() []ekKind {
	return []ekKind{
		{"P-256", tpm2.ECCEKTemplate, 0x01C0000A, 0x01C0000B, 0x01C0000C},                          // L-2
		{"P-256", highECC(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128), 0x01C00014, 0, 0x01C00015}, // H-2
		{"P-384", highECC(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256), 0x01C00016, 0, 0x01C00017}, // H-3
		{"RSA-2048", tpm2.RSAEKTemplate, 0x01C00002, 0x01C00003, 0x01C00004},                       // L-1
		{"RSA-2048", highRSA(), 0x01C00012, 0, 0x01C00013},                                         // H-1
	}
}

// highAttributes are those of the high range: also the user role without a policy, which we
// do not use, since without noDA a power cut would count (Profile, B.4.3).
func highAttributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{
		FixedTPM:            true,
		FixedParent:         true,
		SensitiveDataOrigin: true,
		UserWithAuth:        true,
		AdminWithPolicy:     true,
		Restricted:          true,
		Decrypt:             true,
	}
}

func highECC(curve tpm2.TPMECCCurve, hash tpm2.TPMIAlgHash, bits tpm2.TPMKeyBits) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: hash, ObjectAttributes: highAttributes(),
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policyB(hash)},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(bits), CurveID: curve}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

func highRSA() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: highAttributes(),
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policyB(tpm2.TPMAlgSHA256)},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(128), KeyBits: 2048}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
}

func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

// policyA is PolicySecret(endorsement hierarchy), policyC PolicyAuthorizeNV of an index that
// administrators may define; policyB is either of them (Profile, B.6). Nil for other hashes.
func policyA(hash tpm2.TPMIAlgHash) []byte {
	switch hash {
	case tpm2.TPMAlgSHA256:
		return []byte("\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa")
	case tpm2.TPMAlgSHA384:
		return []byte("\x8b\xbf\x22\x66\x53\x7c\x17\x1c\xb5\x6e\x40\x3c\x4d\xc1\xd4\xb6\x4f\x43\x26\x11\xdc\x38\x6e\x6f\x53\x20\x50\xc3\x27\x8c\x93\x0e\x14\x3e\x8b\xb1\x13\x38\x24\xcc\xb4\x31\x05\x38\x71\xc6\xdb\x53")
	}
	return nil
}

func policyB(hash tpm2.TPMIAlgHash) []byte {
	switch hash {
	case tpm2.TPMAlgSHA256:
		return []byte("\xca\x3d\x0a\x99\xa2\xb9\x39\x06\xf7\xa3\x34\x24\x14\xef\xcf\xb3\xa3\x85\xd4\x4c\xd1\xfd\x45\x90\x89\xd1\x9b\x50\x71\xc0\xb7\xa0")
	case tpm2.TPMAlgSHA384:
		return []byte("\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a\x07\x41\x48\xbb\x35\xd3\xb4\xe4\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12")
	}
	return nil
}

func policyC(hash tpm2.TPMIAlgHash) []byte {
	switch hash {
	case tpm2.TPMAlgSHA256:
		return []byte("\x37\x67\xe2\xed\xd4\x3f\xf4\x5a\x3a\x7e\x1e\xae\xfc\xef\x78\x64\x3d\xca\x96\x46\x32\xe7\xaa\xd8\x2c\x67\x3a\x30\xd8\x63\x3f\xde")
	case tpm2.TPMAlgSHA384:
		return []byte("\xd6\x03\x2c\xe6\x1f\x2f\xb3\xc2\x40\xeb\x3c\xf6\xa3\x32\x37\xef\x2b\x6a\x16\xf4\x29\x3c\x22\xb4\x55\xe2\x61\xcf\xfd\x21\x7a\xd5\xb4\x94\x7c\x2d\x73\xe6\x30\x05\xee\xd2\xdc\x2b\x35\x93\xd1\x65")
	}
	return nil
}

// akTemplate is that of the attestation key. It is derived from the endorsement seed each
// time, so that there is nothing to store; it signs only what the TPM itself has made
// (restricted); the label in its unique field keeps it apart from the keys of others.
func akTemplate() tpm2.TPMTPublic {
	label := make([]byte, 32)
	copy(label, "ferrule attestation key 1")
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          true,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: label},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

var errTemplate = errors.New("unusable template")

// withNonce puts an EK nonce into the unique field, zeros behind it (Profile, 2.2.1.2).
func (k ekKind) withNonce(nonce []byte) (tpm2.TPMTPublic, error) {
	t := k.template
	switch {
	case t.Type == tpm2.TPMAlgECC && len(nonce) <= 32:
		x := append(append([]byte(nil), nonce...), make([]byte, 32-len(nonce))...)
		t.Unique = tpm2.NewTPMUPublicID(t.Type, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		})
	case t.Type == tpm2.TPMAlgRSA && len(nonce) <= 256:
		n := append(append([]byte(nil), nonce...), make([]byte, 256-len(nonce))...)
		t.Unique = tpm2.NewTPMUPublicID(t.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
	default:
		return t, fmt.Errorf("%w: a nonce of %d bytes", errTemplate, len(nonce))
	}
	return t, nil
}

// parseTemplate reads a template out of NV. It must be of the kind, for a key that only
// decrypts what others send it, and be opened by a policy that we know how to meet.
func (k ekKind) parseTemplate(data []byte) (tpm2.TPMTPublic, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
	if err != nil {
		return k.template, fmt.Errorf("%w: it is malformed", errTemplate)
	}
	a := p.ObjectAttributes
	switch {
	case p.Type != k.template.Type || !a.FixedTPM || !a.Restricted || !a.Decrypt:
		return k.template, fmt.Errorf("%w: it is not that of a %s endorsement key", errTemplate, k.name)
	case !policyKnown(p):
		return k.template, fmt.Errorf("%w: its policy is unknown", errTemplate)
	}
	return *p, nil
}

func policyKnown(p *tpm2.TPMTPublic) bool {
	policy := string(p.AuthPolicy.Buffer)
	return policy != "" && (policy == string(policyA(p.NameAlg)) || policy == string(policyB(p.NameAlg)))
}
