package hw

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/hw/frame"
	"ferrule/hw/mbus"
	"ferrule/hw/profile"
	"ferrule/hw/text"
	"ferrule/internal/quantity"
)

// terminal returns the test's end of a pseudo terminal and the path of the other, which stays there
// until the test is over.
func terminal(t testing.TB) (far *os.File, path string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	far = os.NewFile(uintptr(fd), "/dev/ptmx") // not blocking: Close ends a Read
	t.Cleanup(func() { far.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	mode, err2 := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err = errors.Join(err, err2); err == nil {
		mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
		mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, mode)
	}
	path = fmt.Sprintf("/dev/pts/%d", n)
	near, err2 := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return far, path
}

// talkTo runs a line on a pseudo terminal, of which it returns the far end.
func talkTo(t testing.TB, c LineConfig) (*Line, io.ReadWriter, <-chan Poll) {
	t.Helper()
	far, path := terminal(t)
	c.Name, c.Port = "l", path
	line, polls := runLine(t, c)
	return line, far, polls
}

// repeat says it again and again until the test is over: a line opened late has missed the first.
func repeat(t testing.TB, w io.Writer, every time.Duration, s string) {
	done, ended := make(chan struct{}), make(chan struct{})
	ticker := time.NewTicker(every)
	go func() {
		defer close(ended)
		for {
			if _, err := io.WriteString(w, s); err != nil {
				return
			}
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() { // the line has not ended, or nobody would read
		ticker.Stop()
		close(done)
		<-ended
	})
}

// contains takes polls of a unit until so many have all that want says, as
// describe writes it.
func contains(t testing.TB, times int, polls <-chan Poll, unit string, want ...string) {
	t.Helper()
	timeout := time.After(patience)
	last := "nothing"
next:
	for {
		select {
		case p := <-polls:
			if p.Unit != unit {
				last = "unit " + p.Unit + " " + describe(p)
				continue
			}
			last = describe(p)
			for _, w := range want {
				if !strings.Contains(" "+last+" ", " "+w+" ") {
					continue next
				}
			}
			if times--; times == 0 {
				return
			}
		case <-timeout:
			t.Fatalf("%q was said last, want %s: %q", last, unit, want)
		}
	}
}

func TestSpeakNMEA(t *testing.T) {
	line, far, polls := talkTo(t, LineConfig{Protocol: "nmea", Settings: "4800 8N1"})
	repeat(t, far, 100*time.Millisecond, sentence("GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W")+"$GPXXX,1*00\r\n")
	// What is wrong comes between two that are right.
	contains(t, 2, polls, "GPRMC", "latitude=48.1173", "speed=22.4", "course=84.4")
	if s := line.Status(); s.Errors["crc"] == 0 || s.Wire.(frame.Stats).Frames == 0 || s.LastFrame == "" || s.State != StateUp {
		t.Errorf("status: %+v", s)
	}
}

func TestSpeakText(t *testing.T) {
	c := LineConfig{Protocol: "text", Text: &text.Config{Pattern: `(?P<weight>[-+]?[0-9.]+) (?P<weight_uom>kg|g)`},
		Units: []UnitConfig{{Name: "scale", Points: []profile.Point{{Name: "net", At: "weight", Scale: 1000, Uom: "g"}}}}}
	line, far, polls := talkTo(t, c)
	repeat(t, far, 50*time.Millisecond, "+12.345 kg\r\nERR\r\n")
	contains(t, 2, polls, "scale", "net=12345.0")
	if s := line.Status(); s.Units[0].Errors["frame"] == 0 || s.Units[0].LastFrame != hex.EncodeToString([]byte("ERR\r\n")) {
		t.Errorf("status: %+v", s.Units[0])
	}
}

// A scale that has to be asked: the test answers as it would.
func TestSpeakTextWhenAsked(t *testing.T) {
	c := LineConfig{Protocol: "text", Role: Master, Text: &text.Config{Request: "P\r\n", Every: quantity.Duration(50 * time.Millisecond), Separator: ",", Names: []string{"a", "b"}},
		Units: []UnitConfig{{Name: "scale", Timeout: quantity.Duration(300 * time.Millisecond)}}}
	_, far, polls := talkTo(t, c)
	for i := range 3 {
		hear(t, far, "P\r\n")
		fmt.Fprintf(far, "%d,x\r\n", i)
		contains(t, 1, polls, "scale", fmt.Sprintf("a=%d", i), "b=x")
	}
	contains(t, 1, polls, "scale", "a=!timeout", "b=!timeout")
}

// hear reads what the line sends, which is to be want.
func hear(t testing.TB, far io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(far, got); err != nil || string(got) != want {
		t.Fatalf("the line sent %q, %v; want %q", got, err, want)
	}
}

func TestSpeakFrame(t *testing.T) {
	c := LineConfig{Protocol: "frame", Frame: &frame.Config{Kind: "stx-etx", Check: "xor8"},
		Units: []UnitConfig{{Name: "probe", Points: []profile.Point{{Name: "t", At: "byte:1", Type: "int16", Scale: 0.1}}}}}
	line, far, polls := talkTo(t, c)
	body := []byte{'A', 0, 215, 3}
	sum := body[0] ^ body[1] ^ body[2] ^ body[3] // of all behind STX
	good := string(append(append([]byte{2}, body...), sum))
	repeat(t, far, 50*time.Millisecond, good+"\x02A\x00\xd8\x03\x00")
	contains(t, 2, polls, "probe", "t=21.5")
	if s := line.Status(); s.Errors["crc"] == 0 || s.Units[0].LastFrame == "" {
		t.Errorf("status: %+v", s)
	}
}

func TestSpeakRaw(t *testing.T) {
	_, far, polls := talkTo(t, LineConfig{Protocol: "raw"})
	repeat(t, far, 200*time.Millisecond, "\x00\x01\xff")
	contains(t, 2, polls, "raw", "frame=0001ff")
}

// crc16 is a CRC of reflected bits.
func crc16(data []byte, poly, start, end uint16) uint16 {
	for _, c := range data {
		start ^= uint16(c)
		for range 8 {
			start = start>>1 ^ poly&-(start&1)
		}
	}
	return start ^ end
}

func TestSpeakDSMR(t *testing.T) {
	line, far, polls := talkTo(t, LineConfig{Protocol: "dsmr", Units: []UnitConfig{{Name: "meter", Every: quantity.Duration(50 * time.Millisecond),
		Points: []profile.Point{{Name: "import", At: "1-0:1.8.1"}, {Name: "gone", At: "1-0:99.9.9"}}}}})
	telegram := "/ISk5\\2MT382-1000\r\n\r\n1-3:0.2.8(50)\r\n1-0:1.8.1(123456.789*kWh)\r\n1-0:1.7.0(01.193*kW)\r\n!"
	telegram += fmt.Sprintf("%04X\r\n", crc16([]byte(telegram), 0xa001, 0, 0))
	repeat(t, far, 50*time.Millisecond, telegram+strings.Replace(telegram, "123456", "923456", 1))
	contains(t, 2, polls, "meter", "import=123456.789")
	if s := line.Status(); s.Units[0].Errors["crc"] == 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestSpeakDSMRReadout(t *testing.T) {
	c := LineConfig{Protocol: "dsmr", Role: Master, Units: []UnitConfig{{Name: "meter", Every: quantity.Duration(time.Second),
		Points: []profile.Point{{Name: "import", At: "1.8.0"}, {Name: "gone", At: "2.8.0"}}}}}
	line, far, polls := talkTo(t, c)
	lines := "\x02F.F(00000000)\r\n1.8.0(0012345.678*kWh)\r\n!\r\n\x03"
	var bcc byte
	for _, b := range []byte(lines[1:]) {
		bcc ^= b
	}
	for _, damage := range []byte{0, 1} {
		hear(t, far, "/?!\r\n")
		io.WriteString(far, "/ISk5ME172-0001\r\n")
		hear(t, far, "\x06050\r\n")
		io.WriteString(far, lines+string(rune(bcc^damage)))
		if damage == 0 {
			contains(t, 1, polls, "meter", "import=12345.678", "gone=!missing")
		}
	}
	hear(t, far, "/?!\r\n") // once more, after a wrong checksum
	if s := line.Status(); s.Units[0].Errors["crc"] != 1 || s.Units[0].LastFrame == "" {
		t.Errorf("status: %+v", s.Units[0])
	}
}

func TestSpeakVEDirect(t *testing.T) {
	_, far, polls := talkTo(t, LineConfig{Protocol: "vedirect", Units: []UnitConfig{{Name: "mppt"}}})
	block := "\r\nPID\t0xA042\r\nV\t12800\r\nI\t-150\r\nChecksum\t"
	var sum byte
	for _, c := range []byte(block) {
		sum += c
	}
	repeat(t, far, 50*time.Millisecond, block+string([]byte{-sum}))
	p := <-polls
	if got := describe(p); !strings.Contains(got, "12.8") || !strings.Contains(got, "-0.15") || p.Unit != "mppt" {
		t.Errorf("%s: %s", p.Unit, got)
	}
}

// smlOf is a transmission of a meter with one value (SML 1.04, 4 to 6).
func smlOf(value uint32) string {
	octets := func(b ...byte) []byte { return append([]byte{byte(len(b) + 1)}, b...) }
	server := octets(0x0a, 1, 'E', 'S', 'Y', 0, 0, 0, 0, 1)
	message := func(tag byte, body ...[]byte) []byte {
		m := append([]byte{0x76, 2, 1, 0x62, 0, 0x62, 0, 0x72, 0x63, tag, 1}, bytes.Join(body, nil)...)
		crc := crc16(m, 0x8408, 0xffff, 0xffff)
		return append(m, 0x63, byte(crc), byte(crc>>8), 0)
	}
	entry := append(append([]byte{0x77}, octets(1, 0, 1, 8, 0, 255)...), 1, 1, 0x62, 30, 0x52, 0xff, 0x65)
	entry = append(binary.BigEndian.AppendUint32(entry, value), 1)
	b := []byte{0x1b, 0x1b, 0x1b, 0x1b, 1, 1, 1, 1}
	b = append(b, message(1, []byte{0x76, 1, 1}, octets(1), server, []byte{1, 1})...)
	b = append(b, message(7, []byte{0x77, 1}, server, []byte{1, 1, 0x71}, entry, []byte{1, 1})...)
	b = append(b, message(2, []byte{0x71, 1})...)
	fill := -len(b) & 3
	b = append(append(b, make([]byte, fill)...), 0x1b, 0x1b, 0x1b, 0x1b, 0x1a, byte(fill))
	return string(binary.LittleEndian.AppendUint16(b, crc16(b, 0x8408, 0xffff, 0xffff)))
}

func TestSpeakSML(t *testing.T) {
	_, far, polls := talkTo(t, LineConfig{Protocol: "sml", Units: []UnitConfig{{Name: "meter", Points: []profile.Point{{Name: "import", At: "1-0:1.8.0"}}}}})
	repeat(t, far, 50*time.Millisecond, smlOf(123456))
	contains(t, 2, polls, "meter", "import=12345.6")
}

// mbusMeters answers as units with these records until the port is closed.
func mbusMeters(t testing.TB, far *os.File, units map[byte]string) {
	cutter := frame.NewCutter(mbus.Split, mbus.MaxFrame)
	answer := func(raw []byte) {
		f, err := mbus.Parse(raw)
		records, known := units[f.A]
		switch {
		case err != nil || !known:
		case f.C == mbus.SndNKE:
			far.Write(mbus.AppendAck(nil))
		case f.C&^0x20 == mbus.ReqUD2: // whatever the frame count bit says
			data := append([]byte{0x78, 0x56, 0x34, 0x12, 0x77, 0x04, 14, 0x04, 1, 0, 0, 0}, records...)
			long, err := mbus.AppendLong(nil, mbus.RspUD, f.A, 0x72, data)
			if err != nil {
				t.Error(err)
			}
			far.Write(long)
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var buf [64]byte
		for {
			n, err := far.Read(buf[:])
			if err != nil {
				return
			}
			cutter.Feed(buf[:n], answer)
		}
	}()
	t.Cleanup(func() { far.Close(); <-ended })
}

func TestSpeakMBus(t *testing.T) {
	far, path := terminal(t)
	c := LineConfig{Name: "l", Port: path, Protocol: "mbus", Units: []UnitConfig{
		{Name: "heat", Address: 5, Every: quantity.Duration(5 * time.Second)},
		{Name: "dead", Address: 6, Every: quantity.Duration(200 * time.Millisecond)}}}
	line, polls := runLine(t, c)
	// Energy 12345 kWh in four digits of BCD, then a flow temperature of 65 °C.
	mbusMeters(t, far, map[byte]string{5: "\x0c\x06\x45\x23\x01\x00\x0a\x5a\x50\x06"})
	p := <-polls
	for p.Unit != "heat" || !strings.Contains(describe(p), "12345") {
		p = <-polls
	}
	t.Log(describe(p))
	for line.Status().Units[1].State != UnitDegraded {
		<-polls
	}
	if s := line.Status(); s.Units[0].State != UnitOK || s.Wire.(mbus.Stats).Responses == 0 || s.Units[1].Errors["timeout"] < missLimit {
		t.Errorf("status: %+v", s)
	}
}
