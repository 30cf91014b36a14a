package local

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"ferrule/agent/local/listener"
	"ferrule/agent/local/role"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Pauses before the listener is opened again: its port may be taken, or its address not there yet.
const (
	firstRetry = time.Second
	longRetry  = 30 * time.Second
	maxRoots   = 1 << 20 // bytes of one file
)

// runListener keeps the listener open until ctx is done. Whatever keeps it from it is logged once
// and shown in the status.
func (s *Server) runListener(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := s.listenTLS(ctx)
		if ctx.Err() != nil {
			return
		}
		text := err.Error()
		if old := s.problem.Swap(&text); old == nil || *old != text {
			s.log.LogAttrs(ctx, slog.LevelError, "local TLS listener", slog.Any("err", err), slog.String("hint", hint.Of(err)))
		}
		if time.Since(began) > longRetry {
			retry = firstRetry
		}
		timer := time.NewTimer(retry)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		retry = min(2*retry, longRetry)
	}
}

// listenTLS opens the listener and serves until ctx is done or the listening socket is lost.
func (s *Server) listenTLS(ctx context.Context) error {
	l, err := listener.Open(ctx, s.listenerOptions())
	if err != nil {
		return err
	}
	s.problem.Store(nil)
	s.listener.Store(l)
	defer s.listener.Store(nil)
	status := l.Status()
	s.log.LogAttrs(ctx, slog.LevelInfo, "local TLS listener", slog.String("address", status.Address),
		slog.String("client_auth", string(s.config.ClientAuth)), slog.String("certificate_sha256", status.Certificate.SHA256),
		slog.String("pin", status.Certificate.Pin))
	// The connections outlive ctx by the grace of the HTTP server.
	accepting, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	var lost error
	running.Go(func() {
		lost = l.Run(accepting)
		_ = l.Close() // ends Serve where accepting has ended by itself
	})
	server := s.newHTTP(ctx)
	server.ConnContext = s.listenerPeer
	err = s.serve(ctx, server, l)
	stop()
	running.Wait()
	if !errors.Is(lost, context.Canceled) {
		return lost
	}
	return fmt.Errorf("serving %s: %w", s.config.Listen, err)
}

func (s *Server) listenerOptions() listener.Options {
	o := listener.Options{
		Address: s.config.Listen, AskWebSocket: s.config.AskWebSocket,
		Policy: func() (*role.Policy, error) { return s.config.policy(s.backend.StateDir) },
		Source: s.config.source(s.backend.StateDir),
		Verify: s.backend.Verify, Now: s.backend.Now, Log: s.log,
	}
	switch s.config.ClientAuth {
	case AuthNone:
		o.Auth = listener.Never
	case AuthOptional:
		o.Auth = listener.Optional
	}
	return o
}

// Probe reads the files that c names, for ferrule check. Relative paths begin at stateDir.
func (c Config) Probe(stateDir string) error {
	if c.Listen == "" {
		return nil
	}
	if _, err := c.policy(stateDir); err != nil {
		return err
	}
	return c.source(stateDir).Probe()
}

func (c Config) source(stateDir string) listener.Source {
	return listener.Source{Certificate: below(stateDir, c.Certificate), Key: below(stateDir, c.Key), Folder: stateDir}
}

// policy binds the rules to their CAs.
func (c Config) policy(stateDir string) (*role.Policy, error) {
	return role.New(c.Roles, c.Roots, func(file string) ([]*x509.Certificate, error) {
		return readRoots(below(stateDir, file))
	})
}

func below(folder, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(folder, name)
}

// readRoots reads the CAs of one PEM file: at least one, and nothing else.
func readRoots(name string) ([]*x509.Certificate, error) {
	text, err := disk.ReadFile(disk.OS(), name, maxRoots)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading the CA of local clients: %w", err), "name a PEM file in local.roots, or in the roots of the [[local.role]]")
	}
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("reading the CA of local clients: %s holds a block %q", name, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the CA of local clients: %s: %w", name, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("reading the CA of local clients: %s: the certificate of %s is that of no CA", name, role.Describe(c))
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("reading the CA of local clients: %s holds no certificate", name)
	}
	return all, nil
}
