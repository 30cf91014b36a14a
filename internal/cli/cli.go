// Package cli is the command line of the host tools: a table of commands, flags before, between and
// after the arguments, errors with their repair. The trap is a mistake that is taken for an argument,
// so how many of them a command takes is read off its own synopsis.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"ferrule/internal/hint"
)

// Exit codes.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// ErrUsage says that a flag is missing or has no sense.
var ErrUsage = errors.New("the command line is wrong")

// Command is one row of a tool's command line. E is what its functions get.
type Command[E any] struct {
	Words string // such as "token add"
	// Args are its arguments as people read them: DIR, [ID] where one may be left out, PART… where
	// there may be more, [-- COMMAND] for a program of the user's.
	Args    string
	Summary string
	Flags   func(E) // declares them; nil: none
	Run     func(context.Context, E) error
}

func (c *Command[E]) synopsis() string { return strings.TrimSpace(c.Words + " " + c.Args) }

// Call is what a command was called with.
type Call struct {
	Flags          *flag.FlagSet // of the command; its arguments, too, once they are parsed
	Program        []string      // what stands behind --
	Stdout, Stderr io.Writer
}

// Tool is a program.
type Tool[E any] struct {
	Name  string
	About string // one sentence
	More  string // where to read on
	Table []Command[E]
	// Env makes what commands get of a call whose flags are to be declared.
	Env func(*Call) E
	// Prepare is called when the flags are parsed; nil: nothing is.
	Prepare func(E) error
}

// Run runs the command that args name and returns the exit code.
func (t *Tool[E]) Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		t.usage(stdout)
		return ExitDone
	}
	var named *Command[E]
	length := 0
	for i := range t.Table {
		words := strings.Fields(t.Table[i].Words)
		if len(words) > length && len(args) >= len(words) && slices.Equal(args[:len(words)], words) {
			named, length = &t.Table[i], len(words) // "token add" goes before "token"
		}
	}
	if named == nil {
		fmt.Fprintf(stderr, "%[1]s: error: there is no command %[2]q\n%[1]s: hint: run: %[1]s help\n", t.Name, args[0])
		return ExitUsage
	}
	return t.call(ctx, named, args[length:], stdout, stderr)
}

func (t *Tool[E]) call(ctx context.Context, c *Command[E], args []string, stdout, stderr io.Writer) int {
	call := &Call{Flags: flag.NewFlagSet(c.Words, flag.ContinueOnError), Stdout: stdout, Stderr: stderr}
	call.Flags.SetOutput(io.Discard) // mistakes are printed once, in our own form
	env := t.Env(call)
	if c.Flags != nil {
		c.Flags(env)
	}
	args, call.Program = c.split(args)
	err := ParseFlags(call.Flags, args, nil)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "%s %s [flags]\n  %s\n\n", t.Name, c.synopsis(), c.Summary)
		call.Flags.SetOutput(stdout)
		call.Flags.PrintDefaults()
		return ExitDone
	}
	least, most := arity(c.Args)
	if n := call.Flags.NArg(); err == nil && (n < least || most >= 0 && n > most) {
		err = fmt.Errorf("%s takes %s beside its flags, not %d", c.Words, arguments(least, most), n)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%[1]s: error: %[2]v\n%[1]s: hint: usage: %[1]s %[3]s [flags]\n", t.Name, err, c.synopsis())
		return ExitUsage
	}
	if t.Prepare != nil {
		err = t.Prepare(env)
	}
	if err == nil {
		err = c.Run(ctx, env)
	}
	return t.report(stderr, err)
}

func (t *Tool[E]) report(stderr io.Writer, err error) int {
	if err == nil {
		return ExitDone
	}
	fmt.Fprintf(stderr, "%s: error: %v\n", t.Name, err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "%s: hint: %s\n", t.Name, h)
	}
	if errors.Is(err, ErrUsage) {
		return ExitUsage
	}
	return ExitFailed
}

// split takes off a program of the user's, which stands behind --.
func (c *Command[E]) split(args []string) (own, program []string) {
	n := slices.Index(args, "--")
	if n < 0 || !strings.Contains(c.Args, "[-- ") {
		return args, nil
	}
	return args[:n], args[n+1:]
}

func (t *Tool[E]) usage(w io.Writer) {
	width := 0
	for i := range t.Table {
		width = max(width, len([]rune(t.Table[i].synopsis())))
	}
	fmt.Fprintf(w, "%s %s\n\n", t.Name, t.About)
	for i := range t.Table {
		fmt.Fprintf(w, "  %s %-*s %s\n", t.Name, width+len(" [flags]"), t.Table[i].synopsis()+" [flags]", t.Table[i].Summary)
	}
	fmt.Fprintf(w, "\nEvery command has --help. %s\n", t.More)
}

// arity is how many arguments a command takes beside its flags: of "DIR [ID]" one or two, of
// "REPO [RELEASE…]" one or more, where most is -1.
func arity(args string) (least, most int) {
	for _, word := range strings.Fields(args) {
		if word == "[--" {
			break
		}
		if word[0] != '[' {
			least++
		}
		if strings.Contains(word, "…") {
			most = -1
		}
		if most >= 0 {
			most++
		}
	}
	return least, most
}

func arguments(least, most int) string {
	switch most {
	case least:
		return fmt.Sprintf("%d arguments", most)
	case -1:
		return fmt.Sprintf("%d arguments or more", least)
	}
	return fmt.Sprintf("%d to %d arguments", least, most)
}

// ParseFlags accepts flags before, between and after the arguments, as people type them. argument
// says which words with a dash are arguments all the same, such as negative numbers; nil: none but -.
func ParseFlags(flags *flag.FlagSet, args []string, argument func(string) bool) error {
	var positional []string
	for {
		if err := flags.Parse(args); err != nil {
			return err
		}
		rest := flags.Args()
		for len(rest) > 0 && (!strings.HasPrefix(rest[0], "-") || rest[0] == "-" || argument != nil && argument(rest[0])) {
			positional, rest = append(positional, rest[0]), rest[1:]
		}
		if len(rest) == 0 {
			return flags.Parse(append([]string{"--"}, positional...))
		}
		args = rest
	}
}
