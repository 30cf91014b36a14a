package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"ferrule/agent"
	"ferrule/agent/config"
	"ferrule/agent/doctor"
	"ferrule/agent/local"
	"ferrule/agent/session/dial"
	"ferrule/internal/hint"
)

// doctorOptions are the flags of ferrule doctor.
type doctorOptions struct {
	compare string
	explain bool
	archive string
	broker  string
}

func doctorFlags(e *env) {
	e.jsonFlag()
	o := &e.doctor
	e.flags.StringVar(&o.compare, "compare", "", "name the first difference to this `file`, what --json said where it worked")
	e.flags.BoolVar(&o.explain, "explain", false, "show the handshake as it happened, message by message")
	e.flags.StringVar(&o.archive, "archive", "", "write everything into this new `file` (.tar.gz) for support, without secrets")
	e.flags.StringVar(&o.broker, "broker", "", "look at this broker (`URL`) alone")
}

// doctorTimeout bounds a whole run.
const doctorTimeout = time.Minute

// maxCompared bounds the report that is compared with, in bytes.
const maxCompared = 4 << 20

// errDoctor says that the report, which was printed, names what fails.
var errDoctor = errors.New("a layer fails")

// examination is what doctor prints as JSON.
type examination struct {
	doctor.Report
	Comparison *doctor.Comparison `json:"comparison,omitempty"`
}

// runDoctor looks at every layer, through the running agent where there is one. The exit code is
// that of the layer that fails.
func runDoctor(ctx context.Context, e *env) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	var theirs doctor.Report
	if e.doctor.compare != "" {
		if err := readReport(e.doctor.compare, &theirs); err != nil {
			return withCode(exitUsage, err)
		}
	}
	if _, err := dial.ParseBroker(e.doctor.broker); e.doctor.broker != "" && err != nil {
		return withCode(exitUsage, fmt.Errorf("--broker: %w", err))
	}
	report, err := examine(ctx, e)
	if err != nil {
		return err
	}
	x := examination{Report: report}
	if e.doctor.compare != "" {
		c := doctor.Compare(report, theirs)
		x.Comparison = &c
	}
	if e.json {
		err = printJSON(e, x)
	} else {
		err = x.print(e.stdout, doctor.Style{Color: colorful(e.stdout)}, e.doctor.explain)
	}
	if e.doctor.archive != "" && err == nil {
		err = writeArchive(ctx, e, x)
	}
	if err == nil && report.State == doctor.Failed {
		return withCode(doctorCode(report), errDoctor)
	}
	return err
}

// examine asks the running agent, which holds TPM and lines, or else looks by itself.
func examine(ctx context.Context, e *env) (doctor.Report, error) {
	args := agent.DoctorArgs{Explain: e.doctor.explain || e.doctor.archive != "", Broker: e.doctor.broker}
	bar := newWatch(e.stderr)
	defer bar.end()
	c, err := loadConfig(e)
	if err == nil {
		bar.show("asking the running agent")
		report, asked, err := examineAgent(ctx, c, args)
		if asked {
			return report, err
		}
	}
	return agent.Doctor(ctx, agent.DoctorOptions{
		Load: func() (*config.Config, error) { return config.Load(e.configPath) },
		File: e.configPath, Version: version, Built: buildTime(), Args: args,
		Progress: func(layer doctor.Layer, broker string) { bar.show(string(layer) + " " + broker) },
	})
}

// examineAgent has the running agent look. It answers false where none runs.
func examineAgent(ctx context.Context, c *config.Config, args agent.DoctorArgs) (report doctor.Report, asked bool, err error) {
	text, err := local.Dial(c.Local.Socket).Command(ctx, "doctor", args)
	if c.Local.Socket == "" || errors.Is(err, local.ErrNotRunning) {
		return report, false, nil
	}
	if refused, ok := errors.AsType[*local.Error](err); ok && refused.Code == "unknown-command" {
		return report, true, withCode(exitSession, hint.With(errors.New("the running agent is of another version, which cannot look at itself"), "restart the agent"))
	}
	if err != nil {
		return report, true, withCode(exitSession, err)
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return report, true, fmt.Errorf("reading the agent's answer: %w", err)
	}
	return report, true, nil
}

// readReport reads what doctor --json has printed.
func readReport(name string, r *doctor.Report) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("--compare: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCompared+1))
	switch {
	case err != nil:
		return fmt.Errorf("--compare: reading %s: %w", name, err)
	case len(text) > maxCompared:
		return fmt.Errorf("--compare: %s is larger than %d bytes", name, maxCompared)
	}
	if err := json.Unmarshal(text, r); err != nil || r.Schema != 1 {
		return hint.With(fmt.Errorf("--compare: %s is not what ferrule doctor --json prints", name),
			"on a gateway where it works: ferrule doctor --json > FILE")
	}
	return nil
}

// print is for people.
func (x examination) print(w io.Writer, s doctor.Style, explain bool) error {
	if err := x.Print(w, s); err != nil {
		return err
	}
	if explain {
		fmt.Fprintln(w)
		if err := x.Explain(w); err != nil {
			return err
		}
	}
	if x.Comparison == nil {
		return nil
	}
	return x.Comparison.Print(w)
}

// doctorCode is the exit code of the layer that fails.
func doctorCode(r doctor.Report) int {
	failed, _ := r.First()
	if failed.Cause == "wrong-tpm" {
		return exitNoRestart
	}
	codes := map[doctor.Layer]int{doctor.Configuration: exitConfig, doctor.TPM: exitTPM, doctor.Identity: exitIdentity,
		doctor.Lines: exitLine, doctor.Outbox: exitOutbox, doctor.Disk: exitOutbox,
		doctor.Updates: exitUpdateFailed}
	if code, known := codes[failed.Layer]; known {
		return code
	}
	return exitSession // the clock is a reason why a session fails, and all others are parts of the way
}

// colorful says whether w is a terminal whose user has nothing against colour (no-color.org).
func colorful(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isTerminal says whether somebody may be watching: a terminal, and not the null device.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// watch shows on a terminal which layer is being looked at.
type watch struct {
	w       io.Writer
	visible bool
	showing chan string
	ended   chan struct{}
}

func newWatch(w io.Writer) *watch {
	b := &watch{w: w, visible: isTerminal(w), showing: make(chan string, 64), ended: make(chan struct{})}
	go b.run()
	return b
}

// run shows what it is told until end.
func (b *watch) run() {
	defer close(b.ended)
	for text := range b.showing {
		if b.visible {
			fmt.Fprintf(b.w, "\r\x1b[K%.72s …", visible(text))
		}
	}
	if b.visible {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// show may be called from any goroutine; what does not fit is not shown.
func (b *watch) show(text string) {
	select {
	case b.showing <- text:
	default:
	}
}

func (b *watch) end() {
	close(b.showing)
	<-b.ended
}
