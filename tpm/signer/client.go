package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"ferrule/internal/hint"
)

const (
	// DefaultBudget bounds a signature with everything that is tried for it: less than the
	// ten seconds that a session waits for a TLS handshake.
	DefaultBudget = 8 * time.Second

	firstPause = 20 * time.Millisecond // before the second try; doubles
	maxPause   = 500 * time.Millisecond
	parallel   = 4   // requests under way at one time; the others wait
	maxPath    = 107 // sun_path less its NUL (unix(7))
)

const (
	hintUnreachable = "see that the helper runs and that its socket is the one in identity.key (systemctl status ferrule-p11)"
	hintPermission  = "start the helper with --allow-uid USER or --allow-gid GROUP of the agent"
	hintRefused     = "the helper's log says why; ferrule-p11 takes clients by --allow-uid and makes keys only with --create"
	hintNoKey       = "list the helper's keys with: ferrule-p11 keys; name one with ?key=NAME, or make it"
	hintAmbiguous   = "name one with ?key=NAME, or ?key=id:HEX where labels are alike"
	hintUnavailable = "the helper runs and its token does not answer; its log says more"
	hintChanged     = "the token was replaced, or the label now names another key; bring the key back, or enroll again"
	hintProtocol    = "what listens on the socket is no helper of this protocol, version 1 (docs/signer.md)"
)

// Options say which key.
type Options struct {
	Socket string        // absolute path
	Key    string        // "": the one key that the helper has
	Budget time.Duration // of one operation; 0: DefaultBudget
}

// A Client is a key in a helper: a crypto.Signer for any number of goroutines.
type Client struct {
	o      Options
	slots  chan struct{} // bounds the requests under way
	closed context.Context
	end    context.CancelFunc
	key    Description // pinned
}

// Open asks the helper for the public key and pins it. The errors are those of the package;
// with ErrUnreachable it has waited for the helper as long as the budget allows.
func Open(ctx context.Context, o Options) (*Client, error) {
	return start(ctx, o, request{verb: verbDescribe})
}

// Create lets the helper make a new key, signs once with it, and opens it: ErrKeyExists where
// there is one of that name, ErrRefused where the helper makes none. The request is sent once
// only. Where the answer is lost, Open tells whether the key was made.
func Create(ctx context.Context, o Options, curve elliptic.Curve) (*Client, error) {
	number, ok := curveNumber(curve)
	if !ok {
		return nil, fmt.Errorf("%w: a new key is on P-256 or P-384", ErrUnsupported)
	}
	c, err := start(ctx, o, request{verb: verbCreate, number: number})
	if err != nil {
		return nil, err
	}
	if c.key.Public.Curve != curve {
		_ = c.Close()
		return nil, fmt.Errorf("%w: the new key is not on the curve that was asked for", ErrMalformed)
	}
	if err := c.selfTest(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("testing the new key: %w", err)
	}
	return c, nil
}

func start(ctx context.Context, o Options, q request) (*Client, error) {
	if o.Budget <= 0 {
		o.Budget = DefaultBudget
	}
	if err := CheckName(o.Key); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if !filepath.IsAbs(o.Socket) || len(o.Socket) > maxPath {
		return nil, fmt.Errorf("%w: a socket has an absolute path of at most %d bytes, and this is %q", ErrUnsupported, maxPath, o.Socket)
	}
	c := &Client{o: o, slots: make(chan struct{}, parallel)}
	c.closed, c.end = context.WithCancel(context.Background())
	var err error
	if c.key, err = c.describe(ctx, q); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Public implements crypto.Signer.
func (c *Client) Public() crypto.PublicKey { return c.key.Public }

// Hardware is what the helper said of the key when it was opened.
func (c *Client) Hardware() bool { return c.key.Hardware }

// Close ends what is under way. Closing twice is harmless.
func (c *Client) Close() error {
	c.end()
	return nil
}

// Sign implements crypto.Signer for SHA-256, SHA-384 and SHA-512 digests; the random source is
// not used, the token has its own. The time is bounded by the budget.
func (c *Client) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return c.sign(context.Background(), digest, opts)
}

func (c *Client) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil {
		return nil, fmt.Errorf("%w: a signature without a hash", ErrUnsupported)
	}
	number, ok := hashNumber(opts.HashFunc())
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("%w: a digest of %d bytes for %v; SHA-256, SHA-384 and SHA-512 are signed", ErrUnsupported, len(digest), opts.HashFunc())
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Budget)
	defer cancel()
	a, err := c.do(ctx, request{verb: verbSign, number: number, digest: digest})
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if ecdsa.VerifyASN1(c.key.Public, digest, a.body) {
		return a.body, nil
	}
	return nil, fmt.Errorf("signing: %w", c.explain(ctx))
}

// explain finds out why a signature is wrong.
func (c *Client) explain(ctx context.Context) error {
	now, err := c.describe(ctx, request{verb: verbDescribe})
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrBadSignature, err)
	case !now.Public.Equal(c.key.Public):
		return hint.With(ErrKeyChanged, hintChanged)
	}
	return ErrBadSignature
}

func (c *Client) selfTest(ctx context.Context) error {
	_, err := c.sign(ctx, make([]byte, crypto.SHA256.Size()), crypto.SHA256)
	return err
}

// describe also serves create, whose answer is the same.
func (c *Client) describe(ctx context.Context, q request) (Description, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Budget)
	defer cancel()
	a, err := c.do(ctx, q)
	if err != nil {
		return Description{}, err
	}
	parsed, err := x509.ParsePKIXPublicKey(a.body)
	if err != nil {
		return Description{}, hint.With(fmt.Errorf("%w: no public key in the answer", ErrMalformed), hintProtocol)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return Description{}, fmt.Errorf("%w: the helper's key is neither a P-256 nor a P-384 key", ErrUnsupported)
	}
	return Description{Public: key, Hardware: a.flags&flagHardware != 0}, nil
}

// do sends q until there is an answer other than ErrUnavailable, an error that a further try
// cannot change, or the end of ctx.
func (c *Client) do(ctx context.Context, q request) (answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.closed, cancel)()
	if c.closed.Err() != nil {
		return answer{}, fmt.Errorf("using a closed key: %w", os.ErrClosed)
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return answer{}, c.late(ctx, errors.New("other requests are before this one"))
	}
	q.name = c.o.Key
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		a, again, err := c.once(ctx, q)
		switch {
		case err == nil:
			return a, nil
		case ctx.Err() != nil:
			return answer{}, c.late(ctx, err)
		case !again:
			return answer{}, hinted(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return answer{}, c.late(ctx, err)
		}
	}
}

// late says what stood in the way until the time was over.
func (c *Client) late(ctx context.Context, err error) error {
	switch {
	case c.closed.Err() != nil:
		return fmt.Errorf("using a closed key: %w", os.ErrClosed)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case errors.Is(err, ErrUnavailable):
		return hint.With(err, hintUnavailable)
	}
	return hint.With(fmt.Errorf("%w at %s in time: %w", ErrUnreachable, c.o.Socket, err), hintUnreachable)
}

// once is one connection, one request, one answer. It reports whether a further try may help:
// after a request was sent, creating is not tried again.
func (c *Client) once(ctx context.Context, q request) (_ answer, again bool, _ error) {
	q.id = rand.Uint64() | 1
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.o.Socket)
	if errors.Is(err, fs.ErrPermission) {
		return answer{}, false, hint.With(fmt.Errorf("connecting to %s: %w", c.o.Socket, ErrPermission), hintPermission)
	}
	if err != nil {
		return answer{}, true, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_, sent := conn.Write(q.encode())
	// A helper that refuses the connection says so before it hangs up, and the write may fail
	// for that.
	frame, err := readFrame(conn, maxAnswer)
	if err != nil {
		if errors.Is(err, errMalformed) {
			return answer{}, false, err
		}
		err = fmt.Errorf("reading the answer: %w", err)
		if sent != nil {
			err = fmt.Errorf("sending the request: %w", sent)
		}
		if q.verb == verbCreate {
			return answer{}, false, fmt.Errorf("%w: whether the key was made is not known: %w", ErrUnreachable, err)
		}
		return answer{}, true, err
	}
	a, err := parseAnswer(frame, q)
	if err == nil && a.status != 0 {
		err = statusError(a)
	}
	return a, q.verb != verbCreate && errors.Is(err, ErrUnavailable), err
}

// hinted adds the repair.
func hinted(err error) error {
	for _, c := range []struct {
		is  error
		say string
	}{
		{ErrMalformed, hintProtocol}, {ErrNoKey, hintNoKey}, {ErrAmbiguous, hintAmbiguous},
		{ErrRefused, hintRefused}, {ErrUnreachable, hintUnreachable}, {ErrUnavailable, hintUnavailable},
	} {
		if hint.Of(err) == "" && errors.Is(err, c.is) {
			return hint.With(err, c.say)
		}
	}
	return err
}
