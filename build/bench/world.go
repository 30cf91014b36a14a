package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"ferrule/tpm/tpmtest"
)

// world is what a gateway needs around it: a CA, a broker, and if asked for a registrar and a TPM.
type world struct {
	dir     string
	factory string // the program ferrule-factory
	broker  *process
	address string // of the broker
	roots   *x509.CertPool
	closers []func()
}

// newWorld makes a CA and starts the broker.
func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{roots: x509.NewCertPool()}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	// A unix socket's path holds 107 bytes at most, so the folder's name is short.
	if w.dir, err = os.MkdirTemp("", "fb"); err != nil {
		return w, err
	}
	w.closers = append(w.closers, func() { _ = os.RemoveAll(w.dir) })
	if w.factory, err = w.build(ctx, "ferrule-factory"); err != nil {
		return w, err
	}
	if _, err := output(ctx, "", w.factory, "ca", "init", "--host", "127.0.0.1", w.ca("")); err != nil {
		return w, err
	}
	root, err := os.ReadFile(w.ca("root.crt"))
	if err != nil {
		return w, err
	}
	if !w.roots.AppendCertsFromPEM(root) {
		return w, errors.New("the CA's root is no certificate")
	}
	w.broker, w.address, err = w.mosquitto(ctx, "broker", fmt.Sprintf(
		"cafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\n",
		w.ca("root.crt"), w.ca("broker.crt"), w.ca("broker.key")))
	return w, err
}

func (w *world) close() {
	for i := range w.closers {
		w.closers[len(w.closers)-1-i]()
	}
}

func (w *world) ca(name string) string { return filepath.Join(w.dir, "ca", name) }

// build builds one of our programs as it is released.
func (w *world) build(ctx context.Context, program string) (string, error) {
	path := filepath.Join(w.dir, program)
	_, err := output(ctx, "", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "ferrule/cmd/"+program)
	return path, err
}

// mosquitto starts a broker on a port of its own. It queues without bound, so that it
// never drops what it has acknowledged.
func (w *world) mosquitto(ctx context.Context, name, more string) (*process, string, error) {
	program, err := find("mosquitto")
	if err != nil {
		return nil, "", err
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	config := filepath.Join(w.dir, name+".conf")
	text := fmt.Sprintf("user root\nlistener %s 127.0.0.1\npersistence false\nmax_inflight_messages 0\nmax_queued_messages 0\n%s", port, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	p, err := start(name, program, "-c", config)
	if err != nil {
		return nil, "", err
	}
	w.closers = append(w.closers, p.stop)
	address := net.JoinHostPort("127.0.0.1", port)
	return p, address, p.await(ctx, "its port", func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func find(program string) (string, error) {
	for _, name := range []string{program, filepath.Join("/usr/sbin", program)} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing; run: make deps", program)
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, err
}

// issue makes a key and a certificate below the device CA and returns their files.
func (w *world) issue(name string) (cert, key string, err error) {
	ca, err := tls.LoadX509KeyPair(w.ca("device-ca.crt"), w.ca("device-ca.key"))
	if err != nil {
		return "", "", fmt.Errorf("reading the device CA: %w", err)
	}
	issuer, err := x509.ParseCertificate(ca.Certificate[0])
	if err != nil {
		return "", "", err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, private.Public(), ca.PrivateKey)
	if err != nil {
		return "", "", fmt.Errorf("issuing a certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	chain := append(block("CERTIFICATE", leaf), block("CERTIFICATE", issuer.Raw)...)
	cert, key = filepath.Join(w.dir, name+".crt"), filepath.Join(w.dir, name+".key")
	return cert, key, errors.Join(os.WriteFile(cert, chain, 0o600), os.WriteFile(key, block("PRIVATE KEY", der), 0o600))
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// startTPM starts a TPM in software.
func (w *world) startTPM(ctx context.Context) (*tpmtest.Swtpm, error) {
	dir := filepath.Join(w.dir, "tpm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	tpm, err := tpmtest.StartSwtpm(ctx, dir)
	if err == nil {
		w.closers = append(w.closers, func() { _ = tpm.Stop() })
	}
	return tpm, err
}

// startRegistrar serves enrollment and returns its URL.
func (w *world) startRegistrar(ctx context.Context) (string, error) {
	p, err := start("registrar", w.factory, "registrar", "--ca", w.ca(""), "--listen", "127.0.0.1:0",
		"--trust-ek-on-first-use", "--allow-software-keys")
	if err != nil {
		return "", err
	}
	w.closers = append(w.closers, p.stop)
	address := regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]*`)
	err = p.await(ctx, "its address", func() bool { return address.MatchString(p.output()) })
	return "https://" + address.FindString(p.output()), err
}

// token gets a one-time token for a device.
func (w *world) token(ctx context.Context, device string) (string, error) {
	text, err := output(ctx, "", w.factory, "token", "add", "--device", device, "--json", w.ca(""))
	if err != nil {
		return "", err
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	return answer.Token, nil
}
