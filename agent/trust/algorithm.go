package trust

import (
	"crypto"
	"crypto/x509"
)

// algorithms are the AlgorithmIdentifiers (whole DER) of signatures that are believed: no MD5
// and no SHA-1. Those of RSA-PSS have their parameters as RFC 4055 writes them, the salt as long
// as the hash.
var algorithms = map[string]x509.SignatureAlgorithm{
	"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02":             x509.ECDSAWithSHA256,
	"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03":             x509.ECDSAWithSHA384,
	"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04":             x509.ECDSAWithSHA512,
	"\x30\x05\x06\x03\x2b\x65\x70":                                 x509.PureEd25519,
	"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00": x509.SHA256WithRSA,
	"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00": x509.SHA384WithRSA,
	"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00": x509.SHA512WithRSA,
	pss("\x01", "\x20"): x509.SHA256WithRSAPSS,
	pss("\x02", "\x30"): x509.SHA384WithRSAPSS,
	pss("\x03", "\x40"): x509.SHA512WithRSAPSS,
}

// pss is the AlgorithmIdentifier of RSA-PSS with the SHA-2 hash of this number in NIST's arc.
func pss(hash, salt string) string {
	const sha2 = "\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02"
	return "\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34" +
		"\xa0\x0f" + sha2 + hash + "\x05\x00" +
		"\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08" + sha2 + hash + "\x05\x00" +
		"\xa2\x03\x02\x01" + salt
}

// hashes are the OIDs (content) of the hashes of a CertID. SHA-1 is what responders use to name
// a certificate (RFC 5019, 2.1.1); nothing hangs on it, the answer is signed.
var hashes = map[string]crypto.Hash{
	"\x2b\x0e\x03\x02\x1a":                 crypto.SHA1,
	"\x60\x86\x48\x01\x65\x03\x04\x02\x01": crypto.SHA256,
	"\x60\x86\x48\x01\x65\x03\x04\x02\x02": crypto.SHA384,
	"\x60\x86\x48\x01\x65\x03\x04\x02\x03": crypto.SHA512,
}
