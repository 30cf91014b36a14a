package firmware_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/hint"
)

// A release whose signed manifest is none is not passed over in silence: whoever asks is told, and so is
// whoever looks at the status, until there is one that is better.
func TestBadManifestsAreTold(t *testing.T) {
	for name, edit := range map[string]func(members map[string]any){
		"a member that nobody knows": func(members map[string]any) { members["exec"] = "/bin/sh" },
		"another release's":          func(members map[string]any) { members["version"] = "9.9.9" },
		"no part":                    func(members map[string]any) { members["parts"] = []any{} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, slottest.UBootScript())
				w.config.CheckEvery = 0
				w.publish("1.1.0", image(2, 5200), nil)
				if err := w.repo.EditManifest("1.1.0", edit); err != nil {
					t.Fatal(err)
				}
				m := w.start(w.power())
				defer m.stop()
				m.until(time.Minute, func(firmware.Status) bool { return true })
				for _, version := range []string{"", "1.1.0"} {
					err := m.engine.Propose(t.Context(), firmware.Request{Version: version})
					if !errors.Is(err, firmware.ErrRefused) || !strings.Contains(err.Error(), "gw/1.1.0") || hint.Of(err) == "" {
						t.Errorf("%q: %v (%s)", version, err, hint.Of(err))
					}
					if s := m.engine.Status(); !strings.Contains(s.Refused, "gw/1.1.0") || s.State != firmware.Idle {
						t.Errorf("%q: %+v", version, s)
					}
				}
				if err := m.engine.Propose(t.Context(), firmware.Request{Version: "1.0.0"}); !errors.Is(err, firmware.ErrNothing) {
					t.Errorf("what runs: %v", err)
				}
				if s := m.engine.Status(); s.Refused != "" {
					t.Errorf("still refused: %q", s.Refused)
				}
			})
		})
	}
}
