package agent

import (
	"encoding/json"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
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
	Commands CommandStatus   `json:"commands"`
}

// ClockStatus is what the agent makes of the system's clock.
type ClockStatus struct {
	Now     time.Time `json:"now"`
	Floor   time.Time `json:"floor"`
	Trusted bool      `json:"trusted"`
}

// CommandStatus counts commands since the start.
type CommandStatus struct {
	Executed uint64 `json:"executed"`
	Refused  uint64 `json:"refused"`
}

func (a *agent) status() Status {
	s := Status{
		Version:  a.options.Version,
		Device:   a.identity.Device(),
		Boot:     a.outbox.Boot(),
		Started:  a.started,
		Clock:    ClockStatus{Now: a.clock.Now(), Floor: a.clock.Floor(), Trusted: a.clock.Trusted()},
		Identity: a.identity.Status(),
		Session:  a.session.Status(),
		Outbox:   a.outbox.Status(),
		Lines:    make([]hw.Status, 0, len(a.lines)),
		Commands: CommandStatus{Executed: a.commands.executed.Load(), Refused: a.commands.refused.Load()},
	}
	for _, line := range a.lines {
		s.Lines = append(s.Lines, line.Status())
	}
	return s
}

// announcement is the retained status message (docs/topics.md): what a fleet view needs of a
// device, small enough for a metered link.
func (a *agent) announcement() []byte {
	type lineState struct {
		Name  string `json:"name"`
		State string `json:"state"`
	}
	announced := struct {
		Online             bool        `json:"online"`
		Boot               uint64      `json:"boot"`
		Version            string      `json:"version"`
		CertificateExpires time.Time   `json:"certificate_expires"`
		KeyWeak            bool        `json:"key_weak,omitempty"`
		OutboxDepth        int         `json:"outbox_depth"`
		OutboxProblem      string      `json:"outbox_problem,omitempty"`
		Lines              []lineState `json:"lines"`
	}{Online: true, Boot: a.outbox.Boot(), Version: a.options.Version, Lines: []lineState{}}
	id, out := a.identity.Status(), a.outbox.Status()
	announced.CertificateExpires, announced.KeyWeak = id.NotAfter, id.Weak
	announced.OutboxDepth, announced.OutboxProblem = int(out.Depth), out.Problem
	for _, line := range a.lines {
		status := line.Status()
		announced.Lines = append(announced.Lines, lineState{Name: status.Name, State: string(status.State)})
	}
	payload, err := json.Marshal(announced)
	if err != nil {
		return nil // no field of the struct above can fail to encode
	}
	return payload
}
