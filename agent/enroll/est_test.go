package enroll_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// A subject of more than a common name and an alternative name live on through a renewal at an
// EST server, which refuses any other.
func TestESTKeepsTheSubject(t *testing.T) {
	ca := newCA(t, "site")
	server, c := startEST(t, agenttest.ESTConfig{CA: ca, Users: map[string]string{"u": "p"}})
	key := newKey(t)
	r := asking(key)
	r.Token, r.Device = "u:p", "gw-1"
	r.CSR = func(device string) ([]byte, error) {
		return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: device, Organization: []string{"Böhm & Söhne"}, SerialNumber: "4711"}, DNSNames: []string{"gw-1.example"},
		}, key)
	}
	s := &site{config: c, roots: true}
	result, err := enroll.Enroll(t.Context(), c, r)
	present := s.good(t, result, err, key)

	r = asking(newKey(t))
	r.Purpose, r.Present, r.CSRLike = enroll.Renew, present, nil
	if _, err := enroll.Enroll(t.Context(), c, r); !errors.Is(err, enroll.ErrRefused) || !strings.Contains(err.Error(), "4711") {
		t.Errorf("another subject: %v", err)
	}
	next := newKey(t)
	r = asking(next)
	r.Purpose, r.Present = enroll.Renew, present
	result, err = enroll.Enroll(t.Context(), c, r)
	renewed := s.good(t, result, err, next)
	if !bytes.Equal(renewed.Leaf.RawSubject, present.Leaf.RawSubject) || !slices.Equal(renewed.Leaf.DNSNames, present.Leaf.DNSNames) {
		t.Errorf("renewed for %v %v", renewed.Leaf.Subject, renewed.Leaf.DNSNames)
	}
	if last := server.Requests()[len(server.Requests())-1]; last.Operation != "simplereenroll" || last.Client != "gw-1" || last.User != "" {
		t.Errorf("the server saw %+v", last)
	}
}

// Each way in which an EST server fails, and what the device makes of it.
func TestESTFaults(t *testing.T) {
	for name, test := range map[string]struct {
		fault    func(operation string, n int) agenttest.ESTFault
		after    string
		want     error // nil: it works in the end
		says     string
		requests int // to enroll
	}{
		"pending for a second": {on("simpleenroll", agenttest.ESTPending, 1), "1", nil, "", 2},
		"pending for an hour":  {on("simpleenroll", agenttest.ESTPending, 9), "3600", &enroll.ErrLater{After: time.Hour}, "later", 1},
		"pending for ever":     {on("simpleenroll", agenttest.ESTPending, 9), "99999999999999999999", &enroll.ErrLater{After: 24 * time.Hour}, "later", 1},
		"pending until a date": {on("simpleenroll", agenttest.ESTPending, 9), "Fri, 31 Dec 9999 23:59:59 GMT", &enroll.ErrLater{After: 24 * time.Hour}, "later", 1},
		"pending, no time":     {on("simpleenroll", agenttest.ESTPending, 9), "soon", &enroll.ErrLater{}, "later", 1},
		"refused":              {on("simpleenroll", agenttest.ESTRefuse, 9), "", enroll.ErrRefused, "this gateway is not on ?[31mthe list", 1},
		"broken once":          {on("simpleenroll", agenttest.ESTBroken, 1), "", nil, "", 2},
		"lost once":            {on("simpleenroll", agenttest.ESTLost, 1), "", nil, "", 2},
		"foreign key":          {on("simpleenroll", agenttest.ESTForeignKey, 9), "", enroll.ErrAnswer, "key of the request", 1},
		"redirect":             {on("simpleenroll", agenttest.ESTRedirect, 9), "", enroll.ErrRefused, "302", 1},
		"endless":              {on("simpleenroll", agenttest.ESTEndless, 9), "", enroll.ErrAnswer, "does not end", 1},
		"a page":               {on("simpleenroll", "<html>\x1b[2J", 9), "", enroll.ErrAnswer, "no base64", 1},
		"nothing":              {on("simpleenroll", " ", 9), "", enroll.ErrAnswer, "", 1},
		"cacerts is a page":    {on("cacerts", "<html>", 9), "", enroll.ErrAnswer, "CA's certificates", 0},
		"cacerts endless":      {on("cacerts", agenttest.ESTEndless, 9), "", enroll.ErrAnswer, "does not end", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, c := startEST(t, agenttest.ESTConfig{
				CA: newCA(t, "site"), Users: map[string]string{"u": "p"}, Fault: test.fault, RetryAfter: test.after, OneLine: true,
			})
			c.Device = "gw-1"
			key, signed := newKey(t), 0
			r := asking(key)
			r.Token = "u:p"
			inner := r.CSR
			r.CSR = func(device string) ([]byte, error) { signed++; return inner(device) }
			result, err := enroll.Enroll(t.Context(), c, r)
			if test.want == nil {
				(&site{config: c, roots: true}).good(t, result, err, key)
			} else if later, ok := test.want.(*enroll.ErrLater); ok {
				got, ok := errors.AsType[*enroll.ErrLater](err)
				if !ok || got.After != later.After {
					t.Errorf("%v; want After %v", err, later.After)
				}
			} else if !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || hint.Of(err) == "" || strings.ContainsAny(err.Error(), "\x1b\n")) {
				t.Errorf("it says %q (hint %q)", err, hint.Of(err))
			}
			sameRequest(t, server, test.requests)
			if signed > 1 {
				t.Errorf("%d requests were signed", signed)
			}
		})
	}
}

// sameRequest wants n requests to enroll, all with the same bytes.
func sameRequest(t *testing.T, server *agenttest.EST, n int) {
	t.Helper()
	var bodies [][]byte
	for _, saw := range server.Requests() {
		if saw.Operation == "simpleenroll" {
			bodies = append(bodies, saw.CSR)
		}
	}
	if len(bodies) != n {
		t.Errorf("%d requests; want %d", len(bodies), n)
	}
	for _, body := range bodies {
		if !bytes.Equal(body, bodies[0]) {
			t.Error("the request changed from one attempt to the next")
		}
	}
}

// A server that takes the request and says nothing more is asked again, and again.
func TestESTStalls(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, c := startEST(t, agenttest.ESTConfig{
		CA: newCA(t, "site"), Users: map[string]string{"u": "p"}, Fault: func(operation string, n int) agenttest.ESTFault {
			if operation != "simpleenroll" {
				return ""
			}
			if n == 2 {
				cancel() // enough is seen
			}
			return agenttest.ESTStall
		},
	})
	c.Device, c.Timeout = "gw-1", quantity.Duration(time.Second)
	r := asking(newKey(t))
	r.Token = "u:p"
	_, err := enroll.Enroll(ctx, c, r)
	if !errors.Is(err, enroll.ErrUnreachable) || hint.Of(err) == "" || len(server.Requests()) != 4 {
		t.Errorf("%v after %d requests", err, len(server.Requests()))
	}
}

// on gives the first n requests for operation a fault.
func on(operation string, fault agenttest.ESTFault, n int) func(string, int) agenttest.ESTFault {
	return func(o string, i int) agenttest.ESTFault {
		if o == operation && i <= n {
			return fault
		}
		return ""
	}
}

// An EST server does not renew what it did not issue, nor what has expired.
func TestESTRefusesCertificates(t *testing.T) {
	ca, factory := newCA(t, "site"), newCA(t, "factory")
	_, c := startEST(t, agenttest.ESTConfig{CA: ca, Factory: factory, Users: map[string]string{"u": "p"}})
	old := agenttest.Leaf{CommonName: "gw-1", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	expired, err := ca.Issue(old)
	if err != nil {
		t.Fatal(err)
	}
	for name, present := range map[string]*agenttest.Issued{
		"a stranger's":  deviceOf(t, newCA(t, "stranger"), "gw-1"),
		"the factory's": deviceOf(t, factory, "gw-1"),
		"expired":       expired,
	} {
		r := asking(newKey(t))
		r.Purpose, r.Present = enroll.Renew, &present.TLS
		if _, err := enroll.Enroll(t.Context(), c, r); !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v\n\t(%s)", name, err, hint.Of(err))
		}
	}
	for name, token := range map[string]string{"wrong": "u:guess", "no password": "guess", "no user": ":guess"} {
		r := asking(newKey(t))
		r.Token, r.Device = token, "gw-1"
		_, err := enroll.Enroll(t.Context(), c, r)
		if !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" || strings.Contains(fmt.Sprint(err), "guess") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
