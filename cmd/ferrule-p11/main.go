//go:build cgo

// Command ferrule-p11 lets the agent sign with a key behind PKCS #11: it loads the module, holds
// the session with the token, and serves the protocol of docs/signer.md on a unix socket. It is
// the one program here that uses cgo, so that a module which crashes or hangs takes no agent
// with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"ferrule/internal/hint"
	"ferrule/tpm/signer"
)

// Exit codes (docs/signer.md).
const (
	exitDone      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitToken     = 10
	exitNoRestart = 78 // the token refused the PIN: each further try may lock it
)

var errUsage = errors.New("the command line is wrong")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// env is what the command line says.
type env struct {
	stdout, stderr io.Writer
	token          tokenConfig
	pinFile        string
	socket         string
	uids, gids     ids
	log            string
	level          slog.Level
	verbose        bool
}

const synopsis = "ferrule-p11 [keys] --module /path/to/module.so [--token LABEL] [--pin-file F] [flags]"

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	e := &env{stdout: stdout, stderr: stderr}
	command := e.serve
	if len(args) > 0 && (args[0] == "keys" || args[0] == "help") {
		if args[0] == "help" {
			args = []string{"--help"}
		} else {
			command, args = e.keys, args[1:]
		}
	}
	flags := e.flags()
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp), len(args) == 0:
		fmt.Fprintf(stdout, "ferrule-p11 lets the agent sign with a key behind PKCS #11; with the word keys it lists what is there.\n\nusage: %s\n\n", synopsis)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return exitDone
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("there is no command %q", flags.Arg(0))
	case err == nil && !strings.HasPrefix(e.token.module, "/"):
		err = errors.New("--module is to be the absolute path of a PKCS #11 module")
	}
	if err != nil {
		return e.report(hint.With(fmt.Errorf("%w: %w", errUsage, err), "usage: "+synopsis))
	}
	return e.report(command(ctx))
}

func (e *env) flags() *flag.FlagSet {
	f := flag.NewFlagSet("ferrule-p11", flag.ContinueOnError)
	f.SetOutput(io.Discard) // mistakes are printed once, in our own form
	f.StringVar(&e.token.module, "module", "", "the PKCS #11 `module`, an absolute path")
	f.StringVar(&e.token.label, "token", "", "the token's `label`; not needed where there is one token")
	f.StringVar(&e.pinFile, "pin-file", "", "the `file` with the user's PIN (default: the systemd credential \"pin\", if there is one)")
	f.StringVar(&e.token.key, "key", "", "serve only the key of this `name`: a label, or id:HEX")
	f.BoolVar(&e.token.create, "create", false, "let clients make keys in the token")
	f.StringVar(&e.socket, "socket", "/run/ferrule/p11.sock", "the unix `socket` to listen on")
	f.Func("allow-uid", "a `user`, by name or number, who may sign, and whose group gets the socket; may be repeated (always: root and the user that runs this)", e.uids.add(userID))
	f.Func("allow-gid", "a `group`, by name or number, which may sign, and the first of which gets the socket; may be repeated", e.gids.add(groupID))
	f.DurationVar(&e.token.hang, "patience", hangTime, "end after the module has taken so long for one request: only a new process helps then")
	f.StringVar(&e.log, "log", "text", "the log's `form`: text or json")
	f.BoolVar(&e.verbose, "verbose", false, "log every request")
	return f
}

// ids collects users or groups.
type ids []uint32

func (l *ids) add(look func(string) (string, error)) func(string) error {
	return func(name string) error {
		text := name
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			if text, err = look(name); err == nil {
				n, err = strconv.ParseUint(text, 10, 32)
			}
		}
		*l = append(*l, uint32(n))
		return err
	}
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

func (e *env) logger() (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: e.level}
	if e.verbose {
		o.Level = slog.LevelDebug
	}
	switch e.log {
	case "text":
		return slog.New(slog.NewTextHandler(e.stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.stderr, o)), nil
	}
	return nil, fmt.Errorf("%w: --log %q is neither text nor json", errUsage, e.log)
}

// open opens the token.
func (e *env) open(ctx context.Context) (*token, error) {
	log, err := e.logger()
	if err != nil {
		return nil, err
	}
	e.token.log = log
	e.token.pin = pinSource(e.pinFile, os.Getenv("CREDENTIALS_DIRECTORY"))
	return openToken(ctx, e.token)
}

// serve answers clients until ctx ends, or the token can be helped by a new process only.
func (e *env) serve(ctx context.Context) error {
	t, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	l, err := signer.Listen(e.socket, e.mode(), e.group())
	if err != nil {
		return err
	}
	t.c.log.LogAttrs(ctx, slog.LevelInfo, "serving", slog.String("socket", e.socket), slog.String("module", t.c.module))
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(t.dead, func() { stop(context.Cause(t.dead)) })()
	if err := signer.Serve(serving, l, t, signer.ServeOptions{UIDs: e.uids, GIDs: e.gids, Log: t.c.log}); err != nil {
		return err
	}
	if t.dead.Err() != nil {
		return context.Cause(t.dead)
	}
	return nil
}

// mode and group of the socket: only with write permission can a client connect, and be asked
// for then.
func (e *env) mode() os.FileMode {
	if len(e.uids)+len(e.gids) > 0 {
		return 0o660
	}
	return 0o600
}

// group is the first that is allowed, or that of the first user; -1: the process's own.
func (e *env) group() int {
	if len(e.gids) > 0 {
		return int(e.gids[0])
	}
	if len(e.uids) > 0 {
		if u, err := user.LookupId(strconv.Itoa(int(e.uids[0]))); err == nil {
			if gid, err := strconv.Atoi(u.Gid); err == nil {
				return gid
			}
		}
	}
	return -1
}

// keys prints one line for each key that could be served.
func (e *env) keys(ctx context.Context) error {
	e.level = slog.LevelError // what goes wrong is printed once, at the end
	t, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	found, err := t.list(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "LABEL\tID\tCURVE\tHARDWARE\tNOTE")
	for _, k := range found {
		fmt.Fprintf(w, "%q\tid:%x\t%s\t%s\t%s\n", k.label, k.id, k.curve, yes(k.hardware), k.note)
	}
	return w.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// report prints err with its hint and returns the exit code.
func (e *env) report(err error) int {
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(e.stderr, "ferrule-p11: error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(e.stderr, "ferrule-p11: hint: %s\n", h)
	}
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errPIN):
		return exitNoRestart
	case errors.Is(err, errToken), errors.Is(err, signer.ErrUnavailable), errors.Is(err, signer.ErrNoKey),
		errors.Is(err, signer.ErrAmbiguous), errors.Is(err, signer.ErrFailed):
		return exitToken
	}
	return exitFailed
}
