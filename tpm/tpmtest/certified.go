package tpmtest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"ferrule/internal/hint"
)

const (
	// stateFile is what swtpm keeps in its folder: seeds, persistent objects and NV.
	stateFile = "tpm2-00.permall"
	// setupTimeout bounds the making of one TPM, which takes 0.6 s, most of it waiting.
	setupTimeout = 60 * time.Second
	// atOnce is how many TPMs a Maker makes at a time: swtpm_setup mostly waits, so this is
	// more than there are processors.
	atOnce = 12
)

// A Maker plays the TPM manufacturer: a certification authority of its own, and chips whose
// endorsement certificates it has signed: RSA-2048 at 0x01C00002 and P-384 at 0x01C00016,
// as swtpm_setup makes them. Nothing outside its folder is touched.
type Maker struct {
	dir string

	mu    sync.Mutex // held while the authority is being made: the first chip does that
	chain []*x509.Certificate
}

// NewMaker returns the manufacturer whose authority is kept in dir, which exists. The
// authority is made with the first TPM, in a second.
func NewMaker(dir string) (*Maker, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("founding a TPM manufacturer: %w", err)
	}
	m := &Maker{dir: dir}
	for name, text := range map[string]string{
		"swtpm_setup.conf": "create_certs_tool = swtpm_localca\n" +
			"create_certs_tool_config = " + m.path("localca.conf") + "\n" +
			"create_certs_tool_options = " + m.path("localca.options") + "\n" +
			"active_pcr_banks = sha256\n",
		"localca.conf": "statedir = " + dir + "\n" +
			"signingkey = " + m.path("signkey.pem") + "\n" +
			"issuercert = " + m.path("issuercert.pem") + "\n" +
			"certserial = " + m.path("certserial") + "\n",
		"localca.options": "--platform-manufacturer Ferrule\n--platform-model test\n--platform-version 1\n",
	} {
		if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("founding a TPM manufacturer: %w", err)
		}
	}
	return m, nil
}

func (m *Maker) path(name string) string { return filepath.Join(m.dir, name) }

// Make writes the memory of a new TPM into stateDir, which exists: seeds of its own, and
// certificates for them. ErrNotInstalled where swtpm_setup is missing.
func (m *Maker) Make(ctx context.Context, stateDir string) error {
	m.mu.Lock()
	if m.chain != nil {
		m.mu.Unlock()
		return m.setup(ctx, stateDir)
	}
	defer m.mu.Unlock()
	if err := m.setup(ctx, stateDir); err != nil {
		return err
	}
	chain, err := m.readChain()
	m.chain = chain
	return err
}

// MakeAll makes one TPM for every folder, several at a time: 100 in some 10 s on two
// processors.
func (m *Maker) MakeAll(ctx context.Context, stateDirs []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, dir := range stateDirs {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := m.Make(ctx, dir); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// Roots are the manufacturer's certificates, its root first and then the one that signs the
// chips'; nil before the first TPM was made. The second may be given as an intermediate or,
// like the first, be trusted itself.
func (m *Maker) Roots() []*x509.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chain
}

// RootsPEM is a file of Roots.
func (m *Maker) RootsPEM() []byte { return encode(m.Roots()) }

func encode(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func (m *Maker) setup(ctx context.Context, stateDir string) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	for _, program := range []string{"swtpm_setup", "swtpm_localca", "swtpm"} {
		if _, err := exec.LookPath(program); err != nil {
			return hint.With(fmt.Errorf("%w: %w", ErrNotInstalled, err), "install it: apt install swtpm swtpm-tools")
		}
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", stateDir, "--config", m.path("swtpm_setup.conf"),
		"--create-ek-cert", "--overwrite", "--pcr-banks", "-")
	// Its own configuration and state would be looked for below these.
	cmd.Env = append(os.Environ(), "HOME="+m.dir, "XDG_CONFIG_HOME="+m.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making a TPM with swtpm_setup: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (m *Maker) readChain() ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		data, err := os.ReadFile(m.path(name))
		if err != nil {
			return nil, fmt.Errorf("reading the TPM manufacturer's certificates: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("reading the TPM manufacturer's certificates: no PEM block in %s", name)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the TPM manufacturer's certificates: %w", err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// stock is two made TPMs to copy from.
type stock struct {
	states [2][]byte
	roots  []*x509.Certificate
}

// stocked makes the two TPMs once per process: a second, where a copy takes no time.
var stocked = sync.OnceValues(func() (stock, error) {
	var s stock
	dir, err := shortDir()
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	m, err := NewMaker(dir)
	if err != nil {
		return s, err
	}
	for i := range s.states {
		state := filepath.Join(dir, fmt.Sprint("state", i))
		if err := os.Mkdir(state, 0o700); err != nil {
			return s, err
		}
		if err := m.Make(context.Background(), state); err != nil {
			return s, err
		}
		if s.states[i], err = os.ReadFile(filepath.Join(state, stateFile)); err != nil {
			return s, err
		}
	}
	s.roots = m.Roots()
	return s, nil
})

// StartCertified starts a TPM with endorsement certificates; its memory is in stateDir, and
// is written there unless the folder has one. Within a process all have the same seeds, so
// the same keys: a Maker makes different ones. The caller calls Stop.
func StartCertified(ctx context.Context, stateDir string) (*Swtpm, error) {
	return startCopy(ctx, stateDir, 0)
}

func startCopy(ctx context.Context, stateDir string, which int) (*Swtpm, error) {
	made, err := stocked()
	if err != nil {
		return nil, fmt.Errorf("starting a certified TPM: %w", err)
	}
	name := filepath.Join(stateDir, stateFile)
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		err = os.WriteFile(name, made.states[which], 0o600)
		if err != nil {
			return nil, fmt.Errorf("starting a certified TPM: %w", err)
		}
	}
	s, err := StartSwtpm(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	s.roots = made.roots
	return s, nil
}

// Roots are the certificates of this TPM's manufacturer as Maker.Roots gives them; nil for
// one that was not started by StartCertified, Certified or Other.
func (s *Swtpm) Roots() []*x509.Certificate { return s.roots }

// RootsPEM is a file of Roots.
func (s *Swtpm) RootsPEM() []byte { return encode(s.roots) }

// Certified gives a test a TPM with endorsement certificates. It ends with the test.
func Certified(t TB) *Swtpm {
	t.Helper()
	return certified(t, 0)
}

// Other is Certified, of the same manufacturer, with another chip.
func Other(t TB) *Swtpm {
	t.Helper()
	return certified(t, 1)
}

func certified(t TB, which int) *Swtpm {
	t.Helper()
	s, err := startCopy(context.Background(), t.TempDir(), which)
	return started(t, s, err)
}

func started(t TB, s *Swtpm, err error) *Swtpm {
	t.Helper()
	if errors.Is(err, ErrNotInstalled) {
		t.Fatal("swtpm or swtpm_setup is missing; run: make deps")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	})
	return s
}
