package agent

import (
	"context"
	"fmt"

	"ferrule/agent/session"
	"ferrule/agent/session/cause"
	"ferrule/firmware"
	"ferrule/hw"
)

// health is what the agent knows of itself while a slot is on trial.
func (u *updates) health(context.Context) firmware.Health {
	st := u.a.session.Status()
	h := firmware.Health{Session: st.Stage == cause.StageUp, Network: networkOut(st)}
	h.Reported = u.announced.Load() || h.Session && u.a.config.Session.Topics.Status == ""
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, line := range u.a.lines {
		s := line.Status()
		for _, unit := range s.Units {
			h.Lines = append(h.Lines, u.unitHealth(s, unit))
		}
	}
	return h
}

// networkOut is why the network itself is out: no name is resolved, nobody or no proxy answers. A
// broker that refuses us, or whose certificate does, is none: that may be the update's doing.
func networkOut(st session.Status) string {
	f := st.LastFailure
	if st.Stage == cause.StageUp || st.Stage == cause.StageSuback || f == nil {
		return ""
	}
	switch f.Stage {
	case cause.StageDNS, cause.StageTCP, cause.StageProxy:
		return fmt.Sprintf("%s: %s", f.Stage, f.Text)
	}
	if f.Side == cause.SideNetwork {
		return fmt.Sprintf("%s: %s", f.Stage, f.Text)
	}
	return ""
}

// unitHealth judges one unit. One that has answered since the start may miss two polls, as it may
// on any day.
func (u *updates) unitHealth(line hw.Status, unit hw.UnitStatus) firmware.LineHealth {
	l := firmware.LineHealth{Name: line.Name + "/" + unit.Name}
	switch unit.State {
	case hw.UnitOK:
		u.answered[l.Name], l.OK = true, true
		return l
	case hw.UnitMissed:
		l.OK = u.answered[l.Name]
	}
	switch {
	case l.OK:
	case line.Problem != "":
		l.Why = line.Problem
	case unit.LastError != "":
		l.Why = unit.LastError
	default:
		l.Why = "not heard since the start"
	}
	return l
}
