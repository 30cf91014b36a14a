package agenttest

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/smallstep/pkcs7"
)

// ESTFault is what an EST server does wrong with one request.
type ESTFault string

// The faults. Any other text that is not empty is sent as the body of an answer with status 200.
const (
	ESTPending    ESTFault = "pending"     // 202 with Retry-After
	ESTRefuse     ESTFault = "refuse"      // 403 with a reason
	ESTBroken     ESTFault = "broken"      // 503
	ESTStall      ESTFault = "stall"       // no answer until the client goes away
	ESTForeignKey ESTFault = "foreign-key" // a certificate for another key
	ESTRedirect   ESTFault = "redirect"    // 302 to a place without TLS
	ESTEndless    ESTFault = "endless"     // a body without end
	ESTLost       ESTFault = "lost"        // the certificate is issued, and the connection breaks
)

// ESTConfig is what an EST server is made of; only CA is needed.
type ESTConfig struct {
	// CA issues, and its devices may renew their certificates.
	CA *CA
	// Factory is the CA whose devices may enroll; nil: none.
	Factory *CA
	// Users may enroll with these passwords.
	Users map[string]string
	// Label is part of the path; "" for none.
	Label string
	// Life is that of the certificates; 24 h unless set.
	Life time.Duration
	// RetryAfter is the header of a pending answer; "1" unless set.
	RetryAfter string
	// OneLine leaves out the line ends in base64.
	OneLine bool
	// Fault is asked before a request is served: operation is cacerts, simpleenroll or
	// simplereenroll, n counts the requests for it from 1. nil, or "": no fault.
	Fault func(operation string, n int) ESTFault
}

// ESTRequest is one request as the server saw it.
type ESTRequest struct {
	Operation string
	Client    string // common name of the certificate shown; "" for none
	User      string // of HTTP basic authentication
	CSR       []byte // DER
}

// EST is a running EST server (RFC 7030), good enough to enroll and renew at.
type EST struct {
	config   ESTConfig
	server   http.Server
	listener net.Listener
	served   chan struct{}

	mu       sync.Mutex
	requests []ESTRequest
	issued   []*x509.Certificate
}

// StartEST starts an EST server on a free port of this machine.
func StartEST(c ESTConfig) (*EST, error) {
	c.Life, c.RetryAfter = cmp.Or(c.Life, 24*time.Hour), cmp.Or(c.RetryAfter, "1")
	certificate, err := c.CA.Server()
	if err != nil {
		return nil, err
	}
	clients := c.CA.Pool()
	if c.Factory != nil {
		clients.AddCert(c.Factory.root)
	}
	e := &EST{config: c, served: make(chan struct{})}
	e.listener, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{certificate.TLS}, ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven,
	})
	if err != nil {
		return nil, err
	}
	e.server.Handler = http.HandlerFunc(e.serve)
	e.server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	go func() {
		defer close(e.served)
		_ = e.server.Serve(e.listener)
	}()
	return e, nil
}

// URL is where it answers, with the label.
func (e *EST) URL() string {
	url := "https://" + e.listener.Addr().String()
	if e.config.Label != "" {
		url += "/.well-known/est/" + e.config.Label
	}
	return url
}

// Close ends it and every connection.
func (e *EST) Close() {
	_ = e.server.Close()
	<-e.served
}

// Requests are those it saw, cacerts included.
func (e *EST) Requests() []ESTRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]ESTRequest(nil), e.requests...)
}

// Issued are the certificates it made, lost ones included.
func (e *EST) Issued() []*x509.Certificate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*x509.Certificate(nil), e.issued...)
}

func (e *EST) serve(w http.ResponseWriter, r *http.Request) {
	operation := path.Base(r.URL.Path)
	if r.URL.Path != path.Join("/.well-known/est", e.config.Label, operation) {
		http.NotFound(w, r)
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	saw, request := ESTRequest{Operation: operation}, (*x509.CertificateRequest)(nil)
	if operation != "cacerts" {
		der, err := base64.StdEncoding.DecodeString(string(bytes.ReplaceAll(body, []byte("\r\n"), nil)))
		if err == nil {
			request, err = x509.ParseCertificateRequest(der)
		}
		if err == nil {
			err = request.CheckSignature()
		}
		if err != nil {
			http.Error(w, "the request cannot be read", http.StatusBadRequest)
			return
		}
		saw.CSR = der
	}
	saw.User, _, _ = r.BasicAuth()
	if len(r.TLS.PeerCertificates) > 0 {
		saw.Client = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	if fault := e.note(saw); fault == "" || !e.fail(w, r, fault, request) {
		e.answer(w, r, operation, request)
	}
}

func (e *EST) note(saw ESTRequest) ESTFault {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests = append(e.requests, saw)
	if e.config.Fault == nil {
		return ""
	}
	n := 0
	for _, r := range e.requests {
		if r.Operation == saw.Operation {
			n++
		}
	}
	return e.config.Fault(saw.Operation, n)
}

// fail does what fault says; false says that it goes on.
func (e *EST) fail(w http.ResponseWriter, r *http.Request, fault ESTFault, request *x509.CertificateRequest) bool {
	switch fault {
	case ESTPending:
		w.Header().Set("Retry-After", e.config.RetryAfter)
		w.WriteHeader(http.StatusAccepted)
	case ESTRefuse:
		http.Error(w, "this gateway is\nnot on \x1b[31mthe list", http.StatusForbidden)
	case ESTBroken:
		w.WriteHeader(http.StatusServiceUnavailable)
	case ESTStall:
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // else the client may see an answer while it goes
	case ESTRedirect:
		http.Redirect(w, r, "http://"+e.listener.Addr().String(), http.StatusFound)
	case ESTEndless:
		for line := bytes.Repeat([]byte("MIIB"), 1024); ; {
			if _, err := w.Write(line); err != nil {
				return true
			}
		}
	case ESTForeignKey:
		other, err := e.config.CA.Device(request.Subject.CommonName)
		if err != nil {
			panic(err)
		}
		e.send(w, other.Leaf)
	case ESTLost:
		if _, err := e.issue(request); err != nil {
			panic(err)
		}
		panic(http.ErrAbortHandler)
	default:
		_, _ = io.WriteString(w, string(fault))
	}
	return true
}

func (e *EST) answer(w http.ResponseWriter, r *http.Request, operation string, request *x509.CertificateRequest) {
	var err error
	switch operation {
	case "cacerts":
		e.send(w, e.config.CA.issuing, e.config.CA.root)
		return
	case "simpleenroll":
		err = e.mayEnroll(r)
	case "simplereenroll":
		err = e.mayRenew(r, request)
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		w.Header().Set("WWW-Authenticate", `Basic realm="est"`)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	certificate, err := e.issue(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e.send(w, certificate)
}

func (e *EST) mayEnroll(r *http.Request) error {
	if len(r.TLS.PeerCertificates) > 0 {
		return nil
	}
	user, password, _ := r.BasicAuth()
	if want, known := e.config.Users[user]; !known || want != password {
		return errors.New("user and password are wrong")
	}
	return nil
}

// mayRenew wants the names unchanged (RFC 7030, 4.2.2).
func (e *EST) mayRenew(r *http.Request, request *x509.CertificateRequest) error {
	if len(r.TLS.PeerCertificates) == 0 {
		return errors.New("the certificate to be renewed was not shown")
	}
	old := r.TLS.PeerCertificates[0]
	if old.CheckSignatureFrom(e.config.CA.issuing) != nil {
		return errors.New("the certificate to be renewed is of another authority")
	}
	names := func(dns []string, c ...string) string { return strings.Join(append(dns, c...), " ") }
	if old.Subject.String() != request.Subject.String() || names(old.DNSNames) != names(request.DNSNames) {
		return errors.New("the subject of the request is not that of the certificate")
	}
	return nil
}

func (e *EST) issue(request *x509.CertificateRequest) (*x509.Certificate, error) {
	certificate, err := sign(&x509.Certificate{
		RawSubject: request.RawSubject, DNSNames: request.DNSNames,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(e.config.Life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, e.config.CA.issuing, request.PublicKey, e.config.CA.issuingKey)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.issued = append(e.issued, certificate)
	return certificate, nil
}

// send writes certificates as RFC 7030, 4.1.3 has them.
func (e *EST) send(w http.ResponseWriter, certificates ...*x509.Certificate) {
	var der []byte
	for _, c := range certificates {
		der = append(der, c.Raw...)
	}
	message, err := pkcs7.DegenerateCertificate(der)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	text := base64.StdEncoding.EncodeToString(message)
	for i := 64; !e.config.OneLine && i < len(text); i += 66 {
		text = text[:i] + "\r\n" + text[i:]
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Header().Set("Content-Transfer-Encoding", "base64")
	_, _ = io.WriteString(w, text+"\r\n")
}
