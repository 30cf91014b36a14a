package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

// only says that text has no other bytes than those of set.
func only(text, set string) bool {
	for i := range len(text) {
		if strings.IndexByte(set, text[i]) < 0 {
			return false
		}
	}
	return true
}

// word says that text is 1 to most bytes of letters, digits and ._+~-, and neither . nor .. nor
// begins with a dot or a dash: it can be a file's name, a part of a URL and an argument.
func word(text string, most int) bool {
	return text != "" && len(text) <= most && text[0] != '.' && text[0] != '-' && only(text, lower+upper+digits+"._+~-")
}

// Word says that text can be a product, a version, a channel or a revision of the hardware: 1 to
// 64 letters, digits and ._+~-, the first one neither . nor -.
func Word(text string) bool { return word(text, 64) }

// PartName says that text can name a part: 1 to 32 of a-z, 0-9 and -.
func PartName(text string) bool {
	return text != "" && len(text) <= 32 && text[0] != '-' && only(text, lower+digits+"-")
}

// Path says that text can be an object's: clean, relative, of words.
func Path(text string) bool {
	if len(text) > 512 {
		return false
	}
	for element := range strings.SplitSeq(text, "/") {
		if !word(element, 255) {
			return false
		}
	}
	return true
}

// printable says that text is UTF-8 without control characters but those of allowed.
func printable(text, allowed string) bool {
	for _, r := range text {
		if r == utf8.RuneError || (r < ' ' || r >= 0x7f && r < 0xa0) && !strings.ContainsRune(allowed, r) {
			return false
		}
	}
	return true
}

// agentVersion says that text is such as 1.4.0: up to four numbers.
func agentVersion(text string) bool {
	numbers := strings.Split(text, ".")
	for _, n := range numbers {
		if n == "" || len(n) > 9 || !only(n, digits) {
			return false
		}
	}
	return len(numbers) <= 4
}

func (f *Fields) checkHead() error {
	for _, member := range [...]struct{ what, text string }{{"product", f.Product}, {"channel", f.Channel}, {"version", f.Version}} {
		if !Word(member.text) {
			return fmt.Errorf("%s %.80q is not of 1 to 64 letters, digits and ._+~-", member.what, member.text)
		}
	}
	if len(f.Hardware) > MaxHardware {
		return fmt.Errorf("%d revisions of hardware, and at most %d are allowed", len(f.Hardware), MaxHardware)
	}
	for _, revision := range f.Hardware {
		if !Word(revision) {
			return fmt.Errorf("hardware %.80q is not of 1 to 64 letters, digits and ._+~-", revision)
		}
	}
	switch {
	case f.Release < 1 || f.Release > MaxRelease:
		return fmt.Errorf("release %d, and 1 to %d are allowed", f.Release, uint64(MaxRelease))
	case f.SecurityVersion > MaxSecurityVersion:
		return fmt.Errorf("security_version %d, and at most %d is allowed: a TPM counts by ones", f.SecurityVersion, MaxSecurityVersion)
	case f.MinAgent != "" && !agentVersion(f.MinAgent):
		return fmt.Errorf("min_agent %.40q is not as 1.4.0", f.MinAgent)
	case len(f.Notes) > MaxNotes || !printable(f.Notes, "\n\t"):
		return fmt.Errorf("the notes have more than %d bytes, or control characters", MaxNotes)
	case len(f.Extra) > 0 && !bytes.HasPrefix(bytes.TrimLeft(f.Extra, " \t\r\n"), []byte("{")):
		return errors.New("extra is no object")
	}
	return nil
}
