package registrar

import (
	"context"
	"crypto/x509"
	"strconv"
	"time"

	"ferrule/agent/enroll/hook"
)

// Exec has certificates issued by a program: the request on its standard input, the chain on its
// standard output, PEM.
type Exec struct {
	Command []string
}

// Name is for records.
func (s *Exec) Name() string { return "exec" }

// Issue runs the program. Beside what package hook says of its environment there are FERRULE_EK,
// the SHA-256 of the TPM's endorsement key or nothing; FERRULE_LIFE, how long the certificate may
// live, in seconds; and FERRULE_FACTORY, 1 for a factory certificate.
func (s *Exec) Issue(ctx context.Context, q Request) ([]*x509.Certificate, error) {
	factory := "0"
	if q.Factory {
		factory = "1"
	}
	issued, err := hook.Run(ctx, hook.Options{
		Command: s.Command, Device: q.Device, Purpose: string(q.Purpose), Timeout: issueTimeout / 2,
		Environment: []string{"FERRULE_EK=" + q.EK, "FERRULE_LIFE=" + strconv.Itoa(int(q.Life/time.Second)), "FERRULE_FACTORY=" + factory},
	}, q.CSR.Raw)
	return issued.Chain, err
}
