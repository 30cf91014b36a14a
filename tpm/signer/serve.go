package signer

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

// Limits of Serve.
const (
	clients       = 16               // connections at one time; the others wait in the listener
	frameTime     = 2 * time.Second  // for reading a request, and for writing an answer
	operationTime = 10 * time.Second // for the token
	acceptPause   = 100 * time.Millisecond
)

// Keys is what a helper serves. All methods are called from many goroutines. Their errors wrap
// those of the package; the text of an error goes to the client, so it holds no secret.
type Keys interface {
	Describe(ctx context.Context, name string) (Description, error)
	// Sign returns the ASN.1 form of an ECDSA signature (RFC 3279, 2.2.3) over digest, whose
	// length is that of h.
	Sign(ctx context.Context, name string, h crypto.Hash, digest []byte) ([]byte, error)
	// Create makes a key: ErrKeyExists, ErrRefused where that is not allowed.
	Create(ctx context.Context, name string, curve elliptic.Curve) (Description, error)
}

// ServeOptions say whom Serve answers, beside root and the process's own user: both can reach
// the token anyway.
type ServeOptions struct {
	UIDs, GIDs []uint32     // of the peer's process, as SO_PEERCRED gives them (unix(7))
	Log        *slog.Logger // nil: none
}

// Serve answers the clients of l until ctx ends, closes l, waits for what is under way, which
// is bounded, and returns nil.
func Serve(ctx context.Context, l *net.UnixListener, keys Keys, o ServeOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{keys: keys, o: o, own: uint32(syscall.Getuid())}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer l.Close()
	slots := make(chan struct{}, clients)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			serving.Go(func() {
				defer func() { <-slots }()
				s.serve(ctx, conn)
			})
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting a client: %w", err)
		}
		<-slots
		// Out of file descriptors, most likely; that passes.
		o.Log.LogAttrs(ctx, slog.LevelWarn, "accepting failed", slog.Any("err", err))
		pause := time.NewTimer(acceptPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

type server struct {
	keys Keys
	o    ServeOptions
	own  uint32
}

// serve answers one request on a connection of its own.
func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	// Whoever is slow with its request does not hold up the end.
	reading := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer reading()
	log := s.o.Log
	peer, err := peerOf(conn)
	if err == nil {
		log = log.With(slog.Int("uid", int(peer.Uid)), slog.Int("pid", int(peer.Pid)))
		err = s.admit(peer)
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "client refused", slog.Any("err", err))
		s.write(conn, answer{status: statusOf(err), body: errorText(err)})
		return
	}
	_ = conn.SetDeadline(time.Now().Add(frameTime))
	if ctx.Err() != nil { // the deadline above may have replaced the one that ends all
		return
	}
	frame, err := readFrame(conn, maxRequest)
	if errors.Is(err, errMalformed) {
		log.LogAttrs(ctx, slog.LevelWarn, "request refused", slog.Any("err", err))
		s.write(conn, answer{status: statusOf(err), body: errorText(err)})
		return
	}
	if err != nil { // a probe, or a client that went away
		log.LogAttrs(ctx, slog.LevelDebug, "no request", slog.Any("err", err))
		return
	}
	s.write(conn, s.answer(ctx, log, frame))
}

func (s *server) write(conn *net.UnixConn, a answer) {
	_ = conn.SetDeadline(time.Now().Add(frameTime))
	// Where the client is gone, nobody is left to be told.
	_, _ = conn.Write(a.encode())
}

// answer never fails: an error is an answer.
func (s *server) answer(ctx context.Context, log *slog.Logger, frame []byte) answer {
	q, err := parseRequest(frame)
	a := answer{verb: q.verb, id: q.id}
	if err == nil {
		// What is under way when the helper is told to end is finished.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTime)
		defer cancel()
		a.flags, a.body, err = s.perform(ctx, q)
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: no answer within %v", ErrUnavailable, operationTime)
		}
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "request refused", slog.String("verb", q.verb.String()),
			slog.String("key", q.name), slog.Any("err", err))
		a.status, a.flags, a.body = statusOf(err), 0, errorText(err)
		return a
	}
	log.LogAttrs(ctx, slog.LevelDebug, "request answered", slog.String("verb", q.verb.String()), slog.String("key", q.name))
	return a
}

func (s *server) perform(ctx context.Context, q request) (flags byte, body []byte, err error) {
	var d Description
	switch q.verb {
	case verbSign:
		h, _ := hashOf(q.number)
		body, err = s.keys.Sign(ctx, q.name, h, q.digest)
		return 0, body, err
	case verbCreate:
		curve, _ := curveOf(q.number)
		d, err = s.keys.Create(ctx, q.name, curve)
	default:
		d, err = s.keys.Describe(ctx, q.name)
	}
	if err != nil {
		return 0, nil, err
	}
	if d.Hardware {
		flags = flagHardware
	}
	body, err = x509.MarshalPKIXPublicKey(d.Public)
	return flags, body, err
}

// errorText is cut at a character's end.
func errorText(err error) []byte {
	text := escape(err.Error())
	if len(text) > maxBody {
		end := maxBody
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	return []byte(text)
}

func (s *server) admit(peer *syscall.Ucred) error {
	if peer.Uid == 0 || peer.Uid == s.own || slices.Contains(s.o.UIDs, peer.Uid) || slices.Contains(s.o.GIDs, peer.Gid) {
		return nil
	}
	return fmt.Errorf("%w: user %d, group %d is not among those that are allowed", ErrRefused, peer.Uid, peer.Gid)
}

// peerOf is who connected, as the kernel noted it then.
func peerOf(conn *net.UnixConn) (*syscall.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *syscall.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		peer, inner = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, inner); err != nil {
		return nil, fmt.Errorf("asking who the client is: %w", err)
	}
	return peer, nil
}
