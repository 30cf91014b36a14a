package main

import (
	"context"
	"fmt"
	"log/slog"

	"ferrule/agent/enroll/registrar"
	"ferrule/internal/cli"
	"ferrule/internal/hint"
)

// registrarOptions are the flags of registrar beyond those of issuing.
type registrarOptions struct {
	listen   string
	log      string
	software bool
	noReturn bool
	factory  string
}

func registrarFlags(e *env) {
	issuingFlags(e)
	e.Flags.StringVar(&e.registrar.listen, "listen", ":8443", "the `address` to listen on; port 0 takes a free one")
	e.Flags.StringVar(&e.registrar.log, "log", "text", "form of the log: text or json")
	e.Flags.BoolVar(&e.registrar.software, "allow-software-keys", false, "let devices in that prove no TPM; they are recorded as weak")
	e.Flags.BoolVar(&e.registrar.noReturn, "no-return", false, "refuse a device that shows nothing but the TPM it was enrolled with")
	e.Flags.StringVar(&e.registrar.factory, "factory-ca", "", "PEM `file`: devices with a factory certificate of this authority get their first certificate by it")
}

func logger(e *env) (*slog.Logger, error) {
	switch e.registrar.log {
	case "text":
		return slog.New(slog.NewTextHandler(e.Stderr, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.Stderr, nil)), nil
	}
	return nil, hint.With(fmt.Errorf("%w: --log %q is not known", cli.ErrUsage, e.registrar.log), "it is text or json")
}

func runRegistrar(ctx context.Context, e *env) error {
	log, err := logger(e)
	if err != nil {
		return err
	}
	config, err := e.issuing.open("ferrule-factory registrar --ca DIR", e.Program)
	if err != nil {
		return err
	}
	config.AllowSoftwareKeys, config.NoReturn = e.registrar.software, e.registrar.noReturn
	if e.registrar.factory != "" {
		if config.FactoryRoots, err = readPool(e.registrar.factory); err != nil {
			return fmt.Errorf("reading --factory-ca: %w", err)
		}
	}
	if err := writeCRL(config.CA, config.Records); err != nil {
		// One damaged record is no reason to keep every other device out.
		log.LogAttrs(ctx, slog.LevelError, "revocation list not written", slog.Any("err", err), slog.String("hint", hint.Of(err)))
	}
	r := registrar.New(config, log)
	listener, err := r.Listen(ctx, e.registrar.listen)
	if err != nil {
		return hint.With(err, "take a free address with --listen, or make the server's certificate: ferrule-factory ca init")
	}
	if e.json {
		if err := e.printJSON(map[string]string{"url": "https://" + listener.Addr().String()}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(e.Stdout, "registrar listens on https://%s\n", listener.Addr())
	}
	return r.Serve(ctx, listener)
}
