package authorize_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/internal/hint"
)

func TestGoodTokens(t *testing.T) {
	w := newWorld(t)
	w.also = []string{"staged"}
	kid := thumbprint(t, w.ec)
	for name, token := range map[string]string{
		"ES256":          w.token(),
		"EdDSA":          w.sign(w.ed, nil, w.claims()),
		"kid":            w.sign(w.ec, map[string]any{"kid": kid, "typ": "at+jwt"}, w.claims()),
		"long type":      w.sign(w.ec, map[string]any{"typ": "application/JWT"}, w.claims()),
		"audience list":  w.token(set("aud", []string{device})),
		"nbf":            w.token(set("nbf", noon.Unix())),
		"fraction":       w.token(set("iat", float64(noon.Unix())+0.25)),
		"any issuer":     w.token(set("iss", "https://other.example")),
		"more claims":    w.token(set("sub", "alice"), set("client_id", 7)),
		"15 minutes":     w.token(set("exp", noon.Add(15*time.Minute).Unix())),
		"just expired":   w.token(set("iat", noon.Add(-6*time.Minute).Unix()), set("exp", noon.Add(-time.Minute).Unix())),
		"a bit early":    w.token(set("iat", noon.Add(time.Minute).Unix())),
		"args":           w.token(set("args", authorize.Digest(operation().Args))),
		"staged key":     w.token(set("cnf", map[string]any{"jkt": "staged"})),
		"several grants": w.token(scope("restart openid write:a/b/c write:*/meter-a/limit")),
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := w.use(token, operation()); err != nil || d.Grant == "" || d.Token == "" {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// Each forgery is good but for one thing, and is refused for that.
func TestForgeries(t *testing.T) {
	w := newWorld(t)
	head, ed := `{"alg":"EdDSA","typ":"JWT"}`, w.claims(set("iss", "ops"))
	good := w.token()
	parts := strings.Split(good, ".")
	kid := thumbprint(t, w.ec)
	for name, c := range map[string]struct{ code, token string }{
		"no token":                        {authorize.CodeMissing, ""},
		"alg none":                        {authorize.CodeAlgorithm, b64(`{"alg":"none"}`) + "." + parts[1] + "."},
		"alg none, signature kept":        {authorize.CodeAlgorithm, b64(`{"alg":"none"}`) + "." + parts[1] + "." + parts[2]},
		"HS256, public key as the secret": {authorize.CodeAlgorithm, w.hs256()},
		"ES384":                           {authorize.CodeAlgorithm, b64(`{"alg":"ES384"}`) + "." + parts[1] + "." + parts[2]},
		"EdDSA header, P-256 signature":   {authorize.CodeSignature, b64(`{"alg":"EdDSA"}`) + "." + parts[1] + "." + parts[2]},
		"kid of a key of the other kind":  {authorize.CodeAlgorithm, w.sign(w.ed, map[string]any{"kid": kid}, w.claims())},
		"stranger's key":                  {authorize.CodeSignature, w.sign(p256(t), nil, w.claims())},
		"stranger's key, our kid":         {authorize.CodeSignature, w.sign(p256(t), map[string]any{"kid": kid}, w.claims())},
		"the device's own key":            {authorize.CodeSignature, w.sign(w.key, nil, w.claims())},
		"kid of nobody":                   {authorize.CodeKey, w.sign(w.ec, map[string]any{"kid": "other"}, w.claims())},
		"kid empty":                       {authorize.CodeKey, w.sign(w.ec, map[string]any{"kid": ""}, w.claims())},
		"kid a path":                      {authorize.CodeKey, w.sign(w.ec, map[string]any{"kid": "../../dev/null"}, w.claims())},
		"kid SQL and ANSI":                {authorize.CodeKey, w.sign(w.ec, map[string]any{"kid": "' OR 1=1--\n\x1b[2J"}, w.claims())},
		"jwk in the header":               {authorize.CodeHeader, w.sign(p256(t), map[string]any{"jwk": map[string]any{"kty": "EC"}}, w.claims())},
		"jku in the header":               {authorize.CodeHeader, w.sign(w.ec, map[string]any{"jku": "https://evil.example/keys"}, w.claims())},
		"x5u in the header":               {authorize.CodeHeader, w.sign(w.ec, map[string]any{"x5u": "https://evil.example/crt"}, w.claims())},
		"x5c in the header":               {authorize.CodeHeader, w.sign(p256(t), map[string]any{"x5c": []string{"AAEC"}}, w.claims())},
		"crit":                            {authorize.CodeHeader, w.sign(w.ec, map[string]any{"crit": []string{"exp"}, "exp": 1}, w.claims())},
		"payload not encoded":             {authorize.CodeHeader, w.sign(w.ec, map[string]any{"b64": false}, w.claims())},
		"a receipt":                       {authorize.CodeHeader, w.sign(w.ec, map[string]any{"typ": authorize.ReceiptType}, w.claims())},
		"payload of another token":        {authorize.CodeSignature, parts[0] + "." + strings.Split(w.token(scope("restart")), ".")[1] + "." + parts[2]},
		"one bit of the signature":        {authorize.CodeSignature, parts[0] + "." + parts[1] + "." + flip(parts[2])},
		"signature cut short":             {authorize.CodeMalformed, good[:len(good)-2]},
		"signature of zeros":              {authorize.CodeSignature, parts[0] + "." + parts[1] + "." + strings.Repeat("A", 86)},
		"signature in DER":                {authorize.CodeMalformed, parts[0] + "." + parts[1] + "." + strings.Repeat("A", 95)},
		"something behind it":             {authorize.CodeMalformed, good + "\n"},
		"a fourth part":                   {authorize.CodeMalformed, good + ".AAAA"},
		"padding":                         {authorize.CodeMalformed, good + "=="},
		"oversized":                       {authorize.CodeMalformed, w.token(set("pad", strings.Repeat("x", authorize.MaxToken)))},
		"aud twice":                       {authorize.CodeMalformed, w.raw(head, strings.Replace(text(t, ed), `"aud"`, `"aud":"gw-18","aud"`, 1))},
		"aud and Aud":                     {authorize.CodeMalformed, w.raw(head, strings.Replace(text(t, ed), `"aud"`, `"Aud":"gw-18","aud"`, 1))},
		"alg twice":                       {authorize.CodeMalformed, w.raw(`{"alg":"none","alg":"EdDSA"}`, text(t, ed))},
		"two objects":                     {authorize.CodeMalformed, w.raw(head, text(t, ed)+"{}")},
		"not UTF-8":                       {authorize.CodeMalformed, w.raw(head, strings.Replace(text(t, ed), "ops", "op\xff", 1))},
		"no iss":                          {authorize.CodeClaims, w.token(without("iss"))},
		"iss empty":                       {authorize.CodeClaims, w.token(set("iss", ""))},
		"iss of another, by ed's key":     {authorize.CodeIssuer, w.sign(w.ed, nil, w.claims(set("iss", "someone")))},
		"aud of another device":           {authorize.CodeAudience, w.token(set("aud", "gw-18"))},
		"aud in other case":               {authorize.CodeAudience, w.token(set("aud", "GW-17"))},
		"aud with a NUL":                  {authorize.CodeAudience, w.token(set("aud", device+"\x00"))},
		"aud of two devices":              {authorize.CodeClaims, w.token(set("aud", []string{device, "gw-18"}))},
		"aud of none":                     {authorize.CodeClaims, w.token(set("aud", []string{}))},
		"no aud":                          {authorize.CodeClaims, w.token(without("aud"))},
		"AUD only":                        {authorize.CodeClaims, w.token(without("aud"), set("AUD", device))},
		"expired":                         {authorize.CodeExpired, w.token(set("iat", noon.Add(-10*time.Minute).Unix()), set("exp", noon.Add(-61*time.Second).Unix()))},
		"no exp":                          {authorize.CodeClaims, w.token(without("exp"))},
		"exp a string":                    {authorize.CodeClaims, w.token(set("exp", "1800000000"))},
		"exp null":                        {authorize.CodeClaims, w.token(set("exp", nil))},
		"exp beyond time":                 {authorize.CodeClaims, w.token(set("exp", 1e300))},
		"exp before iat":                  {authorize.CodeLife, w.token(set("exp", noon.Add(-time.Second).Unix()))},
		"lives 15 minutes and a second":   {authorize.CodeLife, w.token(set("exp", noon.Add(15*time.Minute+time.Second).Unix()))},
		"lives a year":                    {authorize.CodeLife, w.token(set("exp", noon.AddDate(1, 0, 0).Unix()))},
		"no iat":                          {authorize.CodeClaims, w.token(without("iat"))},
		"iat in the future":               {authorize.CodeEarly, w.token(set("iat", noon.Add(61*time.Second).Unix()))},
		"nbf in the future":               {authorize.CodeEarly, w.token(set("nbf", noon.Add(61*time.Second).Unix()))},
		"no jti":                          {authorize.CodeClaims, w.token(without("jti"))},
		"jti empty":                       {authorize.CodeClaims, w.token(set("jti", ""))},
		"jti a number":                    {authorize.CodeClaims, w.token(set("jti", 7))},
		"jti long":                        {authorize.CodeClaims, w.token(set("jti", strings.Repeat("x", 257)))},
		"no cnf":                          {authorize.CodeClaims, w.token(without("cnf"))},
		"cnf of another kind":             {authorize.CodeClaims, w.token(set("cnf", map[string]any{"x5t#S256": w.thumbprint}))},
		"cnf of two kinds":                {authorize.CodeClaims, w.token(set("cnf", map[string]any{"jkt": w.thumbprint, "jwk": 1}))},
		"key of another device":           {authorize.CodeBinding, w.token(set("cnf", map[string]any{"jkt": thumbprint(t, p256(t))}))},
		"no scope":                        {authorize.CodeClaims, w.token(without("scope"))},
		"scope empty":                     {authorize.CodeScopeSyntax, w.token(scope(""))},
		"scope a list":                    {authorize.CodeClaims, w.token(set("scope", []string{"restart"}))},
		"scope of other words":            {authorize.CodeScope, w.token(scope("openid profile"))},
		"scope of another command":        {authorize.CodeScope, w.token(scope("restart config update"))},
		"another line":                    {authorize.CodeScope, w.token(scope("write:rs485-2/meter-a/limit"))},
		"another unit":                    {authorize.CodeScope, w.token(scope("write:rs485-1/meter-b/limit"))},
		"another point":                   {authorize.CodeScope, w.token(scope("write:rs485-1/meter-a/limit2"))},
		"value above the range":           {authorize.CodeScope, w.token(scope("write:rs485-1/meter-a/limit=0..12.4999999999999999999"))},
		"value below the range":           {authorize.CodeScope, w.token(scope("write:rs485-1/meter-a/limit=12.5000000000000000001.."))},
		"write without a target":          {authorize.CodeScopeSyntax, w.token(scope("write"))},
		"a wildcard inside a name":        {authorize.CodeScopeSyntax, w.token(scope("write:rs485-*/meter-a/limit"))},
		"one bad grant among good":        {authorize.CodeScopeSyntax, w.token(scope("write:*/*/* write:a/b"))},
		"other arguments":                 {authorize.CodeArgs, w.token(set("args", authorize.Digest([]byte(`{"value":12.5}`))))},
		"args empty":                      {authorize.CodeClaims, w.token(set("args", ""))},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			w.bad(c.code, c.token, operation())
		})
	}
	w.good(good, operation()) // what all of them were made of, and what none of them spent
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// flip changes one bit of a signature, where base64 has no stray bits.
func flip(signature string) string {
	raw, _ := base64.RawURLEncoding.DecodeString(signature)
	raw[17] ^= 4
	return base64.RawURLEncoding.EncodeToString(raw)
}

// hs256 takes the public key for a shared secret, in each form that libraries were fooled with.
func (w *world) hs256() string {
	der, err := x509.MarshalPKIXPublicKey(w.ec.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	signed := b64(`{"alg":"HS256","typ":"JWT"}`) + "." + b64(text(w.t, w.claims()))
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestReplay(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	d := w.good(token, operation())
	w.bad(authorize.CodeReplayed, token, operation())
	w.start()
	w.bad(authorize.CodeReplayed, token, operation())
	w.bad(authorize.CodeReplayed, w.twin(token), operation())
	w.bad(authorize.CodeReplayed, w.token(set("jti", d.Token), set("iss", "other")), operation()) // the same key's jti
	w.good(w.sign(w.ed, nil, w.claims(set("jti", d.Token))), operation())                         // another key's
	// Two checks before one act: only one is spent.
	token = w.token()
	first, err1 := w.Check(t.Context(), token, operation())
	second, err2 := w.Check(t.Context(), token, operation())
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := w.Spend(t.Context(), &first, operation()); err != nil {
		t.Fatal(err)
	}
	if err := w.Spend(t.Context(), &second, operation()); codeOf(err) != authorize.CodeReplayed {
		t.Errorf("the second: %v", err)
	}
}

// twin is the other signature that every ECDSA signature comes with: (r, n-s).
func (w *world) twin(token string) string {
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		w.t.Fatal(err)
	}
	s := new(big.Int).SetBytes(raw[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(raw[32:])
	return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(raw)
}

// The clock: not believed, nothing is judged; set back, nothing used comes to life.
func TestClock(t *testing.T) {
	w := newWorld(t)
	w.clock.untrusted = true
	w.bad(authorize.CodeClock, w.token(), operation())
	w.clock.untrusted = false
	token := w.token()
	w.good(token, operation())
	w.clock.now = noon.Add(10 * time.Minute)
	w.bad(authorize.CodeExpired, token, operation())
	w.start()
	w.clock.now = noon
	w.bad(authorize.CodeReplayed, token, operation())
}

// In audit mode the command goes on, and what would have been refused is told.
func TestAuditMode(t *testing.T) {
	w := newWorld(t)
	w.config.Commands = map[string]authorize.Mode{"write": authorize.Audit, "restart": authorize.Off}
	w.start()
	token := w.token()
	if d := w.good(token, operation()); d.Refused != nil || d.Mode != authorize.Audit {
		t.Errorf("%+v", d)
	}
	for code, token := range map[string]string{authorize.CodeReplayed: token, authorize.CodeMissing: "", authorize.CodeScope: w.token(scope("restart"))} {
		d := w.good(token, operation())
		if d.Refused == nil || d.Refused.Code != code || d.Token != "" {
			t.Errorf("want %s, got %+v", code, d.Refused)
		}
	}
	if d := w.good("", authorize.Operation{Command: "restart"}); d.Mode != authorize.Off {
		t.Errorf("%+v", d)
	}
	w.bad(authorize.CodeMissing, "", authorize.Operation{Command: "config"})
	s := w.Status()
	if s.Accepted != 1 || s.Refused[authorize.CodeReplayed] != 1 || s.Waiting != 1 || len(s.Issuers) != 2 {
		t.Errorf("%+v", s)
	}
}

func TestOffTouchesNothing(t *testing.T) {
	w := newWorld(t)
	w.config = authorize.Default()
	w.config.Issuers = []string{"not-there.pem"}
	w.start()
	d := w.good("rubbish", operation())
	receipt, err := w.Receipt(t.Context(), d, operation(), authorize.Outcome{OK: true})
	if receipt != "" || err != nil || w.key.count.Load() != 0 {
		t.Errorf("%q, %v", receipt, err)
	}
}

// An issuer may be pinned by its certificate, which then says when it may be used and for what.
func TestIssuerCertificates(t *testing.T) {
	w := newWorld(t)
	certificate := func(usage x509.KeyUsage, from, to time.Time) []byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ops"}, NotBefore: from, NotAfter: to, KeyUsage: usage}
		der, err := x509.CreateCertificate(rand.Reader, c, c, w.ec.Public(), w.ec)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	w.config.Issuers = []string{"ec.crt"}
	w.file("ec.crt", certificate(x509.KeyUsageDigitalSignature, noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0)))
	w.start()
	w.good(w.token(), operation())
	w.file("ec.crt", certificate(x509.KeyUsageDigitalSignature, noon.AddDate(-1, 0, 0), noon.Add(-time.Second)))
	w.start()
	w.bad(authorize.CodeIssuer, w.token(), operation())
	w.file("ec.crt", certificate(x509.KeyUsageCertSign, noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0)))
	if _, err := w.open(); err == nil {
		t.Error("a CA's certificate is taken for an issuer's")
	}
}

func TestIssuerFilesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(w.ec)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(p384.Public())
	if err != nil {
		t.Fatal(err)
	}
	good, err := x509.MarshalPKIXPublicKey(w.ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: good})
	w.config.Issuers = []string{"x.pem"}
	for name, file := range map[string][]byte{
		"empty": nil, "no PEM": []byte("hello"), "P-384": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"rubbish": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}), "half": append(slices.Clone(public), "-----BEGIN PUBLIC"...),
		"nine keys": slices.Repeat(public, 9), "huge": make([]byte, 1<<20),
	} {
		w.file("x.pem", file)
		if _, err := w.open(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	w.file("x.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	if _, err := w.open(); err == nil || !strings.Contains(hint.Of(err), "must not be on a device") {
		t.Errorf("a private key: %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := authorize.Default().Validate(); err != nil {
		t.Error(err)
	}
	enforce := authorize.Default()
	enforce.Mode = authorize.Enforce
	if err := enforce.Validate(); err == nil || hint.Of(err) == "" && !strings.Contains(err.Error(), "issuers") {
		t.Errorf("enforce without issuers: %v", err)
	}
	enforce.Issuers = []string{"x.pem"}
	if err := enforce.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(c *authorize.Config){
		"mode":     func(c *authorize.Config) { c.Mode = "on" },
		"no mode":  func(c *authorize.Config) { c.Mode = "" },
		"command":  func(c *authorize.Config) { c.Commands = map[string]authorize.Mode{"wirte": authorize.Off} },
		"its mode": func(c *authorize.Config) { c.Commands = map[string]authorize.Mode{"write": "yes"} },
		"by command": func(c *authorize.Config) {
			c.Commands, c.Issuers, c.Mode = map[string]authorize.Mode{"write": authorize.Enforce}, nil, authorize.Off
		},
		"leeway":        func(c *authorize.Config) { c.Leeway = 1 << 60 },
		"many issuers":  func(c *authorize.Config) { c.Issuers = slices.Repeat([]string{"x"}, 9) },
		"empty issuers": func(c *authorize.Config) { c.Issuers = []string{""} },
	} {
		c := enforce
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v passes", name, c)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	w := newWorld(b)
	op := operation()
	for name, token := range map[string]string{"ES256": w.token(), "EdDSA": w.sign(w.ed, nil, w.claims())} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Check(b.Context(), token, op); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("forged", func(b *testing.B) {
		token := w.sign(p256(b), nil, w.claims())
		for b.Loop() {
			_, _ = w.Check(b.Context(), token, op)
		}
	})
}

// FuzzCheck: no text authorises anything but what an issuer signed.
func FuzzCheck(f *testing.F) {
	w := newWorld(f)
	f.Add(w.token())
	f.Add(w.sign(w.ed, map[string]any{"kid": thumbprint(f, w.ed)}, w.claims()))
	good := w.token()
	f.Fuzz(func(t *testing.T, token string) {
		_, err := w.Check(t.Context(), token, operation())
		if err == nil && token != good && !strings.HasPrefix(token, "eyJ") {
			t.Fatalf("%q passes", token)
		}
		if err != nil && codeOf(err) == "" {
			t.Fatalf("no code: %v", err)
		}
	})
}
