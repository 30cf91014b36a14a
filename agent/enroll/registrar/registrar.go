// Package registrar is the factory's or the site's service that checks a device's evidence
// and hands out its certificate. It runs on the host side only. The trap is the power cut
// between issuing and storing: the certificate is durable in the token's file before it is
// answered, and the same token with the same key gets the same certificate again.
package registrar

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ferrule/agent/enroll/wire"
)

// Bounds of the service.
const (
	sessionLife    = 5 * time.Minute
	maxSessions    = 4096
	requestTimeout = 15 * time.Second
	shutdownGrace  = 5 * time.Second
)

// Registrar serves enrollments from a CA. New starts nothing; Serve does.
type Registrar struct {
	ca   *CA
	life time.Duration
	log  *slog.Logger

	mu       sync.Mutex // also makes check and issue of one token a single step
	sessions map[string]*session
}

// session is one enrollment between its first and its last request.
type session struct {
	token   string
	device  string
	csr     *x509.CertificateRequest
	expires time.Time
}

// New returns a registrar whose device certificates live for life.
func New(ca *CA, life time.Duration, log *slog.Logger) *Registrar {
	return &Registrar{ca: ca, life: life, log: log, sessions: make(map[string]*session)}
}

// Listen opens the TLS listener with the CA's certificate for the server "registrar".
func (r *Registrar) Listen(ctx context.Context, address string) (net.Listener, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(r.ca.dir, "registrar.crt"), filepath.Join(r.ca.dir, "registrar.key"))
	if err != nil {
		return nil, fmt.Errorf("reading the registrar's certificate: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return tls.NewListener(listener, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"},
	}), nil
}

// Serve answers enrollments on listener until ctx is done.
func (r *Registrar) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:     r.handler(),
		ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, IdleTimeout: requestTimeout,
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

// serve decodes a request, bounded, and encodes what answer returns.
func serve[Q, A any](r *Registrar, answer func(Q) (A, *wire.Error)) http.HandlerFunc {
	return func(w http.ResponseWriter, request *http.Request) {
		var q Q
		text, err := io.ReadAll(http.MaxBytesReader(w, request.Body, wire.MaxBody))
		if err == nil {
			err = json.Unmarshal(text, &q)
		}
		if err != nil {
			write(w, http.StatusBadRequest, &wire.Error{Code: wire.CodeMalformed, Text: err.Error()})
			return
		}
		a, refused := answer(q)
		if refused != nil {
			r.log.LogAttrs(request.Context(), slog.LevelWarn, "enrollment refused", slog.String("code", refused.Code),
				slog.Any("err", refused.Logged()), slog.String("from", request.RemoteAddr))
			write(w, statusOf(refused.Code), refused)
			return
		}
		write(w, http.StatusOK, a)
	}
}

func statusOf(code string) int {
	switch code {
	case wire.CodeInternal:
		return http.StatusInternalServerError
	case wire.CodeTokenUnknown, wire.CodeTokenExpired, wire.CodeTokenUsed:
		return http.StatusForbidden
	}
	return http.StatusUnprocessableEntity
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the device went away: it will ask again
}

func (r *Registrar) begin(q wire.Begin) (wire.Begun, *wire.Error) {
	if !slices.Contains(q.Versions, wire.Version) {
		return wire.Begun{}, &wire.Error{Code: wire.CodeVersion, Text: fmt.Sprintf("this registrar speaks version %d", wire.Version)}
	}
	grant, err := r.ca.readGrant(q.Token)
	if refused := refuseToken(err); refused != nil {
		return wire.Begun{}, refused
	}
	if end := grant.end(); time.Now().After(end) {
		return wire.Begun{}, &wire.Error{Code: wire.CodeTokenExpired,
			Text: "the token expired on " + end.Format(time.RFC3339), Hint: "get a new one: ferrule-factory token add",
			Cause: fmt.Errorf("the token of %q expired on %s", grant.Device, end.Format(time.RFC3339))}
	}
	id, nonce := make([]byte, 16), make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		return wire.Begun{}, internal(err)
	}
	if _, err := rand.Read(nonce); err != nil {
		return wire.Begun{}, internal(err)
	}
	name := base64.RawURLEncoding.EncodeToString(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.makeRoom() {
		return wire.Begun{}, &wire.Error{Code: wire.CodeInternal, Text: "too many enrollments at once"}
	}
	r.sessions[name] = &session{token: q.Token, device: grant.Device, expires: time.Now().Add(sessionLife)}
	return wire.Begun{Version: wire.Version, Session: name, Nonce: nonce, Device: grant.Device, Require: []string{wire.KindCSR}}, nil
}

func refuseToken(err error) *wire.Error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTokenUnknown):
		return &wire.Error{Code: wire.CodeTokenUnknown, Text: err.Error(), Hint: "get one with: ferrule-factory token add"}
	}
	return internal(err)
}

// internal keeps the registrar's own troubles out of the answer; they are in its log.
func internal(err error) *wire.Error {
	return &wire.Error{Code: wire.CodeInternal, Text: "the registrar has a fault of its own", Hint: "see the registrar's log", Cause: err}
}

// makeRoom forgets sessions that were given up. The caller holds mu.
func (r *Registrar) makeRoom() bool {
	if len(r.sessions) < maxSessions {
		return true
	}
	for name, s := range r.sessions {
		if time.Now().After(s.expires) {
			delete(r.sessions, name)
		}
	}
	return len(r.sessions) < maxSessions
}

// find returns a live session. The caller holds mu.
func (r *Registrar) find(name string) (*session, *wire.Error) {
	s, ok := r.sessions[name]
	if !ok || time.Now().After(s.expires) {
		return nil, &wire.Error{Code: wire.CodeSession, Text: "this enrollment is not open (any more)", Hint: "begin again with the same token"}
	}
	return s, nil
}

func (r *Registrar) evidence(q wire.Evidence) (wire.Challenged, *wire.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, refused := r.find(q.Session)
	if refused != nil {
		return wire.Challenged{}, refused
	}
	// Kinds that were not asked for are ignored: a newer device may send more.
	n := slices.IndexFunc(q.Evidence, func(i wire.Item) bool { return i.Kind == wire.KindCSR })
	if n < 0 {
		return wire.Challenged{}, &wire.Error{Code: wire.CodeEvidence, Text: "the certificate request is missing"}
	}
	csr, err := checkCSR(q.Evidence[n].Data, s.device)
	if err != nil {
		return wire.Challenged{}, &wire.Error{Code: wire.CodeEvidence, Text: err.Error()}
	}
	s.csr = csr
	return wire.Challenged{Challenges: []wire.Item{}}, nil
}

// checkCSR accepts a request only for the device's id, signed by the P-256 or P-384 key that
// it asks a certificate for (proof of possession, RFC 2986, 4.2).
func checkCSR(der []byte, device string) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("checking the certificate request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || (key.Curve != elliptic.P256() && key.Curve != elliptic.P384()) {
		return nil, errors.New("the key is neither P-256 nor P-384")
	}
	if csr.Subject.CommonName != device || len(csr.Subject.Names) != 1 {
		return nil, fmt.Errorf("the certificate request is for %q, and the token for %q", csr.Subject, device)
	}
	return csr, nil
}

func (r *Registrar) finish(q wire.Finish) (wire.Issued, *wire.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, refused := r.find(q.Session)
	if refused != nil {
		return wire.Issued{}, refused
	}
	if s.csr == nil {
		return wire.Issued{}, &wire.Error{Code: wire.CodeEvidence, Text: "no evidence was given yet"}
	}
	grant, err := r.issue(s)
	if refused, ok := errors.AsType[*wire.Error](err); ok {
		return wire.Issued{}, refused
	}
	if err != nil {
		return wire.Issued{}, internal(err)
	}
	// The session stays until it expires: an answer that was lost can be asked for again.
	return wire.Issued{Chain: grant.Chain, Serial: grant.Serial}, nil
}

// issue redeems the session's token: once for a key, and for that key again and again.
func (r *Registrar) issue(s *session) (Grant, error) {
	digest := sha256.Sum256(s.csr.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(digest[:])
	grant, err := r.ca.readGrant(s.token)
	if err != nil {
		return Grant{}, err
	}
	if grant.Used() {
		if grant.PublicKey != key {
			return Grant{}, &wire.Error{Code: wire.CodeTokenUsed, Text: "the token was used already, with another key",
				Hint:  "if this device lost its key, get a new token: ferrule-factory token add",
				Cause: fmt.Errorf("the token of %q was used with key %s, and now comes with key %s", grant.Device, grant.PublicKey, key)}
		}
		return grant, settle(r.ca.fsys, filepath.Join(r.ca.dir, tokenDir))
	}
	chain, leaf, err := r.ca.Device(s.csr, grant.Device, r.life)
	if err != nil {
		return Grant{}, err
	}
	grant.Issued, grant.NotAfter = time.Now().UTC(), leaf.NotAfter
	grant.PublicKey, grant.Serial, grant.Chain = key, leaf.SerialNumber.Text(16), string(chain)
	if err := r.ca.writeGrant(s.token, grant); err != nil {
		return Grant{}, err
	}
	r.log.LogAttrs(context.Background(), slog.LevelInfo, "certificate issued",
		slog.String("device", grant.Device), slog.String("serial", grant.Serial))
	return grant, nil
}
