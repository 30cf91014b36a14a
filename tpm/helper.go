package tpm

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"

	"ferrule/internal/hint"
	"ferrule/tpm/signer"
)

// ErrHelper: the helper that keeps the key does not serve it. What it wraps beside this is an
// error of tpm/signer and says why.
var ErrHelper = errors.New("the key's helper does not serve it")

const hintHelperURI = "write signer:unix=/run/ferrule/p11.sock, or the same with ?key=NAME where the helper has more than one key"

// parseHelper reads what follows signer: in a key URI. NAME is percent-encoded where it has
// characters that a URI has not.
func (o KeyOptions) parseHelper(rest string) (signer.Options, error) {
	socket, query, named := strings.Cut(rest, "?")
	socket, unix := strings.CutPrefix(socket, "unix=")
	name, key := strings.CutPrefix(query, "key=")
	if !unix || socket == "" || named && (!key || name == "") {
		return signer.Options{}, hint.With(unsupported("a helper that is not named by its socket"), hintHelperURI)
	}
	path, err := o.below(socket)
	if err != nil {
		return signer.Options{}, err
	}
	if name, err = url.PathUnescape(name); err == nil {
		err = signer.CheckName(name)
	}
	if err != nil {
		return signer.Options{}, hint.With(unsupported("%s", err), hintHelperURI)
	}
	return signer.Options{Socket: path, Key: name}, nil
}

// helperKey is a key that a helper process keeps.
type helperKey struct {
	*signer.Client
	ref string
}

func (k *helperKey) Ref() string { return k.ref }

// Weak is what the helper admits: a token in software is a file on the disk.
func (k *helperKey) Weak() bool { return !k.Hardware() }

func (k *helperKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Client.Sign(random, digest, opts)
	return signature, helperError(err)
}

func (r *ref) openHelper(ctx context.Context) (DeviceKey, error) {
	return r.helperKey(ctx)(signer.Open(ctx, r.helper))
}

func (r *ref) createHelper(ctx context.Context, s KeySpec) (DeviceKey, error) {
	if s.Curve == nil {
		s.Curve = elliptic.P256()
	}
	return r.helperKey(ctx)(signer.Create(ctx, r.helper, s.Curve))
}

func (r *ref) helperKey(ctx context.Context) func(*signer.Client, error) (DeviceKey, error) {
	return func(c *signer.Client, err error) (DeviceKey, error) {
		if err != nil {
			return nil, helperError(err)
		}
		k := &helperKey{c, r.uri}
		if k.Weak() {
			r.o.Log.LogAttrs(ctx, slog.LevelWarn, "weak device key: the helper's token is no hardware", slog.String("socket", r.helper.Socket))
		}
		return k, nil
	}
}

// helperError gives an error of tpm/signer our name for it.
func helperError(err error) error {
	if err == nil {
		return nil
	}
	for _, same := range []struct{ theirs, ours error }{
		{signer.ErrNoKey, ErrNoKey},
		{signer.ErrKeyExists, ErrKeyExists},
		{signer.ErrPermission, ErrPermission},
		{signer.ErrAmbiguous, ErrUnsupported},
		{signer.ErrUnsupported, ErrUnsupported},
		{signer.ErrRefused, ErrUnsupported},
	} {
		if errors.Is(err, same.theirs) {
			return fmt.Errorf("%w: %w", same.ours, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrHelper, err)
}
