//go:build keylog

package dial

import (
	"fmt"
	"io"
	"os"
)

// openKeyLog opens the file that SSLKEYLOGFILE names, for Wireshark. Whoever has it reads what
// the sessions said.
func openKeyLog() (io.Writer, error) {
	name := os.Getenv("SSLKEYLOGFILE")
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) // open until the process ends
	if err != nil {
		return nil, fmt.Errorf("opening SSLKEYLOGFILE: %w", err)
	}
	return f, nil
}
