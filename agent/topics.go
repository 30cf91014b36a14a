package agent

import (
	"context"
	"slices"
	"strings"

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
	if _, is := levels(r.current, topic); is {
		return topic
	}
	for _, template := range r.former {
		if found, is := levels(template, topic); is {
			if next, ok := fill(r.current, found); ok {
				return next
			}
		}
	}
	return topic
}

// levels returns what stands in topic where template has a variable for a whole level, if topic was made
// of it. A template with a variable that is only part of a level is never recognised.
func levels(template, topic string) (found map[string]string, is bool) {
	t, l := strings.Split(template, "/"), strings.Split(topic, "/")
	if len(t) != len(l) {
		return nil, false
	}
	found = make(map[string]string)
	for i := range t {
		if name, ok := variable(t[i]); ok {
			found[name] = l[i]
		} else if t[i] != l[i] {
			return nil, false
		}
	}
	return found, true
}

// fill makes a topic of a template and levels of another one, which are escaped already.
func fill(template string, found map[string]string) (string, bool) {
	parts := strings.Split(template, "/")
	for i, part := range parts {
		if name, ok := variable(part); ok {
			level, known := found[name]
			if !known {
				return "", false
			}
			parts[i] = level
		} else if strings.Contains(part, "{") {
			return "", false
		}
	}
	return strings.Join(parts, "/"), true
}

func variable(level string) (name string, whole bool) {
	if strings.HasPrefix(level, "{") && strings.HasSuffix(level, "}") && strings.Count(level, "{") == 1 {
		return level[1 : len(level)-1], true
	}
	return "", false
}
