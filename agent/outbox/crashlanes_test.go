package outbox_test

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// Two lanes lose nothing either, whatever the power cut and the next configuration: order is kept for every
// line, also for one whose priority changes in between.
func TestPowerCutAnywhereInLanes(t *testing.T) {
	total := 0
	for name, tell := range laneStories {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := small()
				if name != "drop oldest" {
					c.MaxBytes = 256 << 10 // an urgent lane with room for a few segments
				}
				if name == "always" {
					c.Sync = outbox.Always
				}
				total += replayLanes(t, c, tell, true, nil, []outbox.LineConfig{alarms}, []outbox.LineConfig{{Name: "rs485-1", Urgent: true}, alarms})
			})
		})
	}
	t.Logf("%d states in all", total)
	if total < 5_000/thin {
		t.Errorf("only %d states", total)
	}
}

// next restarts with other lines urgent, after a kill or in good order.
func (s *story) next(clean bool, lines ...outbox.LineConfig) {
	if seq := s.o.Status().Seq; clean && s.o.Close() == nil {
		s.promise(seq)
	}
	s.lines = lines
	s.open()
}

// laneStories are what happens to two lanes until their power is cut.
var laneStories = map[string]func(s *story){
	"group commit": func(s *story) {
		rng := rand.New(rand.NewPCG(3, 4))
		s.next(true, alarms)
		for range 90 {
			s.append(1 + rng.IntN(5))
			switch rng.IntN(6) {
			case 0, 1:
				s.sync()
			case 2:
				s.take(1 + rng.IntN(8))
			case 3:
				s.take(25)
				s.ack(1 + rng.IntN(30))
			case 4:
				s.rewind()
			}
		}
		s.sync()
		for range 25 {
			s.take(10)
			s.ack(10)
		}
		s.next(true, alarms)
		s.append(3)
		s.sync()
	},
	"always": func(s *story) {
		s.next(true, alarms)
		for i := range 80 {
			s.append(1)
			if i%7 == 6 {
				s.take(5)
				s.ack(4)
			}
			if i == 30 {
				s.next(false, alarms)
			}
		}
	},
	"priorities change": func(s *story) {
		other := outbox.LineConfig{Name: "rs485-1", Urgent: true}
		for i, lines := range [][]outbox.LineConfig{{alarms}, {alarms, other}, {other}, nil, {alarms}, {alarms}, nil, nil} {
			s.append(9)
			s.sync()
			s.take(6)
			s.ack(5)
			s.append(6)
			s.take(3)
			if i%3 == 1 {
				s.rewind()
			}
			s.next(i%2 == 0, lines...)
		}
		for range 12 {
			s.take(8)
			s.ack(8)
			s.append(1)
		}
		s.next(true)
	},
	"run": func(s *story) {
		s.next(true, alarms)
		stop := start(s.t, s.o)
		for i := range 25 {
			s.append(4)
			seq := s.o.Status().Seq
			time.Sleep(time.Second)
			synctest.Wait()
			s.promise(seq)
			if i%4 == 3 {
				s.take(30)
				s.ack(12)
			}
		}
		stop()
	},
	"stale": func(s *story) {
		s.next(true, alarms, fleeting)
		for range 12 {
			s.append(12)
			s.sync()
			time.Sleep(40 * time.Second)
			boot := s.o.Boot()
			for seq := uint64(1); seq <= s.o.Status().Seq; seq++ {
				if stales(seq) {
					s.d.Mark(let{key{boot, seq}})
				}
			}
			s.take(7)
			s.ack(5)
		}
	},
	"drop oldest": func(s *story) {
		s.next(true, alarms)
		for range 16 {
			for range 5 {
				s.dropping()
				s.append(5)
			}
			s.sync()
			s.take(3)
			s.ack(2)
		}
	},
	"failed syncs": func(s *story) {
		s.next(true, alarms)
		for i := range 30 {
			fail := i%3 == 1
			s.d.Fail(func(op disktest.Op) error {
				if fail && (op.Kind == disktest.Sync || i%2 == 0 && op.Kind == disktest.SyncDir) {
					fail = false
					return syscall.EIO
				}
				return nil
			})
			s.append(4)
			s.sync() // fails
			s.append(2)
			s.sync()
			s.take(4)
			s.ack(3)
			if s.d.Fail(nil); i%10 == 9 {
				s.next(true, alarms)
			}
		}
	},
}
