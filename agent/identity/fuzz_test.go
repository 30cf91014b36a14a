package identity

import (
	"encoding/pem"
	"testing"
)

// FuzzParseChain: what is taken has a leaf, and each certificate is followed by its issuer.
func FuzzParseChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(""))
	leaf := selfSigned(f).Certificate[0]
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})
	f.Add(text)
	f.Add(append(text, text...))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := parseChain(text)
		if err != nil {
			return
		}
		if len(chain) == 0 {
			t.Fatal("an empty chain was taken")
		}
		for n := 1; n < len(chain); n++ {
			if string(chain[n-1].RawIssuer) != string(chain[n].RawSubject) {
				t.Errorf("certificate %d did not issue the one before it", n)
			}
		}
	})
}
