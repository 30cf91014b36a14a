package doctor

import "ferrule/agent/session/cause"

// The causes that doctor alone can tell, since it looks closer than the session does. All others are
// those of package cause.
const (
	CauseLargeHello      cause.Cause = "large-client-hello"
	CauseNothingInCommon cause.Cause = "nothing-in-common"
	CauseDoctorID        cause.Cause = "doctor-client-id"
	CausePublish         cause.Cause = "publish-refused"
)

// Answer is what doctor says to one cause.
type Answer struct {
	Cause  cause.Cause
	Layer  Layer
	Side   cause.Side
	Text   string
	Repair string
}

// Answers returns those to the causes that doctor alone can tell.
func Answers() []Answer {
	return []Answer{
		{CauseLargeHello, TLS, cause.SideNetwork, "a ClientHello in two segments gets no answer, and a small one does",
			`something between here and the broker drops it: find the box, or set session.post_quantum = "never"`},
		{CauseNothingInCommon, TLS, cause.SideBroker, "the broker finds nothing that both speak among the device's versions, suites, groups and signature schemes",
			"look at the offer: ferrule doctor --explain; enable one of its suites and groups on the broker, or give it a certificate of ECDSA P-256 or RSA"},
		{CauseDoctorID, MQTT, cause.SideBroker, "the broker refused the client id that doctor uses beside a running agent",
			"ask the session itself: ferrule status; or stop the agent and run ferrule doctor again, which then may use the device's own id"},
		{CausePublish, RoundTrip, cause.SideBroker, "the broker closed the connection when a message came",
			"let the broker's access rules permit this device to publish to session.topics.reply and session.topics.readings"},
	}
}

// answer returns the one to c.
func answer(c cause.Cause) Answer {
	for _, a := range Answers() {
		if a.Cause == c {
			return a
		}
	}
	return Answer{Cause: c}
}
