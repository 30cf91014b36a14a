package main

import (
	"strings"
	"testing"

	"ferrule/agent/agenttest"
)

// goodVerdict is a demo in which everything held: a cut, a kill, a stop.
func goodVerdict() verdict {
	session := agenttest.Connection{CommonName: device, TLSVersion: "TLS 1.3"}
	return verdict{
		total: tally(goodRun()), connections: []agenttest.Connection{session, session, session}, cuts: 1,
		lives: []life{
			{counters: counters{full: 1, resumed: 1, signs: 1}, ended: "kill -9"},
			{counters: counters{full: 1, signs: 1}, ended: "SIGTERM"},
		},
		enrollment: counters{signs: 2},
		key:        keyFacts{ref: "tpm2:file=device.key", vendor: "IBM", inTPM: true},
	}
}

func failed(v verdict) (texts []string) {
	for _, c := range v.checks() {
		if !c.held {
			texts = append(texts, c.text)
		}
	}
	return texts
}

func TestVerdictOfAGoodRun(t *testing.T) {
	if f := failed(goodVerdict()); f != nil {
		t.Errorf("failed: %q", f)
	}
}

// Each of these must cost exactly one check, the one that contains want.
func TestVerdictFinds(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(v *verdict)
		want  string
	}{
		"a loss":                    {func(v *verdict) { v.total.units[0].lost++ }, "1 lost"},
		"nothing received":          {func(v *verdict) { v.total = total{} }, "0 lost"},
		"a gap":                     {func(v *verdict) { v.total.gaps++ }, "1 sequence numbers missing"},
		"a poll twice":              {func(v *verdict) { v.total.twice++ }, "1 polls under two numbers"},
		"disorder":                  {func(v *verdict) { v.total.units[1].disorder++ }, "1 entries came after"},
		"a wrong value":             {func(v *verdict) { v.total.units[1].wrong++ }, "1 values differ"},
		"an unknown unit":           {func(v *verdict) { v.total.strangers++ }, "1 values differ"},
		"an unanswered poll":        {func(v *verdict) { v.total.unreadable++ }, "1 polls could not be read"},
		"TLS 1.2":                   {func(v *verdict) { v.connections[1].TLSVersion = "TLS 1.2" }, "TLS 1.2 and TLS 1.3"},
		"another certificate":       {func(v *verdict) { v.connections[2].CommonName = "x" }, "CN=gw-demo and x"},
		"no session":                {func(v *verdict) { v.connections = nil }, "0 sessions"},
		"a session not resumed":     {func(v *verdict) { v.cuts++ }, "1 resumed for 2 cuts"},
		"a signature too many":      {func(v *verdict) { v.lives[0].signs++ }, "3 TPM Sign"},
		"a signature too few":       {func(v *verdict) { v.lives[1].signs-- }, "1 TPM Sign"},
		"signatures of wrong lives": {func(v *verdict) { v.lives[0].signs--; v.lives[1].signs++ }, "2 TPM Sign"},
		"a key outside the TPM":     {func(v *verdict) { v.key.inTPM = false }, "key tpm2:file=device.key"},
	} {
		t.Run(name, func(t *testing.T) {
			v := goodVerdict()
			c.plant(&v)
			if f := failed(v); len(f) != 1 || !strings.Contains(f[0], c.want) {
				t.Errorf("failed: %q, want one with %q", f, c.want)
			}
		})
	}
}

// Without a TPM on the machine the key may be a file, and the page says so.
func TestVerdictWithoutTPM(t *testing.T) {
	v := goodVerdict()
	v.weak, v.key = true, keyFacts{ref: "file:device.pem"}
	v.lives[0].signs, v.lives[1].signs = 0, 0
	if f := failed(v); f != nil {
		t.Errorf("failed: %q", f)
	}
	if last := v.checks()[len(v.checks())-1].text; !strings.Contains(last, "WEAK") {
		t.Errorf("the last line is %q; it should say WEAK", last)
	}
}
