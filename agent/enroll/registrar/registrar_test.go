package registrar_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service is a registrar that listens, and a client that trusts it.
type service struct {
	ca   *ca.CA
	book *records.Book
	dir  string
	url  string
	http *http.Client
	log  *journal
}

// journal is a log that a test reads while the registrar writes it.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// serve starts a registrar that takes keys in files.
func serve(t testing.TB) *service {
	t.Helper()
	return serveWith(t, registrar.Config{AllowSoftwareKeys: true})
}

func serveWith(t testing.TB, c registrar.Config) *service {
	t.Helper()
	return serveAt(t, filepath.Join(t.TempDir(), "ca"), c)
}

func serveAt(t testing.TB, dir string, c registrar.Config) *service {
	t.Helper()
	s := &service{dir: dir, log: &journal{}}
	s.ca, s.book = newCA(t, s.dir)
	c.CA, c.Records = s.ca, s.book
	if c.Life == 0 {
		c.Life = time.Hour
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := registrar.New(c, slog.New(slog.NewTextHandler(s.log, nil)))
	listener, err := r.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + listener.Addr().String()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(s.dir, "root.crt"))
	if err != nil || !roots.AppendCertsFromPEM(text) {
		t.Fatalf("reading the root: %v", err)
	}
	s.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx, listener) }() // ends with ctx; the cleanup waits
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *service) token(t testing.TB, device string, valid time.Duration) string {
	t.Helper()
	token, err := s.book.AddToken(device, valid)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// post sends one request and decodes a success into answer; the code of a refusal is returned.
func (s *service) post(t testing.TB, path string, body, answer any) (code string) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return s.postText(t, path, text, answer)
}

func (s *service) postText(t testing.TB, path string, text []byte, answer any) (code string) {
	t.Helper()
	response, err := s.http.Post(s.url+path, "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, answer); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return ""
	}
	var refused wire.Error
	if err := json.Unmarshal(body, &refused); err != nil || refused.Code == "" || refused.Text == "" {
		t.Fatalf("a refusal without code or text: %s %s", response.Status, body)
	}
	return refused.Code
}

func (s *service) begin(t testing.TB, token string) (wire.Begun, string) {
	t.Helper()
	var begun wire.Begun
	code := s.post(t, wire.PathBegin, wire.Begin{Versions: []int{wire.Version}, Token: token}, &begun)
	return begun, code
}

// enroll goes the whole way with one request for a certificate.
func (s *service) enroll(t testing.TB, token string, csr []byte) (wire.Issued, string) {
	t.Helper()
	begun, code := s.begin(t, token)
	if code != "" {
		return wire.Issued{}, code
	}
	evidence := wire.Evidence{Session: begun.Session, Evidence: []wire.Item{{Kind: wire.KindCSR, Data: csr}}}
	if code := s.post(t, wire.PathEvidence, evidence, &wire.Challenged{}); code != "" {
		return wire.Issued{}, code
	}
	var issued wire.Issued
	return issued, s.post(t, wire.PathFinish, wire.Finish{Session: begun.Session}, &issued)
}

// One token is good for one key, which gets the same certificate however often it asks.
func TestOneTokenOneKeyOneCertificate(t *testing.T) {
	s := serve(t)
	token, mine := s.token(t, "gw-1", time.Hour), key(t)
	first, code := s.enroll(t, token, request(t, mine, "gw-1").Raw)
	if code != "" {
		t.Fatal(code)
	}
	// ECDSA signs at random: this is another request, for the same key.
	second, code := s.enroll(t, token, request(t, mine, "gw-1").Raw)
	if code != "" || second != first {
		t.Errorf("the second time: %q, another certificate: %v", code, second != first)
	}
	if _, code := s.enroll(t, token, request(t, key(t), "gw-1").Raw); code != wire.CodeTokenUsed {
		t.Errorf("another key: %q, want %q", code, wire.CodeTokenUsed)
	}
	if log := s.log.String(); !strings.Contains(log, "token-used") || !strings.Contains(log, "gw-1") {
		t.Errorf("the log does not tell of the other key:\n%s", log)
	}
	grants, err := s.book.Tokens()
	if err != nil || len(grants) != 1 || grants[0].Serial != first.Serial {
		t.Errorf("the record: %+v, %v", grants, err)
	}
	block, _ := pem.Decode([]byte(first.Chain))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.Subject.CommonName != "gw-1" || !grants[0].NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("the certificate: %v, %v", leaf.Subject, err)
	}
}

// Many at once with one token: all of one key get one certificate, and of many keys one wins.
func TestOneTokenManyAtOnce(t *testing.T) {
	s := serve(t)
	for name, keys := range map[string]int{"one key": 1, "many keys": 8} {
		t.Run(name, func(t *testing.T) {
			token := s.token(t, "gw-1", time.Hour)
			var requests [][]byte
			for range keys {
				requests = append(requests, request(t, key(t), "gw-1").Raw)
			}
			serials := make([]string, 8)
			var wait sync.WaitGroup
			for n := range serials {
				wait.Go(func() {
					issued, _ := s.enroll(t, token, requests[n%keys])
					serials[n] = issued.Serial
				})
			}
			wait.Wait()
			got := map[string]int{}
			for _, serial := range serials {
				got[serial]++
			}
			delete(got, "")
			if len(got) != 1 {
				t.Errorf("%d certificates for one token", len(got))
			}
		})
	}
}

func TestTokens(t *testing.T) {
	s := serve(t)
	expired := s.token(t, "gw-1", time.Nanosecond)
	for name, test := range map[string]struct{ token, code string }{
		"unknown":   {"AAAAAAAAAAAAAAAAAAAAAAAAAAA", wire.CodeTokenUnknown},
		"empty":     {"", wire.CodeNotEntitled},
		"a path":    {"../../root", wire.CodeTokenUnknown},
		"expired":   {expired, wire.CodeTokenExpired},
		"very long": {strings.Repeat("a", 60_000), wire.CodeTokenUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			if _, code := s.begin(t, test.token); code != test.code {
				t.Errorf("code %q, want %q", code, test.code)
			}
		})
	}
	for _, device := range []string{"", ".", "../x", "a b", "a/b", "gw+1", "gw#", strings.Repeat("a", 65), "gw\n"} {
		if _, err := s.book.AddToken(device, time.Hour); err == nil {
			t.Errorf("a token for device %q", device)
		}
	}
}

// Who reads the directory, or the log, cannot redeem a token.
func TestTokenIsStoredNowhere(t *testing.T) {
	s := serve(t)
	token := s.token(t, "gw-1", time.Hour)
	if len(token) < 22 { // base64 of 128 bits
		t.Errorf("token %q is short", token)
	}
	if _, code := s.enroll(t, token, request(t, key(t), "gw-1").Raw); code != "" {
		t.Fatal(code)
	}
	_, _ = s.enroll(t, token, request(t, key(t), "gw-1").Raw)
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(token)) || strings.Contains(path, token) {
			t.Errorf("%s holds the token", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.log.String(), token) {
		t.Error("the log holds the token")
	}
}

// A redeemed token fetches its certificate after its own end. (That it does not do so after the
// certificate's is in TestAskedAgain.)
func TestRedeemedTokenLivesAsLongAsItsCertificate(t *testing.T) {
	s := serve(t)
	token, mine := s.token(t, "gw-1", time.Hour), request(t, key(t), "gw-1").Raw
	if _, code := s.enroll(t, token, mine); code != "" {
		t.Fatal(code)
	}
	endToken(t, s, token)
	if _, code := s.enroll(t, token, mine); code != "" {
		t.Errorf("code %q", code)
	}
}

// endToken sets the end of a token into the past.
func endToken(t *testing.T, s *service, token string) {
	t.Helper()
	digest := sha256.Sum256([]byte(token))
	path := filepath.Join(s.dir, "tokens", hex.EncodeToString(digest[:])+".json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var grant records.Grant
	if err := json.Unmarshal(text, &grant); err != nil {
		t.Fatal(err)
	}
	grant.Expires = time.Now().Add(-time.Hour)
	if text, err = json.Marshal(grant); err != nil {
		t.Fatal(err)
	}
	write(t, path, text)
}

func TestRequestsThatAreRefused(t *testing.T) {
	s := serve(t)
	k := key(t)
	requestOf := func(template x509.CertificateRequest, signer any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	named := func(device string) x509.CertificateRequest {
		return x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := requestOf(named("gw-1"), k)
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	more := named("gw-1")
	more.Subject.Organization = []string{"admins"}
	twice := named("gw-1")
	twice.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "gw-1"}, {Type: []int{2, 5, 4, 3}, Value: "gw-2"}}
	for name, csr := range map[string][]byte{
		"of another device":    requestOf(named("gw-2"), k),
		"of nobody":            requestOf(named(""), k),
		"with more names":      requestOf(more, k),
		"with two devices":     requestOf(twice, k),
		"with an RSA key":      requestOf(named("gw-1"), weak),
		"on another curve":     requestOf(named("gw-1"), keyOn(t, elliptic.P521())),
		"with a forged proof":  forged,
		"with a byte too many": append(bytes.Clone(good), 0),
		"cut short":            good[:len(good)-2],
		"empty":                nil,
		"no request at all":    []byte("please"),
	} {
		t.Run(name, func(t *testing.T) {
			token := s.token(t, "gw-1", time.Hour)
			if _, code := s.enroll(t, token, csr); code != wire.CodeEvidence {
				t.Errorf("code %q, want %q", code, wire.CodeEvidence)
			}
			// A refusal costs nothing: the right request still gets its certificate.
			if _, code := s.enroll(t, token, good); code != "" {
				t.Errorf("afterwards: %q", code)
			}
		})
	}
	t.Run("P-384 is taken", func(t *testing.T) {
		if _, code := s.enroll(t, s.token(t, "gw-1", time.Hour), requestOf(named("gw-1"), keyOn(t, elliptic.P384()))); code != "" {
			t.Error(code)
		}
	})
}

// Steps out of order, twice or of nobody's enrollment get no certificate.
func TestStepsOutOfOrder(t *testing.T) {
	s := serve(t)
	csr := []wire.Item{{Kind: wire.KindCSR, Data: request(t, key(t), "gw-1").Raw}}
	begun, code := s.begin(t, s.token(t, "gw-1", time.Hour))
	if code != "" {
		t.Fatal(code)
	}
	for _, step := range []struct {
		name, path string
		body       any
		code       string
	}{
		{"finish before evidence", wire.PathFinish, wire.Finish{Session: begun.Session}, wire.CodeEvidence},
		{"evidence of no session", wire.PathEvidence, wire.Evidence{Session: "x", Evidence: csr}, wire.CodeSession},
		{"finish of no session", wire.PathFinish, wire.Finish{}, wire.CodeSession},
		{"evidence", wire.PathEvidence, wire.Evidence{Session: begun.Session, Evidence: csr}, ""},
		{"evidence again", wire.PathEvidence, wire.Evidence{Session: begun.Session, Evidence: csr}, wire.CodeSession},
		{"finish", wire.PathFinish, wire.Finish{Session: begun.Session}, ""},
		{"finish again", wire.PathFinish, wire.Finish{Session: begun.Session}, wire.CodeSession},
		{"evidence after all", wire.PathEvidence, wire.Evidence{Session: begun.Session, Evidence: csr}, wire.CodeSession},
		{"another version", wire.PathBegin, wire.Begin{Versions: []int{99}}, wire.CodeVersion},
	} {
		var answer json.RawMessage
		if code := s.post(t, step.path, step.body, &answer); code != step.code {
			t.Errorf("%s: code %q, want %q", step.name, code, step.code)
		}
	}
	if grants, err := s.book.Tokens(); err != nil || len(grants) != 1 {
		t.Errorf("%d records, %v", len(grants), err)
	}
}

// A newer device lists more versions, fields and kinds of evidence; this registrar takes what
// it knows.
func TestANewerDeviceIsServed(t *testing.T) {
	s := serve(t)
	token, k := s.token(t, "gw-1", time.Hour), key(t)
	var begun wire.Begun
	if code := s.postText(t, wire.PathBegin, []byte(`{"versions":[2,1],"token":"`+token+`","hint":{"hostname":"h","model":"m"},"tpm":{"vendor":"x"}}`), &begun); code != "" {
		t.Fatal(code)
	}
	evidence := wire.Evidence{Session: begun.Session, Evidence: []wire.Item{
		{Kind: "tpm-certify", Data: []byte("later")}, {Kind: wire.KindCSR, Data: request(t, k, "gw-1").Raw}, {Kind: "ek", Data: nil},
	}}
	if code := s.post(t, wire.PathEvidence, evidence, &wire.Challenged{}); code != "" {
		t.Fatal(code)
	}
	if code := s.post(t, wire.PathFinish, wire.Finish{Session: begun.Session, Answers: []wire.Item{{Kind: "x"}}}, &wire.Issued{}); code != "" {
		t.Error(code)
	}
}

func TestRubbishAndTooMuch(t *testing.T) {
	s := serve(t)
	for name, body := range map[string][]byte{
		"nothing":      nil,
		"no JSON":      []byte("{"),
		"another type": []byte(`{"versions":"all"}`),
		"too large":    []byte(`{"token":"` + strings.Repeat("a", wire.MaxBody) + `"}`),
	} {
		if code := s.postText(t, wire.PathBegin, body, &wire.Begun{}); code != wire.CodeMalformed {
			t.Errorf("%s: code %q, want %q", name, code, wire.CodeMalformed)
		}
	}
	for _, path := range []string{"/", wire.PathBegin, "/v1/enroll/other"} {
		response, err := s.http.Get(s.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			t.Errorf("GET %s is answered", path)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	s := serve(t)
	config := s.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), config); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 was spoken")
	}
}

// A registrar started anew knows what the one before it issued.
func TestRestart(t *testing.T) {
	s := serve(t)
	token, csr := s.token(t, "gw-1", time.Hour), request(t, key(t), "gw-1").Raw
	first, code := s.enroll(t, token, csr)
	if code != "" {
		t.Fatal(code)
	}
	authority, book := newCA(t, s.dir)
	again := &service{ca: authority, book: book, dir: s.dir, http: s.http, log: &journal{}}
	ctx, cancel := context.WithCancel(context.Background())
	r := registrar.New(registrar.Config{CA: authority, Records: book, Life: time.Hour, AllowSoftwareKeys: true}, slog.New(slog.DiscardHandler))
	listener, err := r.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	again.url = "https://" + listener.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx, listener) }() // ends with ctx, which is waited for
	if second, code := again.enroll(t, token, csr); code != "" || second != first {
		t.Errorf("after a restart: %q, another certificate: %v", code, second != first)
	}
	s.http.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
