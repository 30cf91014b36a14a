package dial

import (
	"crypto"
	"crypto/tls"
	"io"
	"sync"
	"time"
)

// watchedKey tells a broker that does not answer from a key that does not sign: crypto/tls has one
// deadline for both.
type watchedKey struct {
	crypto.Signer

	mu           sync.Mutex
	began, ended time.Time // of the last signature
}

// watchKey has the key that config shows watched.
func watchKey(config *tls.Config) *watchedKey {
	k := &watchedKey{}
	show := config.GetClientCertificate
	if show == nil {
		return k
	}
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		certificate, err := show(info)
		if err != nil || certificate == nil {
			return certificate, err
		}
		signer, is := certificate.PrivateKey.(crypto.Signer)
		if !is {
			return certificate, nil
		}
		watched := *certificate
		k.Signer, watched.PrivateKey = signer, k
		return &watched, nil
	}
	return k
}

// Sign implements crypto.Signer.
func (k *watchedKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	k.began, k.ended = time.Now(), time.Time{}
	k.mu.Unlock()
	signature, err := k.Signer.Sign(random, digest, opts)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = time.Now()
	return signature, err
}

// signing says whether a signature was under way at t.
func (k *watchedKey) signing(t time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.began.IsZero() && k.began.Before(t) && (k.ended.IsZero() || k.ended.After(t))
}
