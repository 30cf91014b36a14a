package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"ferrule/agent"
	"ferrule/agent/config"
	"ferrule/agent/local"
	"ferrule/hw"
)

// valueTimeout bounds one read or write from the command line, the opening of the line
// included.
const valueTimeout = 15 * time.Second

func runRead(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	a := e.flags.Args()
	args := agent.ReadArgs{Line: a[0], Unit: a[1], At: a[2], Type: a[3]}
	var result agent.ReadResult
	err = viaAgentOrLine(ctx, c, args.Line, "read", args, &result, func(ctx context.Context, line *hw.Line) (err error) {
		result, err = agent.Read(ctx, line, args)
		return err
	})
	if err != nil {
		return err
	}
	if e.json {
		return printJSON(e, result)
	}
	return printRead(e.stdout, result)
}

func runWrite(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	a := e.flags.Args()
	args := agent.WriteArgs{Line: a[0], Unit: a[1], Point: a[2], Value: parseValue(a[3])}
	var result hw.Written
	err = viaAgentOrLine(ctx, c, args.Line, "write", args, &result, func(ctx context.Context, line *hw.Line) (err error) {
		result, err = line.Write(ctx, args.Unit, args.Point, args.Value)
		return err
	})
	if err != nil {
		return err
	}
	return printJSON(e, result)
}

// parseValue reads a value as JSON does (12.5, true) and takes everything else as a string.
func parseValue(text string) any {
	var v any
	if json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	return v
}

// viaAgentOrLine asks the running agent, which holds the line; where none runs, it opens the
// line itself for this one transaction.
func viaAgentOrLine(ctx context.Context, c *config.Config, name, command string, args, result any,
	direct func(context.Context, *hw.Line) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, valueTimeout)
	defer cancel()
	answer, err := local.Dial(c.Local.Socket).Command(ctx, command, args)
	if err == nil {
		return json.Unmarshal(answer, result)
	}
	if !errors.Is(err, local.ErrNotRunning) {
		return withCode(exitLine, err)
	}
	for _, config := range c.Lines {
		if config.Name == name {
			return withCode(exitLine, onOpenLine(ctx, config, direct))
		}
	}
	return withCode(exitUsage, fmt.Errorf("there is no line %q in the configuration", name))
}

// onOpenLine runs the line without polling anything, calls do, and closes the line again.
func onOpenLine(ctx context.Context, config hw.LineConfig, do func(context.Context, *hw.Line) error) error {
	line, err := hw.New(config, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- line.Run(ctx) }()
	err = do(ctx, line)
	cancel()
	<-ended
	return err
}

func printRead(w io.Writer, result agent.ReadResult) error {
	fmt.Fprintf(w, "raw %s\n", result.Raw)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range result.Values {
		text := string(v.Value)
		if v.Error != "" {
			text = v.Error
		}
		fmt.Fprintf(table, "%s\t%s\n", v.Order, text)
	}
	return table.Flush()
}
