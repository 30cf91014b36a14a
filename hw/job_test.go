package hw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
)

func writable() LineConfig {
	return lineOf(unitOf("a", 1, time.Second,
		profile.Point{Name: "limit", At: "holding:100", Type: "int16", Scale: 0.1, Write: &profile.Write{Min: ptr(0), Max: ptr(50)}},
		profile.Point{Name: "target", At: "holding:110", Type: "float32", Order: "CDAB", Write: &profile.Write{}},
		profile.Point{Name: "pump", At: "coil:7", Write: &profile.Write{}},
		profile.Point{Name: "flag", At: "holding:120", Type: "bit@3", Write: &profile.Write{}},
		profile.Point{Name: "label", At: "holding:130", Type: "string(4)", Write: &profile.Write{}},
		profile.Point{Name: "fixed", At: "holding:140"}))
}

func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.units[1].regs[holding(120)] = 0x00f0
		b := run(t, writable(), bus)
		for _, test := range []struct {
			point string
			value any
			want  string
			err   error
		}{
			{"limit", 12.5, `{"line":"rs485-1","unit":"a","point":"limit","value":12.5,"read":12.5,"verified":true}`, nil},
			{"limit", 12.34, `{"line":"rs485-1","unit":"a","point":"limit","value":12.34,"read":12.3,"verified":true}`, nil},
			{"limit", json.Number("7"), `{"line":"rs485-1","unit":"a","point":"limit","value":7,"read":7.0,"verified":true}`, nil},
			{"limit", "8.5", `{"line":"rs485-1","unit":"a","point":"limit","value":8.5,"read":8.5,"verified":true}`, nil},
			{"target", 230.1, `{"line":"rs485-1","unit":"a","point":"target","value":230.1,"read":230.1,"verified":true}`, nil},
			{"pump", true, `{"line":"rs485-1","unit":"a","point":"pump","value":true,"read":true,"verified":true}`, nil},
			{"flag", false, `{"line":"rs485-1","unit":"a","point":"flag","value":false,"read":false,"verified":true}`, nil},
			{"flag", "on", `{"line":"rs485-1","unit":"a","point":"flag","value":true,"read":true,"verified":true}`, nil},
			{"label", "ab", `{"line":"rs485-1","unit":"a","point":"label","value":"ab","read":"ab","verified":true}`, nil},
			{"limit", 50.1, "", point.ErrRange},
			{"limit", -0.1, "", point.ErrRange},
			{"limit", true, "", point.ErrKind},
			{"limit", "many", "", point.ErrKind},
			{"pump", 3, "", point.ErrKind},
			{"label", "abcde", "", point.ErrRange},
			{"fixed", 1, "", ErrReadOnly},
			{"missing", 1, "", ErrUnknown},
		} {
			w, err := b.Write(t.Context(), "a", test.point, test.value)
			if !errors.Is(err, test.err) {
				t.Errorf("%s = %v: %v, want %v", test.point, test.value, err, test.err)
				continue
			}
			got, _ := json.Marshal(w)
			if err == nil && string(got) != test.want {
				t.Errorf("%s = %v: got %s, want %s", test.point, test.value, got, test.want)
			}
			var back Written
			if err := json.Unmarshal(got, &back); err != nil || back.Point != w.Point || back.Verified != w.Verified {
				t.Errorf("%s came back as %+v, %v", got, back, err)
			}
		}
		if got := bus.units[1].regs[holding(120)]; got != 0x00f8 {
			t.Errorf("writing one bit left the register at %04x, want 00f8", got)
		}
		if got := [2]uint16{bus.units[1].regs[holding(110)], bus.units[1].regs[holding(111)]}; got != [2]uint16{0x199a, 0x4366} {
			t.Errorf("CDAB was written as %04x", got)
		}
		if _, err := b.Write(t.Context(), "b", "limit", 1); !errors.Is(err, ErrUnknown) || !strings.Contains(hint.Of(err), "a") {
			t.Errorf("an unknown unit: %v, hint %q", err, hint.Of(err))
		}
		if _, err := b.Write(t.Context(), "9", "limit", 1); !errors.Is(err, ErrUnknown) {
			t.Errorf("an address without a unit: %v", err)
		}
	})
}

func TestWriteThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		b := run(t, writable(), bus)
		wait(2 * time.Second)
		fault := func(write bool, err error) {
			bus.set(func() {
				bus.units[1].fault = func(at modbus.Address, _ uint16) error {
					if last := bus.asked[len(bus.asked)-1]; last.write == write && at == holding(100) {
						return err
					}
					return nil
				}
			})
		}
		fault(true, modbus.Exception(3))
		if _, err := b.Write(t.Context(), "a", "limit", 1); !errors.Is(err, modbus.Exception(3)) {
			t.Errorf("a refused write: %v", err)
		}
		fault(true, modbus.ErrTimeout)
		if _, err := b.Write(t.Context(), "a", "limit", 1); !errors.Is(err, modbus.ErrTimeout) || hint.Of(err) == "" {
			t.Errorf("a write without an answer: %v, hint %q", err, hint.Of(err))
		}
		writes := 0
		for _, a := range bus.seen() {
			if a.write {
				writes++
			}
		}
		if writes != 2 {
			t.Errorf("%d writes were sent for two asked for; a write is never repeated", writes)
		}
		fault(false, modbus.Exception(2))
		if w, err := b.Write(t.Context(), "a", "limit", 1); err != nil || w.Verified || w.Problem == "" || w.Read != noValue {
			t.Errorf("a write that cannot be read back: %+v, %v", w, err)
		}
		bus.set(func() {
			bus.units[1].fault = func(at modbus.Address, _ uint16) error {
				bus.units[1].regs[holding(100)] = 77
				return nil
			}
		})
		if w, err := b.Write(t.Context(), "a", "limit", 1); err != nil || w.Verified || w.Read.String() != "7.7" || w.Problem == "" {
			t.Errorf("a unit that holds something else: %+v, %v", w, err)
		}
		bus.set(func() { bus.gone = fmt.Errorf("writing: %w", errGone) })
		if _, err := b.Write(t.Context(), "a", "limit", 1); !errors.Is(err, errGone) {
			t.Errorf("a write when the port goes: %v", err)
		}
	})
}

// A write waits for one transaction at most, however many polls are due.
func TestWriteGoesBeforePolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1, 2, 3, 4, 5)
		bus.cost = 50 * time.Millisecond
		var units []UnitConfig
		for i := 1; i <= 5; i++ {
			units = append(units, unitOf(fmt.Sprintf("u%d", i), i, 100*time.Millisecond,
				profile.Point{Name: "x", At: "holding:0", Write: &profile.Write{}}, profile.Point{Name: "y", At: "holding:9"}))
		}
		b := run(t, lineOf(units...), bus)
		wait(5*time.Second + 17*time.Millisecond)
		for i := range 20 {
			start := time.Now()
			if _, err := b.Write(t.Context(), "u3", "x", i); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 3*bus.cost { // the one under way, the write, the read back
				t.Errorf("write %d took %s on a full line", i, took)
			}
			wait(time.Duration(i) * 7 * time.Millisecond)
		}
	})
}

func TestReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1, 77)
		bus.units[77].regs[holding(5)], bus.units[77].regs[holding(6)] = 0x4366, 0x199a
		c := writable()
		b := build(t, c, bus)
		b.sink = nil
		b.schedule.units = nil
		ctx, cancel := context.WithCancel(context.Background())
		answer := make(chan []byte)
		go func() { // before Run: it waits
			raw, err := b.Read(context.Background(), Query{Unit: "77", At: holding(5), Type: typeOf(t, "float32")})
			if err != nil {
				t.Error(err)
			}
			answer <- raw
		}()
		synctest.Wait()
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		if raw := <-answer; fmt.Sprintf("%x", raw) != "4366199a" {
			t.Errorf("got %x", raw)
		}
		raw, err := b.Read(t.Context(), Query{Unit: "a", At: modbus.Address{Table: modbus.Coils, Offset: 3}, Type: typeOf(t, "bit")})
		if err != nil || len(raw) != 1 || raw[0] != 0 {
			t.Errorf("a coil: %x, %v", raw, err)
		}
		for _, q := range []Query{
			{Unit: "a", At: holding(0), Type: typeOf(t, "bit")},
			{Unit: "a", At: holding(0)},
			{Unit: "a", At: modbus.Address{}, Type: typeOf(t, "int16")},
			{Unit: "0", At: holding(0), Type: typeOf(t, "int16")},
			{Unit: "248", At: holding(0), Type: typeOf(t, "int16")},
			{Unit: "b", At: holding(0), Type: typeOf(t, "int16")},
			{Unit: "a", At: holding(65535), Type: typeOf(t, "int32")},
		} {
			if raw, err := b.Read(t.Context(), q); err == nil {
				t.Errorf("%+v was read as %x", q, raw)
			}
		}
		if len(bus.seen()) != 2 {
			t.Errorf("%d transactions; a line without a sink polls nothing", len(bus.seen()))
		}
		if _, err := b.Read(t.Context(), Query{Unit: "9", At: holding(0), Type: typeOf(t, "int16")}); !errors.Is(err, modbus.ErrTimeout) {
			t.Errorf("nobody has the address: %v", err)
		}
		cancel()
		<-ended
	})
}

func TestJobsAreBoundedAndCanBeAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.cost = time.Second
		b := run(t, writable(), bus)
		wait(100 * time.Millisecond) // into the first transaction
		errs := make(chan error, 40)
		ctx, cancel := context.WithCancel(context.Background())
		for range 2 * maxJobs {
			go func() {
				_, err := b.Write(ctx, "a", "limit", 1)
				errs <- err
			}()
		}
		synctest.Wait()
		for range maxJobs {
			if err := <-errs; !errors.Is(err, ErrBusy) {
				t.Fatalf("with a full queue: %v", err)
			}
		}
		cancel()
		for range maxJobs {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Fatalf("an abandoned write: %v", err)
			}
		}
		wait(time.Minute)
		for _, a := range bus.seen() {
			if a.write {
				t.Fatal("an abandoned write was sent")
			}
		}
		done := make(chan error)
		ctx, cancel = context.WithCancel(context.Background())
		go func() {
			_, err := b.Write(ctx, "a", "limit", 1)
			done <- err
		}()
		for !bus.writing() {
			wait(10 * time.Millisecond)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("a write that had begun: %v", err)
		}
	})
}

// writing reports whether the last transaction is a write.
func (b *fakeBus) writing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[len(b.asked)-1].write
}

func TestJobsOfAStoppedLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.cost = time.Second
		b := run(t, writable(), bus)
		wait(100 * time.Millisecond)
		errs := make(chan error)
		for range 5 {
			go func() {
				_, err := b.Write(context.Background(), "a", "limit", 1)
				errs <- err
			}()
		}
		synctest.Wait()
		b.stop()
		for range 5 {
			if err := <-errs; !errors.Is(err, ErrDown) {
				t.Errorf("a write that waited when the line stopped: %v", err)
			}
		}
	})
}

// A unit that is given up answers a write: it is alive.
func TestWriteRevivesAUnit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.units[1].dead = true
		b := run(t, writable(), bus)
		wait(10 * time.Minute)
		bus.set(func() { bus.units[1].dead = false })
		b.polls.take()
		if _, err := b.Write(t.Context(), "a", "limit", 1); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if polls := b.polls.take(); len(polls) == 0 || b.Status().Units[0].State != UnitOK {
			t.Errorf("%d polls, %+v", len(polls), b.Status().Units[0])
		}
	})
}
