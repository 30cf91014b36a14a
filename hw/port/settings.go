package port

import (
	"fmt"
	"strconv"
	"strings"

	"ferrule/internal/hint"
)

// Settings is how characters travel on a line.
type Settings struct {
	Baud     int  // bits per second
	DataBits int  // 5 to 8
	Parity   byte // 'N' none, 'E' even, 'O' odd, 'M' mark, 'S' space
	StopBits int  // 1 or 2
}

// ParseSettings reads "19200 8E1".
func ParseSettings(s string) (Settings, error) {
	fail := func(why string) (Settings, error) {
		return Settings{}, hint.With(fmt.Errorf("reading line settings %q: %s", s, why), `write baud rate, data bits, parity and stop bits as in "19200 8E1"`)
	}
	words := strings.Fields(s)
	if len(words) != 2 || len(words[1]) != 3 {
		return fail("not a baud rate and three characters")
	}
	baud, err := strconv.Atoi(words[0])
	if err != nil {
		return fail("the baud rate is not a number")
	}
	form := strings.ToUpper(words[1])
	r := Settings{Baud: baud, DataBits: int(form[0] - '0'), Parity: form[1], StopBits: int(form[2] - '0')}
	if err := r.Validate(); err != nil {
		return fail(err.Error())
	}
	return r, nil
}

// Validate says what no serial port can do.
func (s Settings) Validate() error {
	switch {
	case s.Baud < 50 || s.Baud > 4_000_000:
		return fmt.Errorf("the baud rate %d is not within 50 and 4000000", s.Baud)
	case s.DataBits < 5 || s.DataBits > 8:
		return fmt.Errorf("%d data bits are not within 5 and 8", s.DataBits)
	case s.Parity == 0 || !strings.ContainsRune("NEOMS", rune(s.Parity)):
		return fmt.Errorf("the parity %q is none of N, E, O, M, S", s.Parity)
	case s.StopBits != 1 && s.StopBits != 2:
		return fmt.Errorf("%d stop bits are neither 1 nor 2", s.StopBits)
	}
	return nil
}

// BitsPerChar is how many bit times one character takes, with start, parity and stop bits.
func (s Settings) BitsPerChar() int {
	n := 1 + s.DataBits + s.StopBits
	if s.Parity != 'N' {
		n++
	}
	return n
}

func (s Settings) String() string {
	return fmt.Sprintf("%d %d%c%d", s.Baud, s.DataBits, s.Parity, s.StopBits)
}
