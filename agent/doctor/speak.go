package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
)

// doctorID is the client id that doctor uses: never the session's, which would throw it out.
func (o *Options) doctorID() string { return o.ClientID + "-doctor" }

// speak speaks MQTT on conn, or takes the word of the session that does.
func (w *way) speak(ctx context.Context, conn *dial.Conn) cause.Failure {
	if w.o.Session != nil {
		if s := w.o.Session(); s.Broker == w.facts.Broker {
			w.bySession(s)
			return cause.Failure{}
		}
	}
	w.o.begin(MQTT, w.facts.Broker)
	t := newTalk(conn)
	defer t.close()
	_, took, err := t.connect(ctx, w.o.doctorID(), true, w.o.Timeouts.Connack)
	if err != nil && refusesID(err) {
		return w.otherID(ctx, conn.Explain(err))
	}
	if err != nil {
		return cause.Classify(cause.StageConnack, conn.Explain(err))
	}
	w.saw(MQTT, took, fmt.Sprintf("CONNECT as %q was answered in %s", w.o.doctorID(), short(took)))
	if failure := w.subscribe(ctx, t); failure.Cause != "" {
		return failure
	}
	return w.publish(ctx, t)
}

func (w *way) saw(layer Layer, took time.Duration, text string) {
	r := w.results[layer]
	r.Saw, r.Took = append(r.Saw, text), took
	w.results[layer] = r
}

func (w *way) unneeded(layer Layer, why string) {
	w.results[layer] = Result{State: NotNeeded, Saw: []string{why}}
}

// bySession tells what the running session knows better than any test.
func (w *way) bySession(s Session) {
	w.saw(MQTT, 0, "the running session stands since "+stamp(s.Since))
	switch {
	case w.o.Filter == "":
		w.unneeded(Subscription, "no commands are taken: session.topics.command is empty")
	case s.Subscribed:
		w.saw(Subscription, 0, "the running session hears commands on "+w.o.Filter)
	default:
		r := Result{}
		r.Warn("the running session hears no commands: its subscription was refused or is lost",
			"let the broker's access rules permit this device to subscribe to session.topics.command")
		w.results[Subscription] = r
	}
	w.saw(RoundTrip, 0, fmt.Sprintf("the running session had %d of %d messages acknowledged", s.Acked, s.Published))
	if s.Published > 0 && s.Acked == 0 {
		r := w.results[RoundTrip]
		r.Warn("no message of this session was acknowledged yet", "look again in a minute; then at the broker's load and disk")
		w.results[RoundTrip] = r
	}
}

// otherID is what to do about a broker that takes no other client id than the device's own: where no
// agent runs, nobody is thrown out by it.
func (w *way) otherID(ctx context.Context, refusal error) cause.Failure {
	failure := cause.Classify(cause.StageConnack, refusal)
	if w.o.Alone == nil || !w.o.Alone() {
		return w.refusedID(failure)
	}
	conn, err := w.dial(ctx, w.o.Dial)
	if err != nil {
		return failure
	}
	t := newTalk(conn)
	defer t.close()
	// Not clean: what the broker keeps for the device, it keeps.
	_, took, err := t.connect(ctx, w.o.ClientID, false, w.o.Timeouts.Connack)
	if err != nil {
		own := cause.Classify(cause.StageConnack, conn.Explain(err))
		own.Text += fmt.Sprintf("; so it was answered to %q and to %q", w.o.doctorID(), w.o.ClientID)
		return own
	}
	w.saw(MQTT, took, fmt.Sprintf("CONNECT as %q was answered in %s", w.o.ClientID, short(took)))
	w.saw(MQTT, took, fmt.Sprintf("the broker refused the client id %q: it takes none but the device's own", w.o.doctorID()))
	if w.o.Filter != "" {
		w.unneeded(Subscription, "not tried: it would change what the broker keeps for the device's own client id")
	} else {
		w.unneeded(Subscription, "no commands are taken: session.topics.command is empty")
	}
	return w.publish(ctx, t)
}

// refusedID says what is known where an agent runs, whose own id must not be used.
func (w *way) refusedID(failure cause.Failure) cause.Failure {
	if w.o.Session != nil {
		if last := w.o.Session().Last; last != nil && last.Stage == cause.StageConnack {
			return *last // the session's own id was refused, too
		}
	}
	failure.Cause = CauseDoctorID
	failure.Text = cause.Printable(fmt.Sprintf("the broker refused the client id %q, which doctor uses beside a running agent: %s", w.o.doctorID(), failure.Text))
	failure.Hint = answer(CauseDoctorID).Repair
	return failure
}

func (w *way) subscribe(ctx context.Context, t *talk) cause.Failure {
	if w.o.Filter == "" {
		w.unneeded(Subscription, "no commands are taken: session.topics.command is empty")
		return cause.Failure{}
	}
	w.o.begin(Subscription, w.facts.Broker)
	qos, took, err := t.subscribe(ctx, w.o.Filter, w.o.Timeouts.Suback)
	if err != nil {
		return cause.Classify(cause.StageSuback, err)
	}
	w.saw(Subscription, took, fmt.Sprintf("SUBSCRIBE to %s was answered in %s", w.o.Filter, short(took)))
	if qos == 0 {
		r := w.results[Subscription]
		r.Warn("the broker grants commands at QoS 0 only: one that is sent while the link is down is lost", "allow QoS 1 on the broker")
		w.results[Subscription] = r
	}
	return cause.Failure{}
}

func (w *way) publish(ctx context.Context, t *talk) cause.Failure {
	if w.o.Probe == "" {
		w.unneeded(RoundTrip, "no topic of ours is configured that nobody reads")
		return cause.Failure{}
	}
	w.o.begin(RoundTrip, w.facts.Broker)
	took, err := t.publish(ctx, w.o.Probe, w.o.Timeouts.Puback)
	switch {
	case err == nil:
		w.saw(RoundTrip, took, fmt.Sprintf("a message on %s was acknowledged in %s", w.o.Probe, short(took)))
		return cause.Failure{}
	case errors.Is(err, cause.ErrStalled):
		return cause.Classify(cause.StageUp, fmt.Errorf("%w: %w", cause.ErrNoAck, err))
	case cause.IsClosed(err):
		f := cause.Classify(cause.StageUp, err)
		f.Cause = CausePublish
		f.Text = cause.Printable(fmt.Sprintf("the broker closed the connection when a message came on %s (%v)", w.o.Probe, err))
		f.Hint = answer(CausePublish).Repair
		return f
	}
	return cause.Classify(cause.StageUp, err)
}
