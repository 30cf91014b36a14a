package e2e

import (
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authorised is a gateway that obeys nobody without a token, and its issuer.
type authorised struct {
	*world
	ferrule       []string
	config, state string
	issuer        string // folder of authorize init
	witness       *process
	agent         *process
	sent          int
}

func newAuthorised(t *testing.T) *authorised {
	t.Helper()
	a := &authorised{world: newWorld(t), ferrule: build(t, "ferrule", native)}
	a.state = filepath.Join(a.dir, "state")
	a.config = a.configure(t, "gw-1", a.startUnit(t))
	a.issuer = a.newIssuer(t, "ops")
	text := strings.Replace(readFile(t, a.config), "[local]",
		fmt.Sprintf("[authorize]\nmode = \"enforce\"\nleeway = \"1s\"\nissuers = [%q]\n[local]", filepath.Join(a.issuer, "issuer.pem")), 1)
	a.file(t, filepath.Base(a.config), text)
	mustRun(t, a.token(t, "gw-1"), with(a.ferrule, "enroll", "--config", a.config, "--token", "-")...)
	a.witness = a.subscriber(t)
	return a
}

func (a *authorised) newIssuer(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(a.dir, name)
	mustRun(t, "", with(a.factory, "authorize", "init", dir)...)
	return dir
}

// run starts the agent where the clock is said to be synchronised, since it cannot enforce
// anything otherwise: timesyncd's stamp lies on a /run of its own.
func (a *authorised) run(t *testing.T) {
	t.Helper()
	a.agent = start(t, "ferrule run", append([]string{need(t, "unshare"), "--map-root-user", "--mount", "sh", "-ec",
		`mount -t tmpfs none /run && mkdir -p /run/systemd/timesync && : >/run/systemd/timesync/synchronized; exec "$@"`, "sh"},
		with(a.ferrule, "run", "--config", a.config)...)...)
	a.witness.waitLine(t, `ferrule/gw-1/status {"online":true`)
}

// grant has ferrule-factory authorise.
func (a *authorised) grant(t *testing.T, issuer string, flags ...string) string {
	t.Helper()
	argv := with(a.factory, "authorize", "--key", filepath.Join(issuer, "issuer.key"))
	return strings.TrimSpace(mustRun(t, "", append(argv, flags...)...))
}

func (a *authorised) own() []string {
	return []string{"--certificate", filepath.Join(a.state, "device.crt")}
}

const toLimit = "write:rs485-1/meter-a/limit=0..50"

// answer is the reply to a command.
type answer struct {
	ID, Code, Receipt string
	OK                bool
}

// write publishes a write to the unit's limit, as anybody who holds the broker can, and returns
// the reply. An empty token is none.
func (a *authorised) write(t *testing.T, value float64, token string) answer {
	t.Helper()
	a.sent++
	return a.writeAs(t, fmt.Sprint("c", a.sent), value, token)
}

func (a *authorised) writeAs(t *testing.T, id string, value float64, token string) answer {
	t.Helper()
	return a.command(t, id, "write", token, map[string]any{"line": "rs485-1", "unit": "meter-a", "point": "limit", "value": value})
}

func (a *authorised) command(t *testing.T, id, name, token string, args map[string]any) (reply answer) {
	t.Helper()
	command := map[string]any{"id": id, "expires": soon()}
	if args != nil {
		command["args"] = args
	}
	if token != "" {
		command["authorization"] = token
	}
	text, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	a.publish(t, "ferrule/gw-1/command/"+name, string(text))
	_, payload, _ := strings.Cut(a.witness.waitLine(t, "ferrule/gw-1/reply/"+id+" "), " ")
	if err := json.Unmarshal([]byte(payload), &reply); err != nil {
		t.Fatalf("reply %q: %v", payload, err)
	}
	return reply
}

// moved is how often the unit was written to.
func (a *authorised) moved() int { return strings.Count(a.unit.output(), "write 100 1") }

// A token of the issuer moves the unit once, with a receipt that openssl verifies. Whoever holds
// the broker and no issuer's key moves nothing, whatever he sends, and each try is in the audit
// log. A token stays used when the agent is killed.
func TestAuthorisedCommands(t *testing.T) {
	t.Parallel()
	a := newAuthorised(t)
	a.run(t)
	var token string
	var reply answer
	waitFor(t, "tokens younger than the store of used ones", func() bool {
		pause(t, time.Second) // the audit log takes only so many refusals
		token = a.grant(t, a.issuer, append(a.own(), "--scope", toLimit)...)
		reply = a.write(t, 12.5, token)
		return reply.Code != "authorization-stale"
	})
	if !reply.OK || a.moved() != 1 {
		t.Fatalf("an authorised write: %+v, moved %d times", reply, a.moved())
	}
	a.verifyReceipt(t, reply.Receipt, token)
	a.witness.waitLine(t, `"limit":12.5`)

	codes := a.rogueBroker(t, token)
	if a.moved() != 1 {
		t.Errorf("the unit was written to %d times", a.moved())
	}
	waitFor(t, "the audit log to reach the disk", func() bool {
		return len(found(t, filepath.Join(a.state, "audit"), []byte("authorization-malformed"))) > 0
	})
	a.agent.kill()
	a.run(t)
	if reply := a.write(t, 12.5, token); reply.OK || reply.Code != "authorization-replayed" {
		t.Errorf("a used token after kill -9: %+v", reply)
	}
	if again := a.writeAs(t, reply.ID, 12.5, token); again != reply {
		t.Errorf("the same command after kill -9: %+v, first %+v", again, reply)
	}
	if a.moved() != 1 {
		t.Errorf("after kill -9 the unit was written to %d times", a.moved())
	}
	// The unit's terminal stays locked by the agent that was killed, as long as socat holds it.
	second := a.grant(t, a.issuer, append(a.own(), "--scope", "restart")...)
	if reply := a.command(t, "r1", "restart", second, nil); !reply.OK || reply.Receipt == "" {
		t.Errorf("another token: %+v", reply)
	}
	a.witness.waitLine(t, `"online":true`)
	if code := a.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
	a.audited(t, codes)
}

// rogueBroker sends what somebody with the broker can make of what he has seen, and a few tokens
// more. It returns the codes that it wants and got.
func (a *authorised) rogueBroker(t *testing.T, used string) (codes []string) {
	t.Helper()
	evil := a.newIssuer(t, "evil")
	thumbprint := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	parts := strings.Split(used, ".")
	fresh := a.grant(t, a.issuer, append(a.own(), "--scope", toLimit)...)
	signed := strings.Split(fresh, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	for _, test := range []struct {
		name, code, token string
		value             float64
	}{
		{"none", "authorization-missing", "", 12.5},
		{"used before", "authorization-replayed", used, 12.5},
		{"of another issuer", "authorization-key", a.grant(t, evil, append(a.own(), "--scope", toLimit)...), 12.5},
		{"claims of one, signature of the other", "authorization-signature", parts[0] + "." + parts[1] + "." + signed[2], 12.5},
		{"alg none", "authorization-algorithm", none + "." + signed[1] + ".", 12.5},
		{"a value that is not granted", "authorization-scope",
			a.grant(t, a.issuer, append(a.own(), "--scope", "write:rs485-1/meter-a/limit=0..10")...), 12.5},
		{"another point", "authorization-scope", a.grant(t, a.issuer, append(a.own(), "--scope", "write:rs485-1/meter-a/five")...), 12.5},
		{"another command", "authorization-scope", a.grant(t, a.issuer, append(a.own(), "--scope", "restart")...), 12.5},
		{"another device", "authorization-audience",
			a.grant(t, a.issuer, "--device", "gw-2", "--thumbprint", thumbprint, "--scope", toLimit), 12.5},
		{"another key", "authorization-binding",
			a.grant(t, a.issuer, "--device", "gw-1", "--thumbprint", thumbprint, "--scope", toLimit), 12.5},
		{"other arguments", "authorization-args",
			a.grant(t, a.issuer, append(a.own(), "--scope", toLimit, "--args", `{"line":"rs485-1","unit":"meter-a","point":"limit","value":1}`)...), 12.5},
		{"no token at all", "authorization-malformed", "let me in", 12.5},
	} {
		if reply := a.write(t, test.value, test.token); reply.OK || reply.Code != test.code || reply.Receipt != "" {
			t.Errorf("%s: %+v; want %s", test.name, reply, test.code)
		}
		codes = append(codes, test.code)
	}
	return codes
}

// verifyReceipt has openssl verify the receipt by the device's certificate.
func (a *authorised) verifyReceipt(t *testing.T, receipt, token string) {
	t.Helper()
	parts := strings.Split(receipt, ".")
	if len(parts) != 3 {
		t.Fatalf("receipt %q", receipt)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 64 {
		t.Fatalf("signature of %d bytes, %v", len(raw), err)
	}
	der, err := asn1.Marshal([]*big.Int{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
	if err != nil {
		t.Fatal(err)
	}
	openssl := need(t, "openssl")
	public := a.file(t, "device.pub", mustRun(t, "", openssl, "x509", "-in", filepath.Join(a.state, "device.crt"), "-pubkey", "-noout"))
	signature, words := a.file(t, "receipt.sig", string(der)), a.file(t, "receipt.txt", parts[0]+"."+parts[1])
	if out := mustRun(t, "", openssl, "dgst", "-sha256", "-verify", public, "-signature", signature, words); !strings.Contains(out, "Verified OK") {
		t.Errorf("openssl says of the receipt: %s", out)
	}
	said, asked := claims(t, receipt), claims(t, token)
	if said["jti"] != asked["jti"] || said["iss"] != "gw-1" || said["point"] != "limit" || said["value"] != 12.5 || said["ok"] != true {
		t.Errorf("receipt %v for token %v", said, asked)
	}
}

// claims are those of a JWS, unverified.
func claims(t *testing.T, token string) (c map[string]any) {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		t.Fatalf("%q: %v", token, err)
	}
	return c
}

// audited checks that each refusal is in the audit log, that the log is whole, and that any byte
// of it that is changed is found.
func (a *authorised) audited(t *testing.T, codes []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.state, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no audit log: %v", err)
	}
	refused := make(map[string]int)
	for _, file := range files {
		for line := range strings.Lines(readFile(t, file)) {
			var l struct {
				Event  string
				Fields map[string]any
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if l.Event == "command.refused" {
				refused[fmt.Sprint(l.Fields["code"])]++
			}
		}
	}
	for _, code := range codes {
		if refused[code]--; refused[code] < 0 {
			t.Errorf("the audit log has no line for one of the refusals with %s", code)
		}
	}
	verify := with(a.ferrule, "audit", "verify", "--config", a.config)
	if out := mustRun(t, "", verify...); !strings.Contains(out, "whole") {
		t.Errorf("audit verify said:\n%s", out)
	}
	last := files[len(files)-1]
	whole := []byte(readFile(t, last))
	const places = 12
	for n := range places {
		at := n * (len(whole) - 1) / (places - 1)
		spoilt := append([]byte(nil), whole...)
		spoilt[at] ^= 1
		if err := os.WriteFile(last, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := run(t, "", verify...)
		if code != 11 || !strings.Contains(stderr, "the audit log is broken at "+filepath.Base(last)) || !strings.Contains(stderr, "hint:") {
			t.Errorf("byte %d of %d changed: exit code %d\n%s%s", at, len(whole), code, stdout, stderr)
		}
	}
	if err := os.WriteFile(last, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "", verify...)
}
