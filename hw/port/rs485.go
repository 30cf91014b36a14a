package port

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// RS485Mode is who turns the transceiver round.
type RS485Mode int

const (
	// RS485Auto asks the driver to. Where it cannot, that is warned of once: most adapters do so by
	// themselves.
	RS485Auto RS485Mode = iota
	// RS485Kernel asks the driver to; a port that cannot is not opened.
	RS485Kernel
	// RS485Off tells the driver not to, whatever the device tree says.
	RS485Off
)

// RS485 is how the driver uses RTS to send on a two-wire line. Linux, Documentation/driver-api/serial/serial-rs485.rst.
type RS485 struct {
	Mode          RS485Mode
	DelayBefore   time.Duration // between RTS and the first bit; whole milliseconds, rounded up
	DelayAfter    time.Duration // between the last bit and RTS
	RTSLowOnSend  bool          // RTS is low while sending, as some transceivers want it
	ReceiveOnSend bool          // hear what is sent oneself
	Terminate     bool          // switch the terminating resistor on, where the board has one
}

// longestDelay is what the kernel takes at most.
const longestDelay = 100 * time.Millisecond

func (r RS485) validate() error {
	for _, d := range []time.Duration{r.DelayBefore, r.DelayAfter} {
		if d < 0 || d > longestDelay {
			return hint.With(fmt.Errorf("the RS-485 delay %s is not within 0 and %s", d, longestDelay), "one millisecond is plenty for any transceiver")
		}
	}
	return nil
}

func (r RS485) kernel() serialRS485 {
	if r.Mode == RS485Off {
		return serialRS485{}
	}
	ms := func(d time.Duration) uint32 { return uint32((d + time.Millisecond - 1) / time.Millisecond) }
	k := serialRS485{flags: rs485Enabled, delayBefore: ms(r.DelayBefore), delayAfter: ms(r.DelayAfter)}
	if r.RTSLowOnSend {
		k.flags |= rs485RTSAfterSend
	} else {
		k.flags |= rs485RTSOnSend
	}
	if r.ReceiveOnSend {
		k.flags |= rs485RxDuringTx
	}
	if r.Terminate {
		k.flags |= rs485Terminate
	}
	return k
}

func (p *serialPort) setRS485(r RS485) error {
	if err := r.validate(); err != nil {
		return err
	}
	asked := r.kernel()
	got := asked // the driver writes back what it made of it
	err := p.control(func(fd uintptr) error { return p.sys.ioctl(fd, unix.TIOCSRS485, unsafe.Pointer(&got)) })
	switch {
	case err != nil && r.Mode == RS485Kernel:
		return hint.With(fmt.Errorf("switching to RS-485: %w", err), "the driver cannot; choose auto where the adapter turns the line round by itself")
	case err != nil && r.Mode == RS485Off && lacks(err):
		return nil // it has none to switch off
	case err != nil:
		return p.optional("rs485", fmt.Errorf("switching to RS-485: %w", err))
	case r.Mode == RS485Kernel && got.flags&rs485Enabled == 0:
		return hint.With(errors.New("switching to RS-485: the driver did not"), "choose auto where the adapter turns the line round by itself")
	case got.flags != asked.flags || got.delayBefore != asked.delayBefore || got.delayAfter != asked.delayAfter:
		p.warn("rs485", "serial port does RS-485 in its own way", slog.String("asked", asked.String()), slog.String("got", got.String()))
	}
	return nil
}

func (k serialRS485) String() string {
	return fmt.Sprintf("flags %#x, delays %d ms and %d ms", k.flags, k.delayBefore, k.delayAfter)
}

// lowLatency asks a USB adapter that holds bytes back, as FTDI's do for 16 ms, to hold them 1 ms.
// That delay alone would cap the polls at about 60 a second. Where sysfs may not be written, the
// driver takes the same wish from whoever may open the port.
func (p *serialPort) lowLatency() {
	if p.node == "" {
		return
	}
	file := filepath.Join(p.node, "device/latency_timer")
	b, err := os.ReadFile(file)
	now := strings.TrimSpace(string(b))
	if err != nil || now == "1" {
		return
	}
	err = os.WriteFile(file, []byte("1"), 0)
	if err == nil || p.setLowLatency() == nil {
		return
	}
	p.warn("latency", "serial adapter holds bytes back", slog.String("latency_ms", now), slog.Any("err", err))
}

func (p *serialPort) setLowLatency() error {
	return p.control(func(fd uintptr) error {
		var s serialInfo
		if err := p.sys.ioctl(fd, unix.TIOCGSERIAL, unsafe.Pointer(&s)); err != nil {
			return err
		}
		s.flags |= asyncLowLatency
		return p.sys.ioctl(fd, unix.TIOCSSERIAL, unsafe.Pointer(&s))
	})
}
