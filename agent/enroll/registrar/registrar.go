// Package registrar is the factory's or the site's service that checks a device's evidence
// and hands out its certificate, over TLS or by files. It runs on the host side only. The trap is
// the power cut between issuing and storing: a certificate is durable in the records before it is
// answered, and the same request gets the same certificate again.
package registrar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"encoding/json"

	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
	"ferrule/tpm/attest"
)

// Bounds of the service.
const (
	readTimeout   = 15 * time.Second
	writeTimeout  = 30 * time.Second // a device gives up sooner
	issueTimeout  = 60 * time.Second // the back end may take longer than the device waits: it asks again
	shutdownGrace = 5 * time.Second
	retryAfter    = 5 * time.Second
)

// serverName is the registrar among the servers of its CA.
const serverName = "registrar"

// Config says what a registrar asks for and what it gives. The zero values are the strict ones.
type Config struct {
	// CA serves TLS, and issues unless Issuer is another. Records is the registrar's memory.
	CA      *ca.CA
	Records *records.Book
	// Issuer makes the certificates, which have to lead to Roots. nil: CA, and its root.
	Issuer Issuer
	Roots  *x509.CertPool
	// Life is how long certificates of CA live; Factory makes them factory certificates (IDevID).
	Life    time.Duration
	Factory bool
	// TPMs says whose TPMs are believed.
	TPMs attest.Verifier
	// AllowSoftwareKeys lets devices in that have no TPM; they are recorded as weak.
	AllowSoftwareKeys bool
	// FactoryRoots are the authorities whose factory certificates entitle to a first certificate;
	// nil: none.
	FactoryRoots *x509.CertPool
	// NoReturn refuses a device that shows nothing but the TPM it was enrolled with.
	NoReturn bool
}

// Registrar serves enrollments. New starts nothing; Serve does.
type Registrar struct {
	Config
	known    *x509.CertPool // where the chains of certificates on record lead: to Roots, or to the CA of a time before
	check    func(attest.Evidence, attest.Claim, func(ek string) bool) (proof, error)
	sessions *sessions
	log      *slog.Logger
}

// New returns a registrar.
func New(c Config, log *slog.Logger) *Registrar {
	if c.Issuer == nil {
		c.Issuer = &local{ca: c.CA}
	}
	if c.Roots == nil {
		c.Roots = x509.NewCertPool()
		c.Roots.AddCert(c.CA.Root())
	}
	if c.Life == 0 {
		c.Life = ca.DeviceLife
	}
	r := &Registrar{Config: c, known: c.Roots.Clone(), sessions: newSessions(), log: log}
	r.known.AddCert(c.CA.Root())
	r.check = r.verify
	return r
}

// Listen opens the TLS listener with the CA's certificate for the server "registrar". A client
// may show a certificate: TLS only proves that it has the key, entitle judges the rest. There
// are no tickets, so that nobody is who he was a day ago.
func (r *Registrar) Listen(ctx context.Context, address string) (net.Listener, error) {
	certificate, err := r.CA.Serving(serverName)
	if err != nil {
		return nil, fmt.Errorf("reading the registrar's certificate: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return tls.NewListener(limit(listener), &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}, // one request at a time on each connection
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
	}), nil
}

// Serve answers enrollments on listener until ctx is done.
func (r *Registrar) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:     r.handler(),
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: readTimeout,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	var stopping sync.WaitGroup
	stopping.Add(1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		defer stopping.Done()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(listener)
	if stop() {
		stopping.Done() // ctx is not done: the function above never runs
	}
	stopping.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving enrollments: %w", err)
}

func (r *Registrar) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathBegin, serve(r, r.begin))
	mux.HandleFunc("POST "+wire.PathEvidence, serve(r, r.evidence))
	mux.HandleFunc("POST "+wire.PathFinish, serve(r, r.finish))
	return mux
}

// caller is who sends a request.
type caller struct {
	source string              // an address; of IPv6 its network
	chain  []*x509.Certificate // what it showed in TLS, whose key it has; the rest is not judged yet
}

func callerOf(request *http.Request) caller {
	c := caller{source: sourceOf(request.RemoteAddr)}
	if request.TLS != nil {
		c.chain = request.TLS.PeerCertificates
	}
	return c
}

// serve decodes a request, bounded, and encodes what answer returns.
func serve[Q, A any](r *Registrar, answer func(context.Context, caller, Q) (A, *wire.Error)) http.HandlerFunc {
	return func(w http.ResponseWriter, request *http.Request) {
		var q Q
		text, err := io.ReadAll(http.MaxBytesReader(w, request.Body, wire.MaxBody))
		if err == nil {
			err = json.Unmarshal(text, &q)
		}
		if err != nil {
			write(w, http.StatusBadRequest, &wire.Error{Code: wire.CodeMalformed, Text: "the request cannot be read: " + err.Error()})
			return
		}
		// A device that goes away does not stop what was begun for it: it will ask again.
		a, refused := answer(context.WithoutCancel(request.Context()), callerOf(request), q)
		if refused != nil {
			r.log.LogAttrs(request.Context(), slog.LevelWarn, "enrollment refused", slog.String("code", refused.Code),
				slog.Any("err", refused.Logged()), slog.String("hint", Repair(refused)), slog.String("from", request.RemoteAddr))
			refuse(w, refused)
			return
		}
		write(w, http.StatusOK, a)
	}
}

// seeLog is the hint for a device whose fault is told to the factory alone.
const seeLog = "see the registrar's log"

// Repair is what whoever reads the registrar's log can do about a refusal; "" for nothing.
func Repair(refused *wire.Error) string {
	if repair := hint.Of(refused.Cause); repair != "" || refused.Hint == seeLog {
		return repair
	}
	return refused.Hint
}

func refuse(w http.ResponseWriter, refused *wire.Error) {
	status := statusOf(refused.Code)
	if status >= http.StatusInternalServerError {
		after := retryAfter
		if later, ok := errors.AsType[*peer.Later](refused.Cause); ok && later.After > 0 {
			after = later.After
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
	}
	write(w, status, refused)
}

func statusOf(code string) int {
	switch code {
	case wire.CodeInternal:
		return http.StatusInternalServerError
	case wire.CodeBackend:
		return http.StatusServiceUnavailable
	case wire.CodeTokenUnknown, wire.CodeTokenExpired, wire.CodeTokenUsed, wire.CodeNotEntitled, wire.CodeEKTaken:
		return http.StatusForbidden
	}
	return http.StatusUnprocessableEntity
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the device went away: it will ask again
}

// internal keeps the registrar's own troubles out of the answer; they are in its log.
func internal(err error) *wire.Error {
	return &wire.Error{Code: wire.CodeInternal, Text: "the registrar has a fault of its own", Hint: seeLog, Cause: err}
}
