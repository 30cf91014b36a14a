//go:build cgo

package main

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm/signer"

	"github.com/miekg/pkcs11"
)

// hangTime is how long the module may take for one request. After that only a new process
// helps: a call into C cannot be given up.
const hangTime = 30 * time.Second

// freshTime: a session younger than this is believed when it knows no key of a name. Some
// modules see the keys of other processes in new sessions only.
const freshTime = 10 * time.Second

var (
	errToken = errors.New("the token cannot be used")
	// errPIN: the token refused the PIN, or would be locked by one more wrong one.
	errPIN  = errors.New("the token refuses the PIN")
	errHung = fmt.Errorf("%w: the module hangs", errToken)
)

// tokenConfig says which token, and what clients may do with it.
type tokenConfig struct {
	module string // path
	label  string // "": the only token
	key    string // "": every key
	create bool
	pin    func() (pin string, has bool, err error)
	hang   time.Duration // 0: hangTime
	fresh  time.Duration // 0: freshTime
	log    *slog.Logger
}

// token is a signer.Keys over a PKCS #11 token. One request is in the module at one time.
//
//	no module → module → initialised → session ⇄ signing
//	     ↑________↑___________↑___________│  an error takes one more step back at each further try
//
// Whatever error comes that is not final by its nature, the next try starts further back: with a
// new session, with the module initialised again, with the module loaded again.
type token struct {
	c      tokenConfig
	turn   chan struct{} // held by whoever is in the module
	module *pkcs11.Ctx
	s      *session

	dead context.Context // ends when only a new process helps; its cause says why
	die  context.CancelCauseFunc
}

// openToken logs in once, so that what is wrong is told at the start.
func openToken(ctx context.Context, c tokenConfig) (*token, error) {
	if c.hang == 0 {
		c.hang = hangTime
	}
	if c.fresh == 0 {
		c.fresh = freshTime
	}
	if err := signer.CheckName(c.key); err != nil {
		return nil, fmt.Errorf("%w: --key: %w", errUsage, err)
	}
	if _, err := os.Stat(c.module); err != nil {
		return nil, fmt.Errorf("%w: loading the module: %w", errToken, err)
	}
	t := &token{c: c, turn: make(chan struct{}, 1)}
	t.dead, t.die = context.WithCancelCause(context.Background())
	_, err := do(ctx, t, func(*session) (struct{}, error) { return struct{}{}, nil })
	if err != nil {
		if t.dead.Err() != nil {
			err = context.Cause(t.dead)
		}
		t.close()
		return nil, err
	}
	return t, nil
}

// do runs f with a session, in its turn, and again with a better one where the session was
// lost. It returns early when ctx ends; f then goes on alone, and the module is not free
// before it returns.
func do[T any](ctx context.Context, t *token, f func(*session) (T, error)) (T, error) {
	var none T
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("%w: others wait before", signer.ErrUnavailable)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	watch := time.AfterFunc(t.c.hang, func() {
		t.die(hint.With(fmt.Errorf("%w: no answer within %v", errHung, t.c.hang), "start this program again (Restart=always in its unit)"))
	})
	go func() {
		defer func() { <-t.turn }()
		defer watch.Stop()
		var r result
		r.err = t.withSession(func(s *session) (err error) {
			r.value, err = f(s)
			return err
		})
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("%w: the token is slow", signer.ErrUnavailable)
	case <-t.dead.Done():
		return none, fmt.Errorf("%w: %w", signer.ErrUnavailable, context.Cause(t.dead))
	}
}

// withSession is called by whoever holds the turn.
func (t *token) withSession(f func(*session) error) error {
	for step := 0; ; step++ {
		err := t.ensureSession()
		if err == nil {
			err = f(t.s)
		}
		if err == nil || !t.mayPass(err, step) {
			return answerError(err)
		}
		t.c.log.LogAttrs(context.Background(), slog.LevelWarn, "token failed, trying again", slog.Int("step", step+1), slog.Any("err", err))
		t.back(step)
	}
}

// mayPass reports whether one step further back may help against err.
func (t *token) mayPass(err error, step int) bool {
	switch {
	case errors.Is(err, errPIN):
		t.die(err)
		return false
	case errors.Is(err, signer.ErrNoKey):
		return step == 0 && t.s != nil && time.Since(t.s.opened) > t.c.fresh
	}
	var code pkcs11.Error
	passing := errors.As(err, &code) && !final(code) || errors.Is(err, signer.ErrUnavailable)
	if passing && step >= 2 {
		// The next request starts from nothing.
		t.back(2)
		return false
	}
	return passing
}

// back undoes what was opened: the session, with step 1 the initialisation, with step 2 the
// loading of the module. Errors are those of a thing that is lost anyway.
func (t *token) back(step int) {
	if t.s != nil {
		_ = t.module.CloseSession(t.s.handle)
		t.s = nil
	}
	if step >= 1 && t.module != nil {
		_ = t.module.Finalize()
	}
	if step >= 2 && t.module != nil {
		t.module.Destroy()
		t.module = nil
	}
}

func (t *token) ensureSession() error {
	if t.s != nil {
		return nil
	}
	if t.dead.Err() != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, context.Cause(t.dead))
	}
	if t.module == nil {
		if t.module = pkcs11.New(t.c.module); t.module == nil {
			return hint.With(fmt.Errorf("%w: %s is no PKCS #11 module of this machine, or lacks a library", errToken, t.c.module), "ldd "+t.c.module)
		}
	}
	err := t.module.Initialize()
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return fmt.Errorf("initialising the module: %w", err)
	}
	slot, info, err := findSlot(t.module, t.c.label)
	if err != nil {
		return err
	}
	t.s, err = t.login(slot, info)
	return err
}

// findSlot looks for the token anew each time: a token that was initialised again may be in
// another slot.
func findSlot(m *pkcs11.Ctx, label string) (uint, pkcs11.TokenInfo, error) {
	var none pkcs11.TokenInfo
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, none, fmt.Errorf("listing the slots: %w", err)
	}
	var labels []string
	var slot uint
	var found []pkcs11.TokenInfo
	for _, candidate := range slots {
		info, err := m.GetTokenInfo(candidate)
		name := strings.TrimRight(info.Label, " \x00")
		// A token that says it was never initialised is no candidate, unless it is named.
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 && (label == "" || name != label) {
			continue
		}
		labels = append(labels, fmt.Sprintf("%q", name))
		if label == "" || name == label {
			slot, found = candidate, append(found, info)
		}
	}
	list := strings.Join(labels, ", ")
	switch {
	case len(found) == 1:
		return slot, found[0], nil
	case len(found) > 1 && label == "":
		return 0, none, hint.With(fmt.Errorf("%w: there are several tokens: %s", errToken, list), "name one with --token")
	case len(found) > 1:
		return 0, none, fmt.Errorf("%w: %d tokens are labelled %q", errToken, len(found), label)
	case list == "":
		return 0, none, fmt.Errorf("%w: there is no token", signer.ErrUnavailable)
	}
	return 0, none, hint.With(fmt.Errorf("%w: there is no token labelled %q, only %s", signer.ErrUnavailable, label, list), "see --token")
}

// login opens a session. A token that counts wrong PINs is never given its last try.
func (t *token) login(slot uint, info pkcs11.TokenInfo) (_ *session, err error) {
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if t.c.create {
		flags |= pkcs11.CKF_RW_SESSION
	}
	handle, err := t.module.OpenSession(slot, flags)
	if err != nil {
		return nil, fmt.Errorf("opening a session: %w", err)
	}
	defer func() {
		if err != nil {
			_ = t.module.CloseSession(handle)
		}
	}()
	pin, has, err := t.c.pin()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errToken, err)
	}
	s := &session{m: t.module, handle: handle, slot: slot, pin: t.c.pin, opened: time.Now(), keys: map[string]*key{}}
	switch {
	case !has && info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0:
		return nil, hint.With(fmt.Errorf("%w: it needs a PIN, and there is none", errToken), "write it to a file that only this user may read, and give --pin-file")
	case !has:
		return s, nil
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return nil, hint.With(fmt.Errorf("%w: it is locked", errPIN), "unlock it with the security officer's PIN")
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return nil, hint.With(fmt.Errorf("%w: one more wrong PIN would lock it, so it is not tried", errPIN), "log in once by hand with the right PIN, e.g. pkcs11-tool --login --list-objects")
	}
	return s, loginError(t.module.Login(handle, pkcs11.CKU_USER, pin))
}

func loginError(err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return err
	}
	switch code {
	case pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		return nil
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return hint.With(fmt.Errorf("%w: %w", errPIN, err), "correct the PIN file first: every wrong try may count, and some tokens lock themselves after three")
	}
	return fmt.Errorf("logging in: %w", err)
}

// final are the answers that no new session changes. All others may be the token's loss of
// memory, whatever the module calls it: modules differ, and one error of the transport must not
// be the last word.
func final(code pkcs11.Error) bool {
	switch code {
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID,
		pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
		pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT,
		pkcs11.CKR_CURVE_NOT_SUPPORTED, pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_WRITE_PROTECTED:
		return true
	}
	return false
}

// answerError gives an error of the module one of the protocol's names.
func answerError(err error) error {
	var code pkcs11.Error
	switch {
	case !errors.As(err, &code) || errors.Is(err, errPIN):
		return err
	case final(code):
		return fmt.Errorf("%w: %w", signer.ErrFailed, err)
	}
	return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
}

// Describe implements signer.Keys.
func (t *token) Describe(ctx context.Context, name string) (signer.Description, error) {
	return do(ctx, t, func(s *session) (signer.Description, error) {
		k, err := t.find(s, name)
		if err != nil {
			return signer.Description{}, err
		}
		return k.description(), nil
	})
}

// Sign implements signer.Keys.
func (t *token) Sign(ctx context.Context, name string, _ crypto.Hash, digest []byte) ([]byte, error) {
	return do(ctx, t, func(s *session) ([]byte, error) {
		k, err := t.find(s, name)
		if err != nil {
			return nil, err
		}
		return s.sign(k, digest)
	})
}

// Create implements signer.Keys.
func (t *token) Create(ctx context.Context, name string, curve elliptic.Curve) (signer.Description, error) {
	none := signer.Description{}
	if !t.c.create {
		return none, fmt.Errorf("%w: keys are made only with --create", signer.ErrRefused)
	}
	label, err := t.served(name)
	if err != nil {
		return none, err
	}
	if label == "" || strings.HasPrefix(label, idPrefix) {
		return none, fmt.Errorf("%w: a new key needs a label", signer.ErrUnsupported)
	}
	return do(ctx, t, func(s *session) (signer.Description, error) {
		k, err := s.create(label, curve)
		if err != nil {
			return none, err
		}
		s.keys[label] = k
		t.c.log.LogAttrs(ctx, slog.LevelInfo, "key made", slog.String("key", label))
		return k.description(), nil
	})
}

// served is the name of the key that a client means, if it may.
func (t *token) served(name string) (string, error) {
	if t.c.key == "" || name == t.c.key {
		return name, nil
	}
	if name == "" {
		return t.c.key, nil
	}
	return "", fmt.Errorf("%w: only another one is served", signer.ErrNoKey)
}

// find looks a key up once in each session.
func (t *token) find(s *session, name string) (*key, error) {
	name, err := t.served(name)
	if err != nil {
		return nil, err
	}
	if k := s.keys[name]; k != nil {
		return k, nil
	}
	k, err := s.find(name)
	if err == nil {
		s.keys[name] = k
	}
	return k, err
}

// list is what ferrule-p11 keys prints.
func (t *token) list(ctx context.Context) ([]listed, error) {
	return do(ctx, t, (*session).list)
}

// close logs out, unless the module hangs.
func (t *token) close() {
	select {
	case t.turn <- struct{}{}:
	case <-time.After(2 * time.Second):
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.back(2)
	}()
	select {
	case <-done:
		<-t.turn
	case <-time.After(2 * time.Second):
	}
	t.die(errors.New("the token is closed"))
}
