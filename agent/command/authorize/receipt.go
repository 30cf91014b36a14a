package authorize

import (
	"context"
	"errors"
	"fmt"

	"ferrule/internal/jws"
)

// ReceiptType is the "typ" of a receipt: no receipt is ever taken for an authorisation, nor the reverse.
const ReceiptType = "ferrule-receipt+jwt"

// Outcome is what came of a command that was executed.
type Outcome struct {
	OK   bool
	Code string // of the error, where not OK
	// Result are the bytes of the reply's "result" as they are sent; nil where there is none.
	Result []byte
}

// receipt is what the device's key signs: which token moved what, and what came of it. Names are those of RFC 7519
// where it has them.
type receipt struct {
	Issuer   string `json:"iss"`           // the device
	Audience string `json:"aud,omitempty"` // the token's issuer
	Token    string `json:"jti,omitempty"` // the token's jti: the receipt answers it
	IssuedAt int64  `json:"iat"`
	Clock    bool   `json:"clock_trusted"`
	Mode     Mode   `json:"mode"`
	Refused  string `json:"would_refuse,omitempty"` // the code, in mode audit
	ID       string `json:"id"`                     // the command's
	Command  string `json:"command"`
	Grant    string `json:"grant,omitempty"`
	Line     string `json:"line,omitempty"`
	Unit     string `json:"unit,omitempty"`
	Point    string `json:"point,omitempty"`
	Value    any    `json:"value,omitempty"`
	Args     string `json:"args"` // Digest
	OK       bool   `json:"ok"`
	Code     string `json:"code,omitempty"`
	Result   string `json:"result"` // Digest
}

// Receipt signs what was done, with the device's key and one Sign of its TPM. It is "" where nothing is authorised
// (Off). An error never undoes the act: the caller sends its reply without a receipt and says why.
func (a *Authority) Receipt(ctx context.Context, d Decision, op Operation, out Outcome) (string, error) {
	if d.Mode == Off {
		return "", nil
	}
	if !d.spent && d.Refused == nil {
		return "", fmt.Errorf("signing the receipt: %w", errors.New("the token was not spent"))
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("signing the receipt: %w", err)
	}
	key := a.o.Key()
	if key == nil {
		return "", errors.New("signing the receipt: the device has no key")
	}
	kid, err := jws.Thumbprint(key.Public())
	if err != nil {
		return "", fmt.Errorf("signing the receipt: %w", err)
	}
	r := receipt{
		Issuer: a.o.Device().ID, Audience: d.Issuer, Token: d.Token, IssuedAt: a.o.Clock.Now().Unix(), Clock: a.o.Clock.Trusted(),
		Mode: d.Mode, ID: op.ID, Command: op.Command, Grant: d.Grant, Line: op.Line, Unit: op.Unit, Point: op.Point, Value: op.Value,
		Args: Digest(op.Args), OK: out.OK, Code: out.Code, Result: Digest(out.Result),
	}
	if d.Refused != nil {
		r.Refused = d.Refused.Code
	}
	token, err := jws.Sign(key, map[string]any{"typ": ReceiptType, "kid": kid}, r)
	if err != nil {
		return "", fmt.Errorf("signing the receipt: %w", err)
	}
	return token, nil
}
