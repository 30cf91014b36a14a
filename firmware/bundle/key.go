package bundle

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Kinds of keys.
const (
	Ed25519 = "ed25519"
	P256    = "p256"
)

const (
	maxKeyFile = 16 << 10
	keySuffix  = ".pem"
)

// Key is a private key of a role.
type Key struct {
	ID     string // as metadata names it: a SHA-256, hex
	File   string // where it was read from
	signer crypto.Signer
	public *metadata.Key
}

// Keys are private keys; which role each is for says the root.
type Keys []Key

// GenerateKey makes a key of a kind.
func GenerateKey(kind string) (Key, error) {
	switch kind {
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return Key{}, err
		}
		return NewKey(private)
	case P256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return Key{}, err
		}
		return NewKey(private)
	}
	return Key{}, fmt.Errorf("a key's kind is %s or %s, not %.40q", Ed25519, P256, kind)
}

// NewKey takes an ed25519 or P-256 key.
func NewKey(signer crypto.Signer) (Key, error) {
	if e, ok := signer.Public().(*ecdsa.PublicKey); ok && e.Curve != elliptic.P256() {
		return Key{}, errors.New("of the elliptic curves only P-256 is used")
	}
	switch signer.(type) {
	case ed25519.PrivateKey, *ecdsa.PrivateKey:
	default:
		return Key{}, fmt.Errorf("a key is ed25519 or P-256, not %T", signer)
	}
	public, err := metadata.KeyFromPublicKey(signer.Public())
	if err != nil {
		return Key{}, err
	}
	id, err := public.ID()
	return Key{ID: id, signer: signer, public: public}, err
}

// ParseKey reads PKCS #8 in PEM.
func ParseKey(text []byte) (Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return Key{}, hint.With(errors.New("it holds no PRIVATE KEY in PEM"), "make one: ferrule-release keys init, or: openssl genpkey -algorithm ed25519")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Key{}, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return Key{}, fmt.Errorf("a %T does not sign", private)
	}
	return NewKey(signer)
}

// PEM is the key as ParseKey reads it.
func (k Key) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// sign signs the same bytes with the same signature, each time: ed25519 always does, ECDSA where
// it is given no randomness (RFC 6979).
func (k Key) sign(message []byte) ([]byte, error) {
	if _, ok := k.signer.(ed25519.PrivateKey); ok {
		return k.signer.Sign(nil, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return k.signer.Sign(nil, sum[:], crypto.SHA256)
}

// LoadKeys reads keys: files, and folders whose *.pem are read. A key that comes twice counts
// once. A file that others may read is refused; a pipe is not asked for its permissions.
func LoadKeys(fsys disk.FS, paths ...string) (Keys, error) {
	var keys Keys
	for _, path := range paths {
		files := []string{path}
		if entries, err := fsys.ReadDir(path); err == nil {
			files = nil
			for _, e := range entries {
				if !e.IsDir() && strings.HasSuffix(e.Name(), keySuffix) {
					files = append(files, filepath.Join(path, e.Name()))
				}
			}
			if len(files) == 0 {
				return nil, fmt.Errorf("reading keys: %s holds no *%s", path, keySuffix)
			}
		}
		for _, file := range files {
			k, err := loadKey(fsys, file)
			if err != nil {
				return nil, fmt.Errorf("reading key %s: %w", file, err)
			}
			if !slices.ContainsFunc(keys, func(other Key) bool { return other.ID == k.ID }) {
				keys = append(keys, k)
			}
		}
	}
	slices.SortFunc(keys, func(a, b Key) int { return cmp.Compare(a.ID, b.ID) })
	return keys, nil
}

func loadKey(fsys disk.FS, file string) (Key, error) {
	f, err := fsys.OpenFile(file, os.O_RDONLY, 0)
	if err != nil {
		return Key{}, err
	}
	info, err := f.Stat()
	f.Close()
	if err != nil {
		return Key{}, err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return Key{}, hint.With(errors.New("others may read it"), "chmod 600 "+file)
	}
	text, err := disk.ReadFile(fsys, file, maxKeyFile)
	if err != nil {
		return Key{}, err
	}
	k, err := ParseKey(text)
	k.File = file
	return k, err
}

// makeKeys makes n keys of a role in a folder, ROLE-1.pem and so on. Those that are there already
// and are not in use are taken, so that a run that was cut is finished, not doubled.
func makeKeys(fsys disk.FS, folder, role, kind string, n int, inUse map[string]*metadata.Key) (Keys, error) {
	if err := disk.MakeFolder(fsys, folder); err != nil {
		return nil, fmt.Errorf("making folder %s: %w", folder, err)
	}
	var keys Keys
	for i := 1; len(keys) < n; i++ {
		file := filepath.Join(folder, role+"-"+strconv.Itoa(i)+keySuffix)
		k, err := loadKey(fsys, file)
		if errors.Is(err, fs.ErrNotExist) {
			k, err = writeKey(fsys, file, kind)
		}
		if err != nil {
			return nil, fmt.Errorf("making key %s: %w", file, err)
		}
		if inUse[k.ID] == nil {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func writeKey(fsys disk.FS, file, kind string) (Key, error) {
	k, err := GenerateKey(kind)
	if err != nil {
		return Key{}, err
	}
	text, err := k.PEM()
	if err != nil {
		return Key{}, err
	}
	k.File = file
	return k, writeSecret(fsys, file, text)
}
