package agent

import (
	"context"
	"encoding/json"
	"math"
	"reflect"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/agent/trust"
	"ferrule/hw"
)

// Status is what /status and ferrule status --json show.
type Status struct {
	Version  string          `json:"version"`
	Device   string          `json:"device"`
	Boot     uint64          `json:"boot"`
	Started  time.Time       `json:"started"`
	Clock    ClockStatus     `json:"clock"`
	Identity identity.Status `json:"identity"`
	Session  session.Status  `json:"session"`
	Outbox   outbox.Status   `json:"outbox"`
	Lines    []hw.Status     `json:"lines"`
	Commands command.Status  `json:"commands"`
	// Authorize says who may act, and what was refused.
	Authorize authorize.Status `json:"authorize"`
	Audit     audit.Status     `json:"audit"`
	Trust     TrustStatus      `json:"trust"`
	Config    ConfigStatus     `json:"config"`
	// Update is absent where no updates are configured.
	Update *UpdateStatus `json:"update,omitempty"`
	Local  local.Status  `json:"local"`
	Wire   WireStatus    `json:"wire"`
}

// WireStatus is what readings cost.
type WireStatus struct {
	// Encoding of the messages, such as "json+zstd".
	Encoding string `json:"encoding"`
	// Readings taken from the lines since the start.
	Readings uint64 `json:"readings"`
	// BytesPerReading is what TCP carried to the broker since the start, TLS, connecting and status
	// included, for each reading that was acknowledged. 0: none was.
	BytesPerReading float64 `json:"bytes_per_reading"`
}

// wireStatus spreads what was sent over the readings that were acknowledged: as many as an entry
// has on average.
func (a *agent) wireStatus(sent uint64, o outbox.Status) WireStatus {
	w := WireStatus{Encoding: a.encoder.Encoding(), Readings: a.readings.Load()}
	if o.Seq > 0 && o.Acked > 0 && w.Readings > 0 {
		each := float64(w.Readings) / float64(o.Seq)
		w.BytesPerReading = math.Round(10*float64(sent)/(each*float64(o.Acked))) / 10
	}
	return w
}

// ClockStatus is what the agent makes of the system's clock.
type ClockStatus struct {
	Now     time.Time `json:"now"`
	Floor   time.Time `json:"floor"`
	Trusted bool      `json:"trusted"`
}

// TrustStatus is whom the agent believes.
type TrustStatus struct {
	Broker     trust.RootsStatus      `json:"broker"`
	Registrar  *trust.RootsStatus     `json:"registrar,omitempty"`
	Revocation trust.RevocationStatus `json:"revocation"`
}

func (a *agent) status() Status {
	s := Status{
		Version:   a.options.Version,
		Device:    a.identity.Device(),
		Boot:      a.outbox.Boot(),
		Started:   a.started,
		Clock:     ClockStatus{Now: a.clock.Now(), Floor: a.clock.Floor(), Trusted: a.clock.Trusted()},
		Identity:  a.identity.Status(),
		Session:   a.session.Status(),
		Outbox:    a.outbox.Status(),
		Lines:     make([]hw.Status, 0, len(a.lines)),
		Commands:  a.commands.Status(),
		Authorize: a.authority.Status(),
		Audit:     a.audit.Status(),
		Local:     a.local.Status(),
		Trust:     TrustStatus{Broker: a.trust.brokers.Status(), Revocation: a.trust.revocation.Status()},
		Config:    a.configStatus(),
		Update:    a.updates.status(),
	}
	s.Wire = a.wireStatus(s.Session.Wire.Sent, s.Outbox)
	if a.trust.registrars != nil {
		status := a.trust.registrars.Status()
		s.Trust.Registrar = &status
	}
	for _, line := range a.lines {
		s.Lines = append(s.Lines, line.Status())
	}
	return s
}

// announcement is the retained status message (docs/topics.md): what a fleet view needs of a
// device, small enough for a metered link.
type announcement struct {
	Online  bool   `json:"online"`
	Boot    uint64 `json:"boot"`
	Version string `json:"version"`
	state
	OutboxDepth int `json:"outbox_depth"`
	// Encoding of the readings, such as "json+zstd".
	Encoding string `json:"encoding"`
	// AuditLine and AuditHash are the end of the audit log as the device's key has signed it: a
	// log that was set back as a whole ends before it.
	AuditLine uint64 `json:"audit_line,omitempty"`
	AuditHash string `json:"audit_hash,omitempty"`
	// Config is what became of the last configuration from afar.
	Config *configNews `json:"config,omitempty"`
	// Update is how updates stand; absent where none are configured.
	Update *updateNews `json:"update,omitempty"`
}

// state is the part of the announcement whose change is worth a message.
type state struct {
	CertificateExpires time.Time   `json:"certificate_expires"`
	KeyWeak            bool        `json:"key_weak,omitempty"`
	OutboxProblem      string      `json:"outbox_problem,omitempty"`
	Lines              []lineState `json:"lines"`
}

type lineState struct {
	Name  string   `json:"name"`
	State hw.State `json:"state"`
}

func (a *agent) state() state {
	id := a.identity.Status()
	s := state{CertificateExpires: id.NotAfter, KeyWeak: id.Weak, OutboxProblem: a.outbox.Status().Problem, Lines: []lineState{}}
	for _, line := range a.lines {
		s.Lines = append(s.Lines, lineState{Name: line.Name(), State: line.Status().State})
	}
	return s
}

// announcement encodes the status message.
func (a *agent) announcement() []byte {
	log := a.audit.Status()
	payload, err := json.Marshal(announcement{
		Online: true, Boot: a.outbox.Boot(), Version: a.options.Version,
		state: a.state(), OutboxDepth: a.outbox.Status().Depth, AuditLine: log.Signed, AuditHash: log.Hash,
		Config: a.configNews(), Update: a.updates.newest(), Encoding: a.encoder.Encoding(),
	})
	if err != nil {
		return nil // no field of the struct can fail to encode
	}
	return payload
}

// announceEvery is how soon the cloud learns of a change, and how often it does at most.
const announceEvery = 10 * time.Second

// announceChanges publishes the status again when a line, the outbox, the certificate or an
// update changed. It ends with ctx.
func (a *agent) announceChanges(ctx context.Context) error {
	look := time.NewTicker(announceEvery)
	defer look.Stop()
	known, updated := a.state(), a.updates.state()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
		now, update := a.state(), a.updates.state()
		if !reflect.DeepEqual(now, known) || !reflect.DeepEqual(update, updated) {
			known, updated = now, update
			a.session.Announce()
		}
	}
}
