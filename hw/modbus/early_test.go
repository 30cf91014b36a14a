package modbus

import "testing"

// pacingOf plays answers: "." came no sooner than it could, "!" too soon and nothing behind it, "2"
// too soon and another behind it. It returns what became of each: "y" taken, "n" not, "w" taken after
// a wait.
func pacingOf(answers string) string {
	var p pacing
	frame, fate := []byte{3, 4, 2, 0, 1, 0, 0}, ""
	for _, a := range answers {
		v := p.take(frame, a != '.')
		switch {
		case v == answer: // another one behind it comes outside of any request
			fate += "y"
		case a == '2' && p.take(frame, false) == answer:
			fate += "n"
		case p.settle() != nil:
			fate += "w"
		default:
			fate += "n"
		}
	}
	return fate
}

func TestPaceOfALine(t *testing.T) {
	sure := ""
	for range sureOfPace + 1 {
		sure += "."
	}
	for _, test := range []struct{ what, answers, want string }{
		{"a pseudo terminal", "!!!!", "yyyy"},
		{"a pseudo terminal whose first answer took its time", "..!!.!", "yywyyy"},
		{"a line with a copy now and then", "..2..2.", "yynyyny"},
		{"a copy alone, as its answer was lost", sure + "!..!.", "yyyyyyyyyyyyyyyyyyyyy" + "nyyny"},
		{"a line that was changed for an emulator", sure + "!!!!!", "yyyyyyyyyyyyyyyyyyyyy" + "nnnwy"},
	} {
		if got := pacingOf(test.answers); got != test.want {
			t.Errorf("%s: %s became %s, want %s", test.what, test.answers, got, test.want)
		}
	}
}
