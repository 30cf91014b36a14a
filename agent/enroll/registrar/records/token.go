package records

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// ErrTokenUnknown says that no such token was given out.
var ErrTokenUnknown = errors.New("the token is not known")

// Grant is what one token entitles to. The file is named after the token's digest and never
// changes; whether it was redeemed is told by the record of its device, and added on reading.
type Grant struct {
	Device  string    `json:"device"`
	Added   time.Time `json:"added"`
	Expires time.Time `json:"expires"`
	// What came of it.
	Issued    time.Time `json:"issued,omitzero"`
	PublicKey string    `json:"public_key_sha256,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotAfter  time.Time `json:"not_after,omitzero"`
}

// Used reports whether the token was redeemed.
func (g Grant) Used() bool { return !g.Issued.IsZero() }

// End is when the token stops to be of use. One that was redeemed may fetch its certificate
// for as long as that is valid: only its key can use it.
func (g Grant) End() time.Time {
	if g.Used() {
		return g.NotAfter
	}
	return g.Expires
}

// TokenDigest is what a book of records stores of a token: who reads it cannot redeem it.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// AddToken makes a token of 160 random bits for device.
func (b *Book) AddToken(device string, valid time.Duration) (string, error) {
	if err := CheckDevice(device); err != nil {
		return "", err
	}
	if valid <= 0 {
		return "", hint.With(fmt.Errorf("a token that is valid for %v cannot be redeemed", valid), "give it an hour")
	}
	secret := make([]byte, 20)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	token, now := base64.RawURLEncoding.EncodeToString(secret), time.Now().UTC()
	return token, b.write(tokenDir, TokenDigest(token), Grant{Device: device, Added: now, Expires: now.Add(valid)})
}

// Token returns what a token entitles to, or ErrTokenUnknown.
func (b *Book) Token(token string) (Grant, error) {
	g, err := b.grant(TokenDigest(token))
	if errors.Is(err, fs.ErrNotExist) {
		return g, ErrTokenUnknown
	}
	return g, err
}

func (b *Book) grant(digest string) (Grant, error) {
	var g Grant
	if err := b.read(tokenDir, digest, &g); err != nil {
		return g, err
	}
	if err := CheckDevice(g.Device); err != nil {
		return g, fmt.Errorf("reading a token: %w", err)
	}
	d, err := b.Device(g.Device)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return g, err
	}
	if c := d.Issued(ByToken(digest)); c != nil {
		g.Issued, g.PublicKey, g.Serial, g.NotAfter = c.Issued, c.PublicKey, c.Serial, c.NotAfter
	}
	return g, nil
}

// Tokens lists every token, the oldest first; as Devices does.
func (b *Book) Tokens() ([]Grant, error) {
	names, err := b.names(tokenDir)
	if err != nil {
		return nil, fmt.Errorf("listing the tokens: %w", err)
	}
	var grants []Grant
	var damaged []error
	for _, name := range names {
		g, err := b.grant(name)
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		grants = append(grants, g)
	}
	slices.SortStableFunc(grants, func(a, b Grant) int { return a.Added.Compare(b.Added) })
	return grants, unreadable(damaged)
}

// names lists the files of a folder without their ending. A temporary file that a power cut
// left is none.
func (b *Book) names(folder string) ([]string, error) {
	entries, err := b.fsys.ReadDir(b.folder(folder))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if name, found := strings.CutSuffix(entry.Name(), ".json"); found && !entry.IsDir() {
			names = append(names, name)
		}
	}
	return names, nil
}
