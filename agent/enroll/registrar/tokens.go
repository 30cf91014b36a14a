package registrar

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// Grant is what one token entitles to, and what came of it. It is one file, named after the
// token's digest, so that the tool which adds tokens and the registrar that redeems them
// share nothing but atomic renames, and the records are never at odds with the tokens.
type Grant struct {
	Device  string    `json:"device"`
	Added   time.Time `json:"added"`
	Expires time.Time `json:"expires"`
	// The rest is set when the certificate is issued. The same key may fetch it again, so
	// that a power cut between issuing and storing ends with one certificate.
	Issued    time.Time `json:"issued,omitzero"`
	PublicKey string    `json:"public_key_sha256,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Chain     string    `json:"chain,omitempty"`
}

// Used reports whether the token was redeemed.
func (g Grant) Used() bool { return !g.Issued.IsZero() }

// end is when the token stops to be of use. One that was redeemed may fetch its certificate
// for as long as that is valid: only its key can use it.
func (g Grant) end() time.Time {
	if g.Used() {
		return g.NotAfter
	}
	return g.Expires
}

var (
	errTokenUnknown = errors.New("the token is not known")
	errDeviceID     = errors.New("a device id is 1 to 64 letters, digits, and any of . _ -")
)

// deviceID keeps ids fit for topics, file names and host names alike.
var deviceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

const tokenDir = "tokens"

// AddToken makes a token of 160 random bits for device. Only its digest is stored: who reads
// the directory cannot redeem it.
func (c *CA) AddToken(device string, valid time.Duration) (string, error) {
	if !deviceID.MatchString(device) {
		return "", fmt.Errorf("device id %q: %w", device, errDeviceID)
	}
	if valid <= 0 {
		return "", fmt.Errorf("a token that is valid for %v cannot be redeemed", valid)
	}
	if err := makeFolder(c.fsys, filepath.Join(c.dir, tokenDir)); err != nil {
		return "", fmt.Errorf("making the directory of tokens: %w", err)
	}
	secret := make([]byte, 20)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	token := base64.RawURLEncoding.EncodeToString(secret)
	now := time.Now().UTC()
	return token, c.writeGrant(token, Grant{Device: device, Added: now, Expires: now.Add(valid)})
}

func (c *CA) grantPath(token string) string {
	digest := sha256.Sum256([]byte(token))
	return filepath.Join(c.dir, tokenDir, hex.EncodeToString(digest[:])+".json")
}

func (c *CA) writeGrant(token string, g Grant) error {
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(c.fsys, c.grantPath(token), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("storing the token: %w", err)
	}
	return nil
}

func (c *CA) readGrant(token string) (Grant, error) {
	g, err := c.readGrantFile(c.grantPath(token))
	if errors.Is(err, fs.ErrNotExist) {
		return g, errTokenUnknown
	}
	return g, err
}

func (c *CA) readGrantFile(path string) (Grant, error) {
	var g Grant
	text, err := disk.ReadFile(c.fsys, path, maxFileBytes)
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil {
		return g, fmt.Errorf("reading a token: %w", err)
	}
	return g, nil
}

// Grants lists every token, the oldest first.
func (c *CA) Grants() ([]Grant, error) {
	entries, err := c.fsys.ReadDir(filepath.Join(c.dir, tokenDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the tokens: %w", err)
	}
	var grants []Grant
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".json") {
			continue // a temporary file that a power cut left
		}
		g, err := c.readGrantFile(filepath.Join(c.dir, tokenDir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Name(), err)
		}
		grants = append(grants, g)
	}
	slices.SortFunc(grants, func(a, b Grant) int { return a.Added.Compare(b.Added) })
	return grants, nil
}
