package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// people is the CA of those who come to a gateway's listener.
type people struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newPeople(t *testing.T, name string) *people {
	t.Helper()
	p := &people{key: newP256(t)}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	p.certificate = p.sign(t, template, template, &p.key.PublicKey)
	return p
}

func newP256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (p *people) sign(t *testing.T, template, parent *x509.Certificate, public *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, p.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue makes the certificate of somebody with this OU.
func (p *people) issue(t *testing.T, ou string, until time.Time) tls.Certificate {
	t.Helper()
	key := newP256(t)
	leaf := p.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "anna", OrganizationalUnit: []string{ou}}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, p.certificate, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// save writes a certificate and its key below dir, and returns the names.
func save(t *testing.T, dir, name string, c tls.Certificate) (certificate, key string) {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// listening is a site whose agent listens to its people.
type listening struct {
	*site
	people  *people
	address string
}

// newListening starts an agent with a listener; local is more of its section, and under what runs
// the agent.
func newListening(t *testing.T, local string, under ...string) *listening {
	t.Helper()
	return newPeople(t, "people").gateway(t, local, under...)
}

// gateway is newListening for people who are there already.
func (p *people) gateway(t *testing.T, local string, under ...string) *listening {
	t.Helper()
	g := &listening{site: newSite(t, quietLine), people: p}
	g.address = net.JoinHostPort("127.0.0.1", freePort(t))
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.people.certificate.Raw})
	roots := g.file(t, "people.pem", string(text))
	g.edit(t, "[local]\n", fmt.Sprintf("[local]\nlisten = %q\nroots = %q\n%s\n", g.address, roots, local))
	g.section(t, `[[local.role]]
role = "viewer"
ou = "viewers"
[[local.role]]
role = "operator"
ou = "operators"
[[local.role]]
role = "admin"
ou = "admins"`)
	g.agent = start(t, "ferrule run", append(under, with(g.ferrule, "run", "--config", g.config)...)...)
	waitFor(t, "the listener", func() bool { return field(g.status(t), "local", "listener", "address") == g.address })
	return g
}

// client is one that opens a connection for each request.
func (g *listening) client(shown ...tls.Certificate) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, Certificates: shown},
		DisableKeepAlives: true, ForceAttemptHTTP2: true,
	}}
}

func (g *listening) get(c *http.Client, path string) (int, string, error) {
	response, err := c.Get("https://" + g.address + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// metric is one of the agent's own figures.
func (g *listening) metric(t *testing.T, c *http.Client, name string) int {
	t.Helper()
	_, text, err := g.get(c, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	t.Fatalf("no metric %s in:\n%s", name, text)
	return 0
}

// openFiles lists the descriptors that a process has open.
func openFiles(t *testing.T, pid int) (all []int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

// cpu is the time that a process has spent, user and system (proc(5), fields 14 and 15, in
// hundredths of a second on every Linux).
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	text := readFile(t, fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	total := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return time.Duration(total) * 10 * time.Millisecond
}

// memory is a figure of /proc/PID/status in KiB: VmRSS now, VmHWM at its highest.
func memory(t *testing.T, pid int, key string) int {
	t.Helper()
	scanner := bufio.NewScanner(strings.NewReader(readFile(t, fmt.Sprintf("/proc/%d/status", pid))))
	for scanner.Scan() {
		if rest, ok := strings.CutPrefix(scanner.Text(), key+":"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s of process %d", key, pid)
	return 0
}
