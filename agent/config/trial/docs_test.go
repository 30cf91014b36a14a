package trial

import (
	"os"
	"strings"
	"testing"
)

// The guide has every reason, each with its outcome.
func TestGuideHasEveryReason(t *testing.T) {
	text, err := os.ReadFile("../../../docs/remote-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range []Reason{
		Answered, Confirmed, NotOpened, NoSession, NoCommands, NoAnswer, Unstable, NotConfirmed, Cancelled, Reloaded,
		Stopped, Restarted, Crash, PowerCut, FileChanged, NotStored, Damaged,
	} {
		if !strings.Contains(string(text), "| `"+string(reason)+"` |") {
			t.Errorf("docs/remote-configuration.md does not explain %s", reason)
		}
	}
}
