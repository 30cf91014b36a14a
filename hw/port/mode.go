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

// descriptors is what this process has open: descriptor → target. It is nil where /proc is absent.
func descriptors() map[int]string {
	const folder = "/proc/self/fd"
	dir, err := os.Open(folder)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	open := make(map[int]string, len(names))
	for _, name := range names {
		target, err := os.Readlink(folder + "/" + name)
		if fd, err2 := strconv.Atoi(name); err == nil && err2 == nil {
			open[fd] = target
		}
	}
	delete(open, int(dir.Fd())) // soon to be somebody else's number
	return open
}

// closeOnExec marks every descriptor that is not what it was before: its number alone says little,
// as another line may have closed it meanwhile. Where /proc is absent it marks all but the standard
// three, which is what Go does to each of its own anyway.
func closeOnExec(before map[int]string) {
	after := descriptors()
	if before == nil || after == nil {
		unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
		return
	}
	for fd, target := range after {
		if before[fd] != target {
			unix.CloseOnExec(fd)
		}
	}
}
