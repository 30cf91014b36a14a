package dial

import (
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"ferrule/agent/session/cause"
)

// sleepyKey signs when the handshake has no time left, as a TPM does that hangs.
type sleepyKey struct {
	crypto.Signer
	over <-chan struct{}
}

func (k sleepyKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	<-k.over
	return k.Signer.Sign(random, digest, opts)
}

// A key that hangs is not the broker's silence.
func TestKeyThatHangs(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		config := w.server.ServerTLS(w.ca)
		config.MaxVersion = version
		l := must[net.Listener](t)(tls.Listen("tcp", "127.0.0.1:0", config))
		over := make(chan struct{})
		served := make(chan struct{})
		go func() {
			defer close(served)
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // in vain: the client gives up
			_ = c.Close()
			close(over)
		}()
		d := w.dialer(short, func(o *Options) {
			o.Observe = &Observer{TLS: func(c *tls.Config) {
				show := c.GetClientCertificate
				c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					certificate, err := show(info)
					if err != nil {
						return nil, err
					}
					slow := *certificate
					slow.PrivateKey = sleepyKey{certificate.PrivateKey.(crypto.Signer), over}
					return &slow, nil
				}
			}}
		})
		expect(t, w.failure(d, "mqtts://"+l.Addr().String()), cause.StageTLS, cause.Key, cause.SideDevice, "failed to sign within 300ms")
		_ = l.Close()
		<-served
	})
}

func TestWatchedKey(t *testing.T) {
	k := &watchedKey{}
	now := time.Now()
	if k.signing(now) {
		t.Error("nothing was signed")
	}
	k.began = now
	if !k.signing(now.Add(time.Second)) || k.signing(now.Add(-time.Second)) {
		t.Error("it signs")
	}
	k.ended = now.Add(2 * time.Second)
	if !k.signing(now.Add(time.Second)) || k.signing(now.Add(3*time.Second)) {
		t.Error("it signed for two seconds")
	}
}
