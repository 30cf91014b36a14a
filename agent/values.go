package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"

	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/hw"
	"ferrule/hw/modbus"
	"ferrule/hw/point"
)

// The commands read and write reach the hardware through the line's own goroutine, between
// two polls. The command line uses the same types through the local API, or opens the line
// itself where no agent runs.

// ReadArgs asks for one value that need not be configured.
type ReadArgs struct {
	Line string `json:"line"`
	Unit string `json:"unit"`
	At   string `json:"at"`   // as in the configuration: "input:0x000C" or "30013"
	Type string `json:"type"` // as in the configuration: "float32"
}

// ReadResult is the value in every byte order the type can have.
type ReadResult struct {
	Raw    string      `json:"raw"` // the register bytes in hex, as they came over the wire
	Values []ReadValue `json:"values"`
}

// ReadValue is the value in one byte order; Error says why the bytes are none.
type ReadValue struct {
	Order string          `json:"order"`
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
}

// WriteArgs sets one configured point.
type WriteArgs struct {
	Line  string `json:"line"`
	Unit  string `json:"unit"`
	Point string `json:"point"`
	Value any    `json:"value"`
}

// Read reads one value over line, which must be running.
func Read(ctx context.Context, line *hw.Line, args ReadArgs) (ReadResult, error) {
	at, err := modbus.ParseAddress(args.At)
	if err != nil {
		return ReadResult{}, command.Refuse("bad-args", "at: %w", err)
	}
	kind, err := point.ParseType(args.Type)
	if err != nil {
		return ReadResult{}, command.Refuse("bad-args", "type: %w", err)
	}
	raw, err := line.Read(ctx, hw.Query{Unit: args.Unit, At: at, Type: kind})
	if err != nil {
		return ReadResult{}, err
	}
	result := ReadResult{Raw: hex.EncodeToString(raw)}
	for _, ordered := range point.Orders(raw, kind) {
		value := ReadValue{Order: ordered.Order.String()}
		if ordered.Err != nil {
			value.Error = ordered.Err.Error()
		} else {
			value.Value = ordered.Value.AppendJSON(nil)
		}
		result.Values = append(result.Values, value)
	}
	return result, nil
}

func (a *agent) readCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args ReadArgs
	if err := command.Arguments(raw, &args); err != nil {
		return nil, err
	}
	line, err := a.line(args.Line)
	if err != nil {
		return nil, err
	}
	return Read(ctx, line, args)
}

// writeTarget is what a token must grant: the very point and value that writeCommand will write.
func writeTarget(op *authorize.Operation, raw json.RawMessage) error {
	var args WriteArgs
	if err := command.Arguments(raw, &args); err != nil {
		return err
	}
	op.Line, op.Unit, op.Point, op.Value = args.Line, args.Unit, args.Point, args.Value
	return nil
}

func (a *agent) writeCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args WriteArgs
	if err := command.Arguments(raw, &args); err != nil {
		return nil, err
	}
	line, err := a.line(args.Line)
	if err != nil {
		return nil, err
	}
	return line.Write(ctx, args.Unit, args.Point, args.Value)
}

func (a *agent) line(name string) (*hw.Line, error) {
	for _, line := range a.lines {
		if line.Name() == name {
			return line, nil
		}
	}
	return nil, command.Refuse("unknown-line", "there is no line %q", name)
}
