package rauc

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// answerWithin is how long the bus and RAUC may take for an answer. RAUC answers slowly while it asks
// the boot loader.
const answerWithin = 60 * time.Second

// systemBus is where the system bus is, unless the environment says otherwise.
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// bus is one connection. One goroutine uses it; nothing reads behind its back.
type bus struct {
	conn   net.Conn
	r      *bufio.Reader
	serial uint32
	unhook func() bool
}

// remote is an error that the other side answered.
type remote struct{ name, text string }

func (e *remote) Error() string { return fmt.Sprintf("%s: %q", e.name, e.text) }

// dial connects to the bus at an address of the form unix:path=/…, or the system bus where it is
// empty, and says hello. The connection ends with ctx at the latest.
func dial(ctx context.Context, address string) (*bus, error) {
	path, err := socketOf(address)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, hint.With(fmt.Errorf("connecting to the bus: %w", err), "is dbus running, and may this process reach its socket?")
	}
	b := &bus{conn: conn, r: bufio.NewReaderSize(conn, 4096)}
	b.unhook = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := b.hello(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bus) close() {
	b.unhook()
	_ = b.conn.Close()
}

// socketOf is the path of the first unix socket that an address names; an abstract one begins with @.
func socketOf(address string) (string, error) {
	if address == "" {
		address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	}
	if address == "" {
		address = systemBus
	}
	for one := range strings.SplitSeq(address, ";") {
		parts, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			continue
		}
		for part := range strings.SplitSeq(parts, ",") {
			if path, ok := strings.CutPrefix(part, "path="); ok {
				return path, nil
			}
			if name, ok := strings.CutPrefix(part, "abstract="); ok {
				return "@" + name, nil
			}
		}
	}
	return "", fmt.Errorf("the bus address %q has no unix socket", address)
}

// hello authenticates as the user of this process, EXTERNAL, and gets a name.
func (b *bus) hello(ctx context.Context) error {
	b.limit(ctx, answerWithin)
	user := hex.EncodeToString([]byte(strconv.Itoa(os.Getuid())))
	if _, err := io.WriteString(b.conn, "\x00AUTH EXTERNAL "+user+"\r\n"); err != nil {
		return fmt.Errorf("logging in to the bus: %w", b.why(ctx, err))
	}
	line, err := b.r.ReadSlice('\n') // at most the reader's buffer
	if err != nil {
		return fmt.Errorf("logging in to the bus: %w", b.why(ctx, err))
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("logging in to the bus: it answered %q", line)
	}
	if _, err := io.WriteString(b.conn, "BEGIN\r\n"); err != nil {
		return fmt.Errorf("logging in to the bus: %w", b.why(ctx, err))
	}
	_, err = b.call(ctx, &message{destination: busName, path: busPath, iface: busName, member: "Hello"}, nil)
	return err
}

const (
	busName    = "org.freedesktop.DBus"
	busPath    = "/org/freedesktop/DBus"
	properties = "org.freedesktop.DBus.Properties"
)

// limit is until when what follows may take. The end of ctx, which sets a deadline in the past, wins.
func (b *bus) limit(ctx context.Context, d time.Duration) {
	_ = b.conn.SetDeadline(time.Now().Add(d))
	if ctx.Err() != nil {
		_ = b.conn.SetDeadline(time.Unix(1, 0))
	}
}

// why is the error of ctx where that ended the connection.
func (b *bus) why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the bus closed the connection")
	}
	return err
}

// call sends a call and returns its answer. Signals that come before it go to other, which may be
// nil.
func (b *bus) call(ctx context.Context, m *message, other func(*message)) (*message, error) {
	b.limit(ctx, answerWithin)
	b.serial++
	m.kind, m.serial = kindCall, b.serial
	if _, err := b.conn.Write(m.marshal()); err != nil {
		return nil, fmt.Errorf("calling %s: %w", m.member, b.why(ctx, err))
	}
	for {
		got, err := b.read(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("waiting for the answer to %s: %w", m.member, b.why(ctx, err))
		case got.kind == kindSignal && other != nil:
			other(got)
		case got.replyTo != m.serial: // no answer to this
		case got.kind == kindReturn:
			return got, nil
		case got.kind == kindError:
			text := ""
			if len(got.body) > 0 {
				text, _ = got.body[0].(string)
			}
			return nil, fmt.Errorf("calling %s: %w", m.member, &remote{name: got.errorName, text: text})
		}
	}
}

// read waits for one message, until the deadline. Where that passed before the message began, the
// error is os.ErrDeadlineExceeded and the next read may go on.
func (b *bus) read(ctx context.Context) (*message, error) {
	head, err := b.r.Peek(fixedHeader)
	if err != nil {
		return nil, err
	}
	b.limit(ctx, answerWithin)
	n, err := size(head)
	if err != nil {
		return nil, err
	}
	whole := make([]byte, n)
	if _, err := io.ReadFull(b.r, whole); err != nil {
		return nil, fmt.Errorf("reading a message: %v", err) //nolint:errorlint // a deadline within it is not one before it
	}
	return unmarshal(whole)
}

// match asks the bus for signals.
func (b *bus) match(ctx context.Context, rule string) error {
	_, err := b.call(ctx, &message{destination: busName, path: busPath, iface: busName, member: "AddMatch", body: []any{rule}}, nil)
	return err
}
