package hw

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"ferrule/hw/point"
	"ferrule/hw/port"
	"ferrule/internal/quantity"
)

const (
	maxName        = 64 // bytes; a topic carries two of them
	defaultEvery   = time.Second
	defaultTimeout = 500 * time.Millisecond
	minEvery       = 10 * time.Millisecond
	maxEvery       = 24 * time.Hour
	minTimeout     = 10 * time.Millisecond
	maxTimeout     = time.Minute
	maxTurnaround  = time.Second
	minMaxAge      = time.Second
	maxMaxAge      = 365 * 24 * time.Hour
	maxAddress     = 247 // Modbus over Serial Line V1.02, 2.2
	maxMBusAddress = 250 // EN 13757-2, 5.7.5
)

// Validate finds all mistakes in c at once; each error names line, unit, point and key, and
// those that are easily made carry a hint. It opens nothing.
func (c LineConfig) Validate() error {
	return (&Line{config: c}).compile()
}

// compile checks the configuration and turns it into what the line works with.
func (l *Line) compile() error {
	c := l.config
	k := &checker{where: fmt.Sprintf("line %q", c.Name)}
	k.name(c.Name)
	if c.Port == "" {
		k.wrong("port", "ferrule ports lists the serial ports of this machine", errors.New("the serial port is missing"))
	} else if err := port.ParseName(c.Port); err != nil {
		k.wrong("port", "", err)
	}
	c.compileOutbox(k)
	l.plain = k.codec(point.Spec{Type: point.Float64()})
	l.compileProtocol(k)
	l.compileSettings(k)
	if c.RS485 != nil {
		c.RS485.check(k)
	}
	l.compileUnits(k)
	return errors.Join(k.problems...)
}

// compileOutbox checks what the outbox is told of the line.
func (c LineConfig) compileOutbox(k *checker) {
	if c.Priority != "" && c.Priority != Normal && c.Priority != Urgent {
		k.wrong("priority", "", fmt.Errorf("%q is neither %q nor %q", c.Priority, Normal, Urgent))
	}
	k.duration("max_age", c.MaxAge, 0, minMaxAge, maxMaxAge)
}

func (l *Line) compileProtocol(k *checker) {
	c, known := l.config, false
	if l.protocol, known = protocolOf(c.Protocol); !known {
		k.wrong("protocol", "", fmt.Errorf("%q is none of %s", c.Protocol, protocolNames()))
	}
	l.role = c.Role
	if c.Role == "" {
		l.role = l.protocol.roles[0]
	}
	if !slices.Contains(l.protocol.roles, l.role) {
		k.wrong("role", "", fmt.Errorf("%q is none of %v, the roles of %s", c.Role, l.protocol.roles, l.protocol.name))
		l.role = l.protocol.roles[0]
	}
	if c.Text != nil && l.protocol.name != "text" || c.Frame != nil && l.protocol.name != "frame" {
		k.wrong("protocol", "", fmt.Errorf("[line.text] and [line.frame] are for the protocols of these names, not for %s", l.protocol.name))
	}
	if l.protocol.name == "text" && l.role == Master && (c.Text == nil || c.Text.Request == "") {
		k.wrong("text.request", "", errors.New("a line that asks needs to know what to send"))
		l.role = Listen
	}
	if l.protocol.listen != nil {
		if _, _, err := l.protocol.listen(c); err != nil {
			k.wrong(l.protocol.name, "", err)
		}
	}
}

func (l *Line) compileSettings(k *checker) {
	standard := l.protocol.settings
	if l.role == Master && l.protocol.settingsAsMaster != "" {
		standard = l.protocol.settingsAsMaster
	}
	l.settings = k.settings(orDefault(l.config.Settings, standard), l.protocol)
}

func (k *checker) settings(s string, p protocol) port.Settings {
	settings, err := port.ParseSettings(s)
	if err != nil {
		k.wrong("settings", `write it as "19200 8E1": baud rate, data bits, parity, stop bits`, err)
	} else if p.name == "modbus-rtu" && settings.DataBits != 8 { // Modbus over Serial Line V1.02, 2.5.1
		k.wrong("settings", "7 data bits are for Modbus ASCII", fmt.Errorf("%s needs 8 data bits, not %d", p.name, settings.DataBits))
	}
	return settings
}

var rs485Modes = map[string]port.RS485Mode{"": port.RS485Auto, "auto": port.RS485Auto, "kernel": port.RS485Kernel, "off": port.RS485Off}

func (c *RS485Config) check(k *checker) {
	if _, known := rs485Modes[c.Mode]; !known {
		k.wrong("rs485.mode", "", fmt.Errorf("%q is none of auto, kernel, off", c.Mode))
	}
	if c.RTS != "" && c.RTS != "high" && c.RTS != "low" {
		k.wrong("rs485.rts", "", fmt.Errorf("%q is neither high nor low", c.RTS))
	}
	for key, d := range map[string]quantity.Duration{"delay_before": c.DelayBefore, "delay_after": c.DelayAfter} {
		if d < 0 || d.Std() > 100*time.Millisecond {
			k.wrong("rs485."+key, "", fmt.Errorf("%s is not between 0s and 100ms", d))
		}
	}
}

// options is c as package port wants it; nil: the driver is left alone.
func (c *RS485Config) options() *port.RS485 {
	if c == nil {
		return nil
	}
	return &port.RS485{Mode: rs485Modes[c.Mode], RTSLowOnSend: c.RTS == "low", DelayBefore: c.DelayBefore.Std(), DelayAfter: c.DelayAfter.Std(), Terminate: c.Terminate}
}
