package enroll

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
)

// registrar speaks the protocol of agent/enroll/wire: begin, evidence, finish.
type registrar struct {
	peer    *peer.Client
	request Request
	csr     []byte
	device  string // that csr was made for
	// unattested is why there is no evidence of the TPM, which was not required.
	unattested error
}

func openRegistrar(c Config, r Request) (method, error) {
	if r.Token == "" && r.Present == nil && (r.Attest == nil || r.Device == "") {
		return nil, nothingEntitles(r, "get a token with: ferrule-factory token add")
	}
	o, err := options(c, r, "the registrar", r.Present)
	if err != nil {
		return nil, err
	}
	o.MaxBody = wire.MaxBody
	client, err := peer.New(c.URL, o)
	if err != nil {
		return nil, fmt.Errorf("reading enroll.url: %w", err)
	}
	return &registrar{peer: client, request: r}, nil
}

func (c *registrar) close() { c.peer.Close() }

func (c *registrar) try(ctx context.Context) (Result, error) {
	hostname, _ := os.Hostname()
	var begun wire.Begun
	err := c.post(ctx, wire.PathBegin, wire.Begin{
		Versions: []int{wire.Version}, Token: c.request.Token, Device: c.request.Device, Hint: wire.Hint{Hostname: hostname},
	}, &begun)
	if err != nil {
		return Result{}, fmt.Errorf("beginning the enrollment: %w", err)
	}
	evidence, err := c.evidence(ctx, begun)
	if err != nil {
		return Result{}, err
	}
	var challenged wire.Challenged
	if err := c.post(ctx, wire.PathEvidence, wire.Evidence{Session: begun.Session, Evidence: evidence}, &challenged); err != nil {
		return Result{}, fmt.Errorf("sending the evidence: %w", err)
	}
	answers, err := c.answers(ctx, challenged.Challenges)
	if err != nil {
		return Result{}, err
	}
	var issued wire.Issued
	if err := c.post(ctx, wire.PathFinish, wire.Finish{Session: begun.Session, Answers: answers}, &issued); err != nil {
		return Result{}, fmt.Errorf("finishing the enrollment: %w", err)
	}
	return Result{Device: begun.Device, Chain: []byte(issued.Chain), Unattested: c.unattested}, nil
}

// evidence makes what the registrar requires, and the TPM's word also where it is not required:
// what the registrar once recorded of this TPM is the way back when the TPM was cleared. The
// request is made once for all attempts: it costs a signature in the TPM.
func (c *registrar) evidence(ctx context.Context, begun wire.Begun) ([]wire.Item, error) {
	if err := c.check(begun); err != nil {
		return nil, err
	}
	if c.csr == nil || c.device != begun.Device {
		csr, err := c.request.CSR(begun.Device)
		if err != nil {
			return nil, fmt.Errorf("making the certificate request: %w", err)
		}
		c.csr, c.device = csr, begun.Device
	}
	items := []wire.Item{{Kind: wire.KindCSR, Data: c.csr}}
	if c.request.Attest == nil || len(begun.Nonce) == 0 && !slices.Contains(begun.Require, wire.KindTPM) {
		return items, nil
	}
	proof, err := c.request.Attest.Evidence(ctx, begun.Nonce, begun.Device, c.csr)
	if err != nil && !slices.Contains(begun.Require, wire.KindTPM) {
		c.unattested = err
		return items, nil
	}
	if err != nil {
		return nil, fmt.Errorf("collecting the TPM's evidence: %w", err)
	}
	return append(items, wire.Item{Kind: wire.KindTPM, Data: proof}), nil
}

// check says whether the enrollment that the registrar began can be gone on with.
func (c *registrar) check(begun wire.Begun) error {
	if begun.Version != wire.Version {
		return hint.With(fmt.Errorf("%w: it speaks version %d of the protocol, this device %d", errRegistrar, begun.Version, wire.Version),
			"update the older of the two")
	}
	if !ValidDevice(begun.Device) {
		return hint.With(fmt.Errorf("%w: it gave the device the id %q", errRegistrar, peer.Printable(begun.Device)), deviceHint)
	}
	for _, kind := range begun.Require {
		switch {
		case kind == wire.KindTPM && c.request.Attest == nil:
			return hint.With(fmt.Errorf("%w: it requires evidence of a TPM, and this device's key is in none", errRegistrar),
				"use a key in the TPM (identity.key), or a registrar that takes keys in files")
		case kind != wire.KindCSR && kind != wire.KindTPM:
			return hint.With(fmt.Errorf("%w: it requires evidence of kind %q, which this version cannot give", errRegistrar, peer.Printable(kind)),
				"update the device, or the registrar's configuration")
		}
	}
	return nil
}

func (c *registrar) answers(ctx context.Context, challenges []wire.Item) ([]wire.Item, error) {
	answers := []wire.Item{}
	for _, challenge := range challenges {
		if challenge.Kind != wire.KindCredential || c.request.Attest == nil || len(answers) > 0 {
			return nil, hint.With(fmt.Errorf("%w: it asks for %q, which this version cannot answer", errRegistrar, peer.Printable(challenge.Kind)),
				"update the device, or the registrar's configuration")
		}
		answer, err := c.request.Attest.Answer(ctx, challenge.Data)
		if err != nil {
			return nil, fmt.Errorf("answering the registrar's challenge: %w", err)
		}
		answers = append(answers, wire.Item{Kind: wire.KindActivation, Data: answer})
	}
	return answers, nil
}

var errRegistrar = peer.Fault(ErrRefused, "the registrar refused", nil)

func (c *registrar) post(ctx context.Context, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	got, err := c.peer.Ask(ctx, peer.Question{Path: path, Body: text, Header: map[string]string{"Content-Type": "application/json"}})
	if err != nil {
		return err
	}
	if got.Status != http.StatusOK {
		return c.refusal(got)
	}
	if got.Cut {
		return c.peer.Senseless(fmt.Errorf("it is larger than %d bytes", wire.MaxBody))
	}
	if err := json.Unmarshal(got.Body, answer); err != nil {
		return c.peer.Senseless(err)
	}
	return nil
}

// refusal turns an answer that is no success into an error. The registrar gives its reason in a
// wire.Error; whatever else is in between does not.
func (c *registrar) refusal(got peer.Answer) error {
	reason := &wire.Error{}
	if json.Unmarshal(got.Body, reason) != nil || reason.Text == "" {
		return c.peer.No(got, "")
	}
	reason.Text, reason.Hint, reason.Code = peer.Printable(reason.Text), peer.Printable(reason.Hint), peer.Printable(reason.Code)
	said := fmt.Errorf("%w (%s)", reason, reason.Code)
	after := peer.RetryAfter(got.Header.Get("Retry-After"), got.Header.Get("Date"), c.request.Now())
	switch reason.Code {
	case wire.CodeBackend, wire.CodeInternal:
		return hint.With(&peer.Later{After: after, Text: "the registrar cannot issue now", Cause: said}, orElse(reason.Hint, "look at the registrar's log; ask again later"))
	case wire.CodeSession: // it was restarted in between; the enrollment begins anew
		return hint.With(peer.Fault(ErrUnreachable, "the registrar forgot this enrollment", said), orElse(reason.Hint, "begin it again"))
	}
	if got.Status == http.StatusServiceUnavailable || got.Status == http.StatusTooManyRequests {
		return hint.With(&peer.Later{After: after, Text: "the registrar cannot answer now", Cause: said}, orElse(reason.Hint, "ask again later"))
	}
	return hint.With(peer.Fault(ErrRefused, "the registrar refused", said), orElse(reason.Hint, "the registrar's log says why"))
}

func orElse(text, other string) string {
	if strings.TrimSpace(text) == "" {
		return other
	}
	return text
}
