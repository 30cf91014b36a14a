package archive

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Removed stands where something was taken out.
const Removed = "(left out)"

// leastSecret is the shortest text that is looked for everywhere: shorter ones are in too many words.
const leastSecret = 4

// Scrubber takes secrets out of text.
type Scrubber struct {
	known    [][]byte
	patterns []pattern
}

type pattern struct {
	what *regexp.Regexp
	with []byte
}

// NewScrubber knows secrets, in every way in which they may be written, and what secrets look like:
// names and passwords in URLs, private keys, tokens, and what follows a word for one.
func NewScrubber(secrets []string) *Scrubber {
	s := &Scrubber{patterns: []pattern{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|SECRET|TSS2)[A-Z0-9 ]*-----.*?(?:-----END [A-Z0-9 ]*-----|\z)`), []byte(Removed)},
		{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/\s"'@\\]*(?:\\.[^/\s"'@\\]*)*@`), []byte("${1}" + Removed + "@")},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), []byte(Removed)}, // a JSON web token
		{regexp.MustCompile(`(?i)\b((?:proxy-)?authorization:\s*(?:basic|bearer|digest)?\s*)[^\s"]+`), []byte("${1}" + Removed)},
		{regexp.MustCompile(`(?i)(["']?[A-Za-z0-9_.-]*(?:password|passwd|passphrase|secret|token|api_?key|credential)["']?\s*[:=]\s*)("(?:[^"\\\n]|\\.)+"|'[^'\n]+'|[^\s,;"'{}\[\]]+)`), []byte("${1}\"" + Removed + "\"")},
		{regexp.MustCompile(`(CLIENT_RANDOM|(?:CLIENT|SERVER)_(?:HANDSHAKE_)?TRAFFIC_SECRET(?:_0)?|EXPORTER_SECRET)\s+[0-9A-Fa-f]+\s+[0-9A-Fa-f]+`), []byte("${1} " + Removed)},
	}}
	for _, secret := range secrets {
		for _, way := range ways(secret) {
			if len(way) >= leastSecret {
				s.known = append(s.known, []byte(way))
			}
		}
	}
	// The longest first, or a part of one would leave the rest standing.
	slices.SortFunc(s.known, func(a, b []byte) int { return len(b) - len(a) })
	s.known = slices.CompactFunc(s.known, bytes.Equal)
	return s
}

// ways are those in which a text may be written.
func ways(secret string) []string {
	quoted, _ := json.Marshal(secret) // a string can always be encoded
	all := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), url.UserPassword("", secret).String(),
		strings.Trim(string(quoted), `"`), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	if _, password, ok := strings.Cut(secret, ":"); ok && password != "" {
		all = append(all, ways(password)...)
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		all = append(all, e.EncodeToString([]byte(secret)))
	}
	return all
}

// Clean returns text without what is secret.
func (s *Scrubber) Clean(text []byte) []byte {
	for _, secret := range s.known {
		text = bytes.ReplaceAll(text, secret, []byte(Removed))
	}
	for _, p := range s.patterns {
		text = p.what.ReplaceAll(text, p.with)
	}
	return text
}
