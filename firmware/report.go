package firmware

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"ferrule/firmware/tuf"
)

// Patience with the cloud: none is ever lost.
const (
	reportMax   = 30 * time.Second // for one acknowledgement
	reportFirst = time.Second
	reportMost  = 5 * time.Minute
)

// conclude makes an outcome of the update: what the cloud is to be told, and what is not tried
// again. It is durable with the state that follows.
func (e *Engine) conclude(outcome string) {
	e.unmarkTrial()
	u := e.saved.Update
	now, _ := e.o.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	r := Report{
		Outcome: outcome, Manifest: u.Manifest, Version: u.Version, From: u.From, Slot: string(u.Target),
		Reason: u.Reason, By: u.Request.By, Time: now.UTC(),
	}
	// An update that fails again and again for one reason is one report.
	reports := e.saved.Reports
	if n := len(reports); n > 0 && reports[n-1].Outcome == outcome && reports[n-1].Manifest == r.Manifest && reports[n-1].Reason == r.Reason {
		reports = reports[:n-1]
	}
	r.ID = fmt.Sprintf("%.16s-%d", u.Manifest+"unknown", e.saved.N+1)
	reports = append(reports, r)
	e.saved.Reports = reports[max(0, len(reports)-reportsMax):]
	if u.Give && u.Edition != "" {
		q := quarantined{Quarantined{Manifest: u.Manifest, Version: u.Version, Reason: u.Reason, Time: now.UTC()}, u.Edition}
		e.saved.Quarantine = slices.DeleteFunc(e.saved.Quarantine, func(old quarantined) bool { return old.Edition == u.Edition })
		e.saved.Quarantine = append(e.saved.Quarantine, q)
		e.saved.Quarantine = e.saved.Quarantine[max(0, len(e.saved.Quarantine)-quarantineMax):]
	}
	e.nextReport, e.reportFail = time.Time{}, 0
	if outcome == OutcomeFailed {
		e.retryLater(u)
	}
}

// retryLater has an update that failed tried again sooner than the next check, a few times.
func (e *Engine) retryLater(u *update) {
	if u.Give || u.Attempts >= attempts {
		return
	}
	wait := min(retryFirst<<max(u.Attempts-1, 0), retryMost)
	if at := time.Now().Add(wait/2 + rand.N(wait/2)); e.nextCheck.IsZero() || at.Before(e.nextCheck) {
		e.nextCheck = at
	}
}

// report is the step of reporting. The cloud may be away for weeks; a device that cannot tell must
// still be mended, so that the repository is asked meanwhile.
func (e *Engine) report(ctx context.Context) (State, error) {
	e.setWaits("")
	for len(e.saved.Reports) > 0 {
		if !time.Now().Before(e.nextReport) {
			if e.tellCloud(ctx) {
				continue
			}
		}
		next := e.nextReport
		if !e.nextCheck.IsZero() && e.nextCheck.Before(next) {
			next = e.nextCheck
		}
		e.pauseUntil(ctx, next)
		if ctx.Err() != nil {
			return Reporting, ctx.Err()
		}
		if !e.nextCheck.IsZero() && !time.Now().Before(e.nextCheck) && e.lookNow(ctx) {
			return Fetching, nil
		}
	}
	return Idle, nil
}

// tellCloud sends the oldest report; true: the cloud has it. That it has is not made durable at
// once: whoever gets a report twice knows it by its ID.
func (e *Engine) tellCloud(ctx context.Context) bool {
	oldest := e.saved.Reports[0]
	reportCtx, cancel := context.WithTimeout(ctx, reportMax)
	defer cancel()
	err := e.o.Report(reportCtx, oldest)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.saved.Reports = append([]Report(nil), e.saved.Reports[1:]...)
		e.nextReport, e.reportFail = time.Time{}, 0
		return true
	}
	if ctx.Err() == nil {
		wait := min(reportFirst<<min(e.reportFail, 20), reportMost)
		e.reportFail++
		e.nextReport = time.Now().Add(wait/2 + rand.N(wait/2+1))
		e.log.LogAttrs(ctx, slog.LevelDebug, "the cloud was not told of the update", slog.Any("err", err))
	}
	return false
}

// noteMetadata keeps what Status shows of the repository's metadata.
func (e *Engine) noteMetadata(err error) {
	s := e.trust.Status()
	now, trusted := e.o.Now()
	m := Metadata{Versions: make(map[string]int64), Expires: make(map[string]time.Time), Refreshed: s.Refreshed}
	for name, role := range map[string]tuf.RoleStatus{"root": s.Root, "timestamp": s.Timestamp, "snapshot": s.Snapshot, "targets": s.Targets} {
		if role.Version == 0 {
			continue
		}
		m.Versions[name], m.Expires[name] = role.Version, role.Expires
		if trusted && now.After(role.Expires) {
			m.Alarm = fmt.Sprintf("the %s file of the repository expired on %s: nobody signs it any more, or somebody holds newer ones back",
				name, role.Expires.Format(time.DateOnly))
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.meta = m
}
