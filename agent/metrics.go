package agent

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/VictoriaMetrics/metrics"

	"ferrule/agent/session/cause"
	"ferrule/hw"
)

// writeMetrics writes s in the Prometheus text format. Names follow its conventions: a base
// unit at the end, _total for counters.
func writeMetrics(w io.Writer, s Status) {
	gauge := func(name string, value float64) { metrics.WriteGaugeFloat64(w, name, value) }
	count := func(name string, value uint64) { metrics.WriteCounterUint64(w, name, value) }

	gauge(fmt.Sprintf(`ferrule_info{device=%q,version=%q}`, s.Device, s.Version), 1)
	gauge("ferrule_boot", float64(s.Boot))
	gauge("ferrule_clock_trusted", number(s.Clock.Trusted))

	gauge("ferrule_certificate_expiry_timestamp_seconds", float64(s.Identity.NotAfter.Unix()))
	gauge("ferrule_key_weak", number(s.Identity.Weak))
	gauge("ferrule_certificate_alarm", number(s.Identity.Alarm != ""))
	count("ferrule_tls_full_handshakes_total", s.Identity.FullHandshakes)
	count("ferrule_tls_resumed_handshakes_total", s.Identity.Resumed)
	if s.Identity.TPM != nil {
		gauge("ferrule_tpm_lockout_counter", float64(s.Identity.TPM.LockoutCounter))
		for _, name := range slices.Sorted(maps.Keys(s.Identity.TPM.Commands)) {
			count(fmt.Sprintf("ferrule_tpm_commands_total{command=%q}", name), s.Identity.TPM.Commands[name])
		}
	}

	gauge("ferrule_session_up", number(s.Session.Stage == cause.StageUp))
	count("ferrule_session_connects_total", s.Session.Connects)
	count("ferrule_messages_published_total", s.Session.Published)
	count("ferrule_messages_acknowledged_total", s.Session.Acked)
	count("ferrule_messages_resent_total", s.Session.Resent)

	count("ferrule_wire_sent_bytes_total", s.Session.Wire.Sent)
	count("ferrule_wire_received_bytes_total", s.Session.Wire.Received)
	count("ferrule_session_takeovers_total", s.Session.Takeovers)
	count("ferrule_session_lost_by_broker_total", s.Session.SessionsLost)
	gauge("ferrule_session_quarantined_topics", float64(len(s.Session.Quarantined)))
	if b := s.Session.Budget; b != nil {
		gauge("ferrule_budget_spent_bytes", float64(b.Spent))
		gauge("ferrule_budget_limit_bytes", float64(b.Limit))
	}
	count("ferrule_readings_total", s.Wire.Readings)

	gauge("ferrule_outbox_depth", float64(s.Outbox.Depth))
	gauge("ferrule_outbox_bytes", float64(s.Outbox.Bytes))
	gauge("ferrule_outbox_oldest_age_seconds", s.Outbox.OldestAge)
	gauge("ferrule_outbox_problem", number(s.Outbox.Problem != ""))
	count("ferrule_entries_appended_total", s.Outbox.Appended)
	count("ferrule_entries_dropped_total", s.Outbox.Dropped)
	count("ferrule_entries_expired_total", s.Outbox.Expired)
	count("ferrule_outbox_written_bytes_total", uint64(s.Outbox.WrittenBytes))

	count("ferrule_commands_executed_total", s.Commands.Executed)
	count("ferrule_commands_refused_total", s.Commands.Refused)
	for _, code := range slices.Sorted(maps.Keys(s.Authorize.Refused)) {
		count(fmt.Sprintf("ferrule_authorizations_refused_total{code=%q}", code), s.Authorize.Refused[code])
	}
	gauge("ferrule_audit_problem", number(s.Audit.Problem != ""))
	for _, line := range s.Lines {
		writeLineMetrics(w, line)
	}
}

func writeLineMetrics(w io.Writer, line hw.Status) {
	metrics.WriteGaugeFloat64(w, fmt.Sprintf("ferrule_line_up{line=%q}", line.Name), number(line.State == hw.StateUp))
	metrics.WriteGaugeFloat64(w, fmt.Sprintf("ferrule_line_load_ratio{line=%q}", line.Name), line.LoadPercent/100)
	for _, kind := range slices.Sorted(maps.Keys(line.Errors)) {
		metrics.WriteCounterUint64(w, fmt.Sprintf("ferrule_line_errors_total{line=%q,kind=%q}", line.Name, kind), line.Errors[kind])
	}
	for _, unit := range line.Units {
		labels := fmt.Sprintf("line=%q,unit=%q", line.Name, unit.Name)
		metrics.WriteCounterUint64(w, "ferrule_polls_total{"+labels+"}", unit.Polls)
		for _, kind := range slices.Sorted(maps.Keys(unit.Errors)) {
			metrics.WriteCounterUint64(w, fmt.Sprintf("ferrule_poll_errors_total{%s,kind=%q}", labels, kind), unit.Errors[kind])
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
