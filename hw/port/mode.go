package port

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// openMode opens path a second time through the library and sets the mode. No child may be forked
// between its open, which lacks O_CLOEXEC, and the repair.
func openMode(path string, s Settings) (serial.Port, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	before := descriptors()
	m, err := serial.Open(path, modeOf(s))
	closeOnExec(before)
	if err != nil {
		return nil, modeError(s, err)
	}
	return m, nil
}

func modeOf(s Settings) *serial.Mode {
	parity := map[byte]serial.Parity{'N': serial.NoParity, 'E': serial.EvenParity, 'O': serial.OddParity, 'M': serial.MarkParity, 'S': serial.SpaceParity}
	stop := serial.OneStopBit
	if s.StopBits == 2 {
		stop = serial.TwoStopBits
	}
	return &serial.Mode{BaudRate: s.Baud, DataBits: s.DataBits, Parity: parity[s.Parity], StopBits: stop}
}

// modeError gives an error of the library its sentinel or a hint. Its own errors hide their cause.
func modeError(s Settings, err error) error {
	e, ok := errors.AsType[*serial.PortError](err)
	switch {
	case !ok:
		return openError(err)
	case e.Code() == serial.PortBusy:
		return inUse()
	case e.Code() == serial.PermissionDenied:
		return openError(unix.EACCES)
	}
	// Rates without a constant of their own go by termios2, which emulators and old kernels lack.
	return hint.With(fmt.Errorf("setting %s: %w", s, err), "choose a usual baud rate such as 9600, 19200 or 115200, and 8N1 or 8E1")
}

// descriptors is the set of this process's open descriptors; nil where /proc is absent.
func descriptors() map[int]bool {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	open := make(map[int]bool, len(names))
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil {
			open[fd] = true
		}
	}
	delete(open, int(dir.Fd())) // soon to be somebody else's number
	return open
}

// closeOnExec marks every descriptor that is not in before; where /proc is absent, all but the
// standard three, which is what Go does to each of its own anyway.
func closeOnExec(before map[int]bool) {
	after := descriptors()
	if before == nil || after == nil {
		unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
		return
	}
	for fd := range after {
		if !before[fd] {
			unix.CloseOnExec(fd)
		}
	}
}
