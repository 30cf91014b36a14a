package agent

import (
	"context"
	"slices"

	"ferrule/agent/encode"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
)

// Entries that were taken under another configuration wait in the outbox under its topics. A broker may
// allow none but those of the configuration that runs, and hang up at every other (AWS IoT Core does):
// entries that a trial left behind would end one connection after the other. So what lies under the
// topics of a configuration that was tried, or replaced by one, goes out under those of the one that runs.

// renaming is a source whose entries go out under the topics that are configured.
type renaming struct {
	session.Source
	former  []string // templates
	current string
}

// renamed is the outbox as the session drains it.
func (a *agent) renamed(s session.Source) session.Source {
	if a.desk.keeper == nil {
		return s
	}
	current := a.config.Session.Topics.Readings
	former := slices.DeleteFunc(a.desk.keeper.Topics(), func(template string) bool { return template == current })
	if len(former) == 0 {
		return s
	}
	return &renaming{Source: s, former: former, current: current}
}

// Next is the outbox's.
func (r *renaming) Next(ctx context.Context, w outbox.Want) ([]outbox.Entry, error) {
	run, err := r.Source.Next(ctx, w)
	for i := range run {
		run[i].Topic = r.rename(run[i].Topic)
	}
	return run, err
}

func (r *renaming) rename(topic string) string {
	if encode.Made(r.current, topic) {
		return topic
	}
	for _, template := range r.former {
		if next, ok := encode.Rename(topic, template, r.current); ok {
			return next
		}
	}
	return topic
}
