package hwtest_test

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is a wire with one unit, 3, and the port end of it, opened without any of our own code.
func wire(t *testing.T, c hwtest.WireConfig) (*hwtest.Wire, *hwtest.Unit, *os.File) {
	t.Helper()
	w, err := hwtest.NewWire(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	u := hwtest.NewUnit(3)
	u.Set(modbus.HoldingRegisters, 0, 1, 2, 3)
	w.Attach(u)
	f, err := os.OpenFile(w.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return w, u, f
}

// ask sends a request and reads as many bytes as the answer has.
func ask(t *testing.T, f io.ReadWriter, r modbus.Request, length int) []byte {
	t.Helper()
	if _, err := f.Write(r.Append(nil)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

var readThree = modbus.Request{Unit: 3, Function: 3, Count: 3}

func TestBytesTakeTheirTime(t *testing.T) {
	for _, baud := range []int{9600, 115200} {
		_, _, f := wire(t, hwtest.WireConfig{Baud: baud})
		begin := time.Now()
		b := ask(t, f, readThree, 11)
		took, timing := time.Since(begin), modbus.TimingOf(baud, 11)
		if least := timing.Chars(8+11) + timing.T35; took < least {
			t.Errorf("at %d baud an exchange takes %v; want at least %v", baud, took, least)
		}
		if want := (modbus.Response{Unit: 3, Function: 3, Data: []byte{0, 1, 0, 2, 0, 3}}).Append(nil); !bytes.Equal(b, want) {
			t.Errorf("answer is %x; want %x", b, want)
		}
	}
}

func TestPoliceSeesHaste(t *testing.T) {
	w, _, f := wire(t, hwtest.WireConfig{Baud: 300})
	ask(t, f, readThree, 11)
	ask(t, f, readThree, 11) // at once, where 128 ms of silence are due
	w.Close()                // what was read may not have been counted yet
	if s := w.Stats(); s.Violations != 1 || s.Requests != 2 || s.Answers != 2 || s.BytesIn != 16 || s.BytesOut != 22 {
		t.Errorf("%+v; want 1 violation in 2 exchanges", s)
	}
}

func TestLedgerCountsWhatWasSent(t *testing.T) {
	_, u, f := wire(t, hwtest.WireConfig{})
	u.Counter(modbus.HoldingRegisters, 1)
	u.Script(func(n int, _ modbus.Request) hwtest.Fault { return hwtest.Fault{Drop: n == 1} })
	ask(t, f, readThree, 11)
	if _, err := f.Write(readThree.Append(nil)); err != nil { // dropped
		t.Fatal(err)
	}
	for u.Asked() < 2 {
		runtime.Gosched()
	}
	b := ask(t, f, readThree, 11)
	if !bytes.Equal(b[5:9], []byte{0, 0, 0, 3}) {
		t.Errorf("third answer carries %x; want 3", b[5:9])
	}
	ask(t, f, modbus.Request{Unit: 3, Function: 3, Count: 1}, 7) // does not cover the counter
	ask(t, f, modbus.Request{Unit: 3, Function: 3, Count: 1}, 7) // its answer proves that the ledger has the one before
	ledger := u.Ledger()
	if len(ledger) < 3 || ledger[0].Counter != 1 || ledger[1].Counter != 3 || ledger[2].Counter != 0 || ledger[0].Spoilt {
		t.Errorf("ledger is %+v; want counters 1, 3, 0", ledger)
	}
}

func TestHooks(t *testing.T) {
	_, u, f := wire(t, hwtest.WireConfig{})
	u.OnRead(func(table modbus.Table, from uint16, n int) {
		u.Set(table, from, uint16(n))
	})
	var written []uint16
	u.OnWrite(func(_ modbus.Table, from uint16, values []uint16) error {
		if values[0] > 100 {
			return modbus.Exception(3)
		}
		if values[0] == 99 {
			return io.ErrUnexpectedEOF
		}
		written = append(written, from, values[0])
		return nil
	})
	if b := ask(t, f, readThree, 11); b[4] != 3 {
		t.Errorf("read after OnRead: %x", b)
	}
	write := func(at uint16, v byte) modbus.Request {
		return modbus.Request{Unit: 3, Function: 6, Address: at, Data: []byte{0, v}}
	}
	ask(t, f, write(1, 7), 8)
	if b := ask(t, f, write(1, 101), 5); b[2] != 3 {
		t.Errorf("refused write: %x; want exception 3", b)
	}
	if b := ask(t, f, write(1, 99), 5); b[2] != 4 {
		t.Errorf("failed write: %x; want exception 4", b)
	}
	if b := ask(t, f, write(9, 7), 5); b[2] != 2 {
		t.Errorf("write where nothing is: %x; want exception 2", b)
	}
	if got := u.Get(modbus.HoldingRegisters, 1, 1)[0]; got != 7 || len(written) != 2 {
		t.Errorf("register is %d, written %v", got, written)
	}
}

// A master that goes leaves the line as it is, for the next.
func TestMasterComesAndGoes(t *testing.T) {
	w, _, f := wire(t, hwtest.WireConfig{})
	for range 3 {
		ask(t, f, readThree, 11)
		f.Close()
		var err error
		if f, err = os.OpenFile(w.Path(), os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	w.Detach(3)
	if _, err := f.Write(readThree.Append(nil)); err != nil {
		t.Fatal(err)
	}
	for w.Stats().Unanswered == 0 {
		runtime.Gosched()
	}
	w.Close()
	w.Close()
	if n, err := f.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("reading a closed wire: %d, %v", n, err)
	}
}
