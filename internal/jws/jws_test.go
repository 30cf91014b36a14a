package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
)

func unbase(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ecKey(t testing.TB, x, y string) *ecdsa.PublicKey {
	t.Helper()
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, unbase(t, x)...), unbase(t, y)...))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// RFC 7515, A.3.
const vectorES256 = "eyJhbGciOiJFUzI1NiJ9" +
	".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ" +
	".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"

func keyES256(t testing.TB) *ecdsa.PublicKey {
	return ecKey(t, "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0")
}

func TestVectorES256(t *testing.T) {
	token, err := Parse(vectorES256)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Iss string
		Exp int64
	}
	if err := token.Claims(&claims); !errors.Is(err, ErrUnverified) {
		t.Errorf("claims before the signature: %v", err)
	}
	if err := token.Verify(keyES256(t)); err != nil {
		t.Fatal(err)
	}
	if err := token.Claims(&claims); err != nil || claims.Iss != "joe" || claims.Exp != 1300819380 {
		t.Errorf("%+v, %v", claims, err)
	}
	// A key that fails after one that fitted leaves nothing verified.
	if err := token.Verify(ecKey(t, "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM")); !errors.Is(err, ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	if err := token.Claims(&claims); !errors.Is(err, ErrUnverified) {
		t.Errorf("claims after a wrong key: %v", err)
	}
}

// RFC 8037, A.1, A.3 and A.4. The payload there is no JSON object, which Parse asks for.
func TestVectorEdDSA(t *testing.T) {
	const signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
	const signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
	key := ed25519.NewKeyFromSeed(unbase(t, "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
	made, err := sign(key, EdDSA, []byte(signed))
	if err != nil || base64.RawURLEncoding.EncodeToString(made) != signature {
		t.Errorf("signed %x, %v", made, err)
	}
	token := &Token{header: Header{Alg: EdDSA}, signed: signed, signature: unbase(t, signature)}
	if err := token.Verify(key.Public()); err != nil {
		t.Error(err)
	}
	if got, err := Thumbprint(key.Public()); err != nil || got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("thumbprint %q, %v", got, err)
	}
}

// RFC 7638, 3.1, and the key of RFC 7517, A.1.
func TestVectorThumbprint(t *testing.T) {
	n := new(big.Int).SetBytes(unbase(t, "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"))
	for want, key := range map[string]crypto.PublicKey{
		"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs": &rsa.PublicKey{N: n, E: 65537},
		"cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s": ecKey(t, "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"),
	} {
		if got, err := Thumbprint(key); err != nil || got != want {
			t.Errorf("%T: thumbprint %q, %v", key, got, err)
		}
	}
	for _, key := range []crypto.PublicKey{nil, ed25519.PublicKey{1}, "x", &ecdsa.PublicKey{}} {
		if _, err := Thumbprint(key); err == nil {
			t.Errorf("%T has a thumbprint", key)
		}
	}
}

func TestSignAndVerify(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[string]crypto.Signer{ES256: p256, EdDSA: ed} {
		for range 300 { // short r and s come once in 128
			text, err := Sign(key, map[string]any{"typ": "JWT", "alg": "none", "x5c": []string{"AAEC", "/+8="}}, map[string]any{"a": 1})
			if err != nil {
				t.Fatal(err)
			}
			token, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if h := token.Header(); h.Alg != alg || h.Typ != "JWT" || len(h.X5C) != 2 || h.X5C[1][0] != 0xff {
				t.Fatalf("%+v", h)
			}
			if err := token.Verify(key.Public()); err != nil {
				t.Fatal(err)
			}
		}
	}
	token, err := Parse(vectorES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Verify(ed.Public()); !errors.Is(err, ErrKey) {
		t.Errorf("ES256 with an Ed25519 key: %v", err)
	}
	if err := token.Verify((*ecdsa.PublicKey)(nil)); !errors.Is(err, ErrKey) {
		t.Errorf("no key: %v", err)
	}
}

// der is a signer that answers what it is told to.
type der struct {
	crypto.Signer
	signature []byte
}

func (d der) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return d.signature, nil }

// A TPM or a helper process that answers rubbish makes an error, not a token.
func TestSignersThatLie(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	pair := func(r, s *big.Int) []byte {
		b, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := big.NewInt(1)
	for name, signature := range map[string][]byte{
		"nothing": nil, "raw": make([]byte, 64), "zero": pair(new(big.Int), one), "negative": pair(big.NewInt(-1), one),
		"too large": pair(one, n), "huge": pair(one, new(big.Int).Lsh(one, 4096)), "more behind": append(pair(one, one), 0),
	} {
		if token, err := Sign(der{key, signature}, nil, map[string]any{}); err == nil {
			t.Errorf("%s: %s", name, token)
		}
	}
	if _, err := Sign(key, nil, strings.Repeat("x", MaxSize)); err == nil {
		t.Error("a token that is too long")
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(p384, nil, map[string]any{}); !errors.Is(err, ErrKey) {
		t.Errorf("P-384: %v", err)
	}
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func TestParseRefuses(t *testing.T) {
	signature := strings.Split(vectorES256, ".")[2]
	token := func(header, payload string) string { return b64(header) + "." + b64(payload) + "." + signature }
	const head = `{"alg":"ES256"}`
	if _, err := Parse(token(head, `{}`)); err != nil {
		t.Fatalf("the control: %v", err)
	}
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"empty":                  {"", ErrMalformed},
		"two parts":              {"a.b", ErrMalformed},
		"four parts":             {vectorES256 + ".x", ErrMalformed},
		"unsigned":               {b64(`{"alg":"none"}`) + "." + b64(`{}`) + ".", ErrAlgorithm},
		"none with a signature":  {token(`{"alg":"none"}`, `{}`), ErrAlgorithm},
		"None":                   {token(`{"alg":"None"}`, `{}`), ErrAlgorithm},
		"HS256":                  {token(`{"alg":"HS256"}`, `{}`), ErrAlgorithm},
		"es256":                  {token(`{"alg":"es256"}`, `{}`), ErrAlgorithm},
		"no alg":                 {token(`{}`, `{}`), ErrAlgorithm},
		"Alg":                    {token(`{"Alg":"ES256"}`, `{}`), ErrAlgorithm},
		"alg a number":           {token(`{"alg":1}`, `{}`), ErrMalformed},
		"alg null":               {token(`{"alg":null}`, `{}`), ErrMalformed},
		"crit":                   {token(`{"alg":"ES256","crit":["exp"]}`, `{}`), ErrCritical},
		"b64":                    {token(`{"alg":"ES256","b64":false}`, `{}`), ErrCritical},
		"alg twice":              {token(`{"alg":"ES256","alg":"none"}`, `{}`), ErrMalformed},
		"alg twice, escaped":     {token(`{"alg":"ES256","\u0061lg":"none"}`, `{}`), ErrMalformed},
		"alg and ALG":            {token(`{"alg":"ES256","ALG":"none"}`, `{}`), ErrMalformed},
		"kid with a Kelvin sign": {token("{\"alg\":\"ES256\",\"kid\":\"a\",\"\u212aid\":\"b\"}", `{}`), ErrMalformed},
		"claim twice":            {token(head, `{"aud":"a","x":1,"aud":"b"}`), ErrMalformed},
		"claim twice, deeper":    {token(head, `{"cnf":[{"jkt":"a","jkt":"b"}]}`), ErrMalformed},
		"surrogates twice":       {token(head, `{"\ud800":1,"\udbff":1}`), ErrMalformed},
		"not UTF-8":              {token(head, "{\"a\":\"\xff\"}"), ErrMalformed},
		"payload null":           {token(head, `null`), ErrMalformed},
		"payload a list":         {token(head, `[]`), ErrMalformed},
		"two payloads":           {token(head, `{}{}`), ErrMalformed},
		"payload cut":            {token(head, `{"a":`), ErrMalformed},
		"deep":                   {token(head, `{"a":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`}`), ErrMalformed},
		"padding":                {vectorES256 + "==", ErrMalformed},
		"line end":               {vectorES256 + "\n", ErrMalformed},
		"line end inside":        {vectorES256[:30] + "\r\n" + vectorES256[30:], ErrMalformed},
		"space":                  {" " + vectorES256, ErrMalformed},
		"stray bits":             {vectorES256[:len(vectorES256)-1] + "R", ErrMalformed},
		"standard alphabet":      {strings.ReplaceAll(vectorES256, "-", "+"), ErrMalformed},
		"DER signature":          {b64(head) + "." + b64(`{}`) + "." + b64(string(make([]byte, 70))), ErrMalformed},
		"short signature":        {b64(head) + "." + b64(`{}`) + "." + b64(string(make([]byte, 63))), ErrMalformed},
		"long":                   {token(head, `{"a":"`+strings.Repeat("x", MaxSize)+`"}`), ErrMalformed},
		"x5c not base64":         {token(`{"alg":"ES256","x5c":["*"]}`, `{}`), ErrMalformed},
	} {
		if _, err := Parse(c.token); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The scalars of a signature are those of the curve and nothing else.
func TestVerifyRefuses(t *testing.T) {
	parts := strings.Split(vectorES256, ".")
	signature := unbase(t, parts[2])
	n := elliptic.P256().Params().N
	with := func(change func(s []byte)) string {
		other := append([]byte{}, signature...)
		change(other)
		return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(other)
	}
	for name, token := range map[string]string{
		"r zero":     with(func(s []byte) { clear(s[:32]) }),
		"s zero":     with(func(s []byte) { clear(s[32:]) }),
		"all zero":   with(func(s []byte) { clear(s) }),
		"r is n":     with(func(s []byte) { n.FillBytes(s[:32]) }),
		"s is n":     with(func(s []byte) { n.FillBytes(s[32:]) }),
		"one bit":    with(func(s []byte) { s[40] ^= 1 }),
		"exchanged":  with(func(s []byte) { copy(s, append(append([]byte{}, s[32:]...), s[:32]...)) }),
		"no payload": parts[0] + "." + b64("{}") + "." + parts[2],
	} {
		parsed, err := Parse(token)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := parsed.Verify(keyES256(t)); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The twin of a signature is as good as it: callers must not take the bytes for the token's name.
	twin := with(func(s []byte) { new(big.Int).Sub(n, new(big.Int).SetBytes(s[32:])).FillBytes(s[32:]) })
	parsed, err := Parse(twin)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Verify(keyES256(t)); err != nil {
		t.Errorf("the twin: %v", err)
	}
}

// FuzzParse: what Parse takes is unambiguous, and means the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add(vectorES256)
	f.Add("eyJhbGciOiJFZERTQSIsImtpZCI6IngiLCJ4NWMiOlsiQUFFQyJdfQ.e30." + strings.Repeat("A", 86))
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err != nil {
			return
		}
		if alg := token.Header().Alg; alg != ES256 && alg != EdDSA {
			t.Fatalf("alg %q", alg)
		}
		parts := strings.Split(text, ".")
		for _, part := range parts {
			raw := unbase(t, part)
			if base64.RawURLEncoding.EncodeToString(raw) != part {
				t.Fatalf("%q has another spelling", part)
			}
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(unbase(t, parts[1]), &members); err != nil || members == nil {
			t.Fatalf("the payload is no object: %v", err)
		}
		_ = token.Verify(keyES256(t))
	})
}

func BenchmarkVerify(b *testing.B) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for alg, key := range map[string]crypto.Signer{ES256: p256, EdDSA: ed} {
		text, err := Sign(key, nil, map[string]any{"aud": "gw-17"})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(alg, func(b *testing.B) {
			for b.Loop() {
				token, err := Parse(text)
				if err != nil {
					b.Fatal(err)
				}
				if err := token.Verify(key.Public()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
