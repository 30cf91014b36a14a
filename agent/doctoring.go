package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/agent/clock"
	"ferrule/agent/command"
	"ferrule/agent/config"
	"ferrule/agent/doctor"
	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
	"ferrule/agent/trust"
	"ferrule/hw"
	"ferrule/internal/disk"
)

// DoctorArgs asks for a look at every layer.
type DoctorArgs struct {
	// Explain keeps the handshakes, message by message, in the report.
	Explain bool `json:"explain,omitempty"`
	// Broker is the one to look at, one of session.brokers; empty: all of them.
	Broker string `json:"broker,omitempty"`
}

// doctorMargin is what is left of a command's time when doctor has to have finished.
const doctorMargin = 3 * time.Second

// doctorCommand has doctor look at the running agent. MQTT is the running session's: its client id is
// taken, and doctor has another one only where the session is down.
func (a *agent) doctorCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args DoctorArgs
	if err := optional(raw, &args); err != nil {
		return nil, err
	}
	brokers, err := brokersOf(a.config, args.Broker)
	if err != nil {
		return nil, command.Refuse("bad-args", "broker: %w", err)
	}
	if args.Broker != "" && !slices.Contains(a.config.Session.Brokers, args.Broker) {
		return nil, command.Refuse("bad-args", "broker: %q is none of session.brokers; a running agent shows its certificate to no other", args.Broker)
	}
	return doctor.Run(ctx, a.doctorOptions(ctx, args, brokers)), nil
}

func (a *agent) doctorOptions(ctx context.Context, args DoctorArgs, brokers []dial.Broker) doctor.Options {
	device := a.identity.Device()
	o := doctor.Options{
		Version: a.options.Version, Device: device, By: doctor.ByAgent, Clock: a.clock, Explain: args.Explain,
		Credential: a.identity.Current, Brokers: brokers, Dial: a.config.Session.Config,
		Roots: a.trust.brokers.Pool, Verify: a.trust.revocation.Check, Session: a.doctorSession,
		Checks: []doctor.Check{
			{Layer: doctor.Configuration, Run: func(context.Context) doctor.Result { return a.checkRunning() }},
			{Layer: doctor.Disk, Run: func(context.Context) doctor.Result { return checkDisk(a.config) }},
			{Layer: doctor.TPM, Run: a.checkTPM},
			{Layer: doctor.Identity, Run: func(context.Context) doctor.Result { return checkIdentity(a.identity, a.clock.Now()) }},
			{Layer: doctor.Lines, Run: func(context.Context) doctor.Result { return checkRunningLines(a.lines) }},
			{Layer: doctor.Outbox, Run: func(context.Context) doctor.Result { return checkOutbox(a.outbox.Status()) }},
			{Layer: doctor.Updates, Run: func(context.Context) doctor.Result { return checkUpdates(a.updates.status()) }},
		},
	}
	nameTopics(&o, a.config, device)
	if until, bounded := ctx.Deadline(); bounded {
		o.Timeouts.All = max(min(time.Until(until)-doctorMargin, doctor.DefaultTimeouts().All), time.Second)
	}
	return o
}

// doctorSession tells doctor how the session is.
func (a *agent) doctorSession() doctor.Session {
	s := a.session.Status()
	up := doctor.Session{Since: s.Since, Subscribed: s.Subscribed, Published: s.Published, Acked: s.Acked, Last: s.LastFailure}
	if s.Stage == cause.StageUp || s.Stage == cause.StageSuback {
		up.Broker = s.Broker
	}
	return up
}

// nameTopics expands what the session tells the broker for device.
func nameTopics(o *doctor.Options, c *config.Config, device string) {
	vars := map[string]string{"device": device}
	o.Device = device
	if id, err := encode.ExpandTopic(c.Session.ClientID, vars); err == nil {
		o.ClientID = id
	}
	if c.Session.Topics.Command == "" {
		return
	}
	o.Filter = encode.Filter(c.Session.Topics.Command, vars)
	if topic, err := encode.ExpandTopic(c.Session.Topics.Reply, map[string]string{"device": device, "id": "doctor"}); err == nil {
		o.Probe = topic
	}
}

// brokersOf parses one broker, or those of the configuration.
func brokersOf(c *config.Config, one string) (brokers []dial.Broker, err error) {
	texts := c.Session.Brokers
	if one != "" {
		texts = []string{one}
	}
	for _, text := range texts {
		b, err := dial.ParseBroker(text)
		if err != nil {
			return nil, err
		}
		brokers = append(brokers, b)
	}
	return brokers, nil
}

// DoctorOptions is what a look without a running agent needs.
type DoctorOptions struct {
	// Load reads the configuration; its error is what doctor then reports.
	Load     func() (*config.Config, error)
	File     string
	Version  string
	Built    time.Time
	Args     DoctorArgs
	Progress func(layer doctor.Layer, broker string)
}

// Doctor looks at every layer where no agent runs. It opens key and TPM, and changes nothing on disk or
// TPM. The error is that of a broker that cannot be one.
func Doctor(ctx context.Context, o DoctorOptions) (doctor.Report, error) {
	c, err := o.Load()
	if err != nil {
		return doctor.Run(ctx, doctor.Options{Version: o.Version, By: doctor.ByCommand, Checks: []doctor.Check{
			{Layer: doctor.Configuration, Run: func(context.Context) doctor.Result { return unreadable(err) }},
		}}), nil
	}
	brokers, err := brokersOf(c, o.Args.Broker)
	if err != nil {
		return doctor.Report{}, err
	}
	v := &visit{config: c, o: o, log: slog.New(slog.DiscardHandler), fsys: readOnly{disk.OS()}}
	defer v.close()
	v.clock = clock.Open(v.fsys, filepath.Join(c.StateDir, "time"), o.Built, v.log)
	return doctor.Run(ctx, v.options(brokers)), nil
}

// visit is one look without a running agent.
type visit struct {
	config   *config.Config
	o        DoctorOptions
	log      *slog.Logger
	fsys     disk.FS
	clock    *clock.Clock
	identity *identity.Identity // nil: it could not be opened
	absent   bool               // the TPM has no SRK, so that opening the key would make one
	roots    error              // why brokers cannot be judged
}

func (v *visit) close() {
	if v.identity != nil {
		_ = v.identity.Close()
	}
}

func (v *visit) options(brokers []dial.Broker) doctor.Options {
	o := doctor.Options{
		Version: v.o.Version, By: doctor.ByCommand, Clock: v.clock, Explain: v.o.Args.Explain, Progress: v.o.Progress,
		Brokers: brokers, Dial: v.config.Session.Config, Alone: func() bool { return !agentRuns(v.config.StateDir) },
		Settle: v.settle,
		Checks: []doctor.Check{
			{Layer: doctor.Configuration, Run: func(context.Context) doctor.Result { return v.checkFile() }},
			{Layer: doctor.Disk, Run: func(context.Context) doctor.Result { return checkDisk(v.config) }},
			{Layer: doctor.TPM, Run: v.checkTPM},
			{Layer: doctor.Identity, Run: v.checkIdentity},
			{Layer: doctor.Lines, Run: func(context.Context) doctor.Result { return checkPorts(v.config.Lines) }},
			{Layer: doctor.Outbox, Run: func(context.Context) doctor.Result { return checkOutboxFiles(v.fsys, v.config) }},
		},
	}
	v.believe(&o)
	return o
}

// believe has brokers judged as the agent judges them.
func (v *visit) believe(o *doctor.Options) {
	t := trust.Options{FS: v.fsys, StateDir: v.config.StateDir, Clock: v.clock, Log: v.log}
	roots, err := trust.OpenRoots(trust.RootsConfig{Name: "broker", File: v.config.Session.Roots}, t)
	if v.roots = err; err != nil {
		return
	}
	o.Roots = roots.Pool
	revocation, err := trust.NewRevocation(v.config.Revocation, t, trust.HTTP(roots.Pool))
	if err == nil {
		o.Verify = revocation.Check
	}
}

// settle tells doctor who the device is, once its certificate was read.
func (v *visit) settle(o *doctor.Options) {
	device := v.config.Enroll.Device
	if v.identity != nil {
		o.Credential = v.identity.Current
		device = v.identity.Device()
	}
	if device == "" {
		device = "ferrule"
	}
	nameTopics(o, v.config, device)
	if v.identity == nil {
		o.Device = v.config.Enroll.Device
	}
}

// checkIdentity opens key and certificate.
func (v *visit) checkIdentity(ctx context.Context) doctor.Result {
	if v.absent {
		return doctor.Result{}.Fail("srk-absent", string(cause.SideDevice),
			"the TPM's storage root key is not in its place, and opening the device key would put it there; doctor changes nothing",
			"start the agent, which does: ferrule run")
	}
	id, err := identity.Open(ctx, v.config.Identity, identity.Options{
		StateDir: v.config.StateDir, FS: v.fsys, Clock: v.clock, Log: v.log,
	})
	if err != nil {
		return identityProblem(err)
	}
	v.identity = id
	return checkIdentity(id, v.clock.Now())
}

// agentRuns says whether an agent holds the lock of dir. It holds the lock itself for a moment.
func agentRuns(dir string) bool {
	file, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false
	}
	defer file.Close()
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK)
}

// checkRunningLines asks the lines themselves.
func checkRunningLines(lines []*hw.Line) doctor.Result {
	all := make([]hw.Status, 0, len(lines))
	for _, l := range lines {
		all = append(all, l.Status())
	}
	return checkLines(all)
}
