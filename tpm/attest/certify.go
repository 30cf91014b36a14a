package attest

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"math/big"
)

const (
	generated  = 0xFF544347 // TPM_GENERATED_VALUE, Part 2, 6.2
	stCertify  = 0x8017     // TPM_ST_ATTEST_CERTIFY, Part 2, 6.9
	maxTPMName = 2 + 64     // TPMU_NAME
)

// certified is what matters of a TPMS_ATTEST: the clock, the counters and the firmware in it say
// nothing that is needed here.
type certified struct{ extra, name []byte }

// readCertify cuts a TPMS_ATTEST of a certification (Part 2, 10.12.8 and 10.12.3).
func readCertify(b []byte) (c certified, err error) {
	r := reader{b: b}
	if magic := r.u32(); !r.bad && magic != generated {
		return c, refuse(reasonCertifyMagic, "the attestation was not made inside a TPM (it begins with %#x)", magic)
	}
	if typ := r.u16(); !r.bad && typ != stCertify {
		return c, refuse(reasonCertifyType, "the attestation is not of a key (type %#x)", typ)
	}
	r.sized(maxTPMName)       // of the AK, with its parents
	c.extra = r.sized(2 + 64) // TPM2B_DATA
	r.take(8 + 4 + 4)         // clock, resetCount, restartCount
	safe := r.take(1)         // TPMI_YES_NO
	r.take(8)                 // firmwareVersion
	c.name = r.sized(maxTPMName)
	r.sized(maxTPMName) // of the key, with its parents
	if !r.done() || safe[0] > 1 {
		return c, refuse(reasonCertifyForm, "the attestation is cut short, or something stands behind it")
	}
	return c, nil
}

// checkCertify says whether b certifies the key of that Name, for that claim.
func checkCertify(b, qualify, key []byte) error {
	c, err := readCertify(b)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(c.extra, qualify) != 1 {
		return refuse(reasonCertifyClaim, "the attestation is for another nonce, device or request")
	}
	if subtle.ConstantTimeCompare(c.name, key) != 1 {
		return refuse(reasonCertifyName, "the attestation is of another key")
	}
	return nil
}

// checkSignature reads a TPMT_SIGNATURE (Part 2, 11.3.4) and verifies it over signed.
func checkSignature(b, signed []byte, ak *ecdsa.PublicKey) error {
	r := reader{b: b}
	alg, hash := r.u16(), r.u16()
	if !r.bad && (alg != algECDSA || hash != algSHA256) {
		return refuse(reasonSignatureScheme, "the attestation is not signed by ECDSA with SHA-256 (%#x, %#x)", alg, hash)
	}
	rb, sb := r.sized(66), r.sized(66)
	if !r.done() {
		return refuse(reasonSignatureForm, "the signature is cut short, or something stands behind it")
	}
	rr, ss, n := new(big.Int).SetBytes(rb), new(big.Int).SetBytes(sb), ak.Params().N
	inRange := func(v *big.Int) bool { return v.Sign() > 0 && v.Cmp(n) < 0 }
	sum := sha256.Sum256(signed)
	if !inRange(rr) || !inRange(ss) || !ecdsa.Verify(ak, sum[:], rr, ss) {
		return refuse(reasonSignature, "the attestation is not signed by the AK")
	}
	return nil
}
