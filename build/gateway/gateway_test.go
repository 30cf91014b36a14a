// Package gateway boots the appliance's image in QEMU, with U-Boot, a TPM, a serial line and a
// network, and follows it from the flash through enrollment and updates, while its power is cut.
// The trap: a killed QEMU leaves every write it has made, which no power cut does; so what an
// update writes is also recorded, and every disk that a cut may leave is looked at.
package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is what a wait may take on a machine with much else to do.
const patience = 90 * time.Second

// made is what is built once for all tests.
var made struct {
	dir, image, factory, release string
	err                          error
	sync.Once

	mu    sync.Mutex
	slots map[kind]string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.dir != "" {
		_ = os.RemoveAll(made.dir)
	}
	os.Exit(code)
}

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// tools builds the host's programs and the first image, once.
func tools(t *testing.T) {
	t.Helper()
	made.Do(func() {
		if made.dir, made.err = os.MkdirTemp("", "gw"); made.err != nil {
			return
		}
		for _, program := range []string{"./build/image", "./cmd/ferrule-factory", "./cmd/ferrule-release"} {
			if made.err = inRoot(t, "go", "build", "-o", made.dir+"/", program); made.err != nil {
				return
			}
		}
		made.image, made.factory = filepath.Join(made.dir, "image"), filepath.Join(made.dir, "ferrule-factory")
		made.release = filepath.Join(made.dir, "ferrule-release")
		made.err = inRoot(t, made.image, "-o", filepath.Join(made.dir, "A"), "-version", "1.0.0", "qemu-arm64")
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
}

func inRoot(t *testing.T, argv ...string) error {
	command := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	command.Dir = root(t)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// need returns the path of a foreign program, or fails the test.
func need(t *testing.T, program string) string {
	t.Helper()
	for _, name := range []string{program, filepath.Join("/usr/sbin", program)} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; run: make deps", program)
	return ""
}

// mustRun runs a command to its end and returns its standard output.
func mustRun(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	if err := command.Run(); err != nil {
		t.Fatalf("running %s: %v\n%s%s", strings.Join(argv, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// line is one line that a process said, and when.
type line struct {
	at   time.Time
	text string
}

// process is a child whose output is kept, and that ends with the test, or with this process.
type process struct {
	*exec.Cmd
	name  string
	ended chan struct{}

	mu    sync.Mutex
	said  []line
	grown chan struct{} // closed and made anew with every line
}

func start(t *testing.T, name string, argv ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(argv[0], argv[1:]...), name: name, ended: make(chan struct{}), grown: make(chan struct{})}
	// A test that is ended by its time limit cleans nothing up; the kernel does.
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = in, in
	started := make(chan error, 1)
	go func() { // ends with the child
		runtime.LockOSThread() // the kernel takes the thread for the parent
		err := p.Start()
		_ = in.Close()
		started <- err
		if err == nil {
			p.read(out)
			_ = p.Wait()
			close(p.ended)
		}
		_ = out.Close()
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.kill()
		if dir := os.Getenv("GATEWAY_LOGS"); dir != "" { // the whole of it, for a person
			name := fmt.Sprintf("%s-%s-%d.log", strings.ReplaceAll(t.Name(), "/", "-"), strings.ReplaceAll(p.name, " ", "-"), p.Process.Pid)
			_ = os.WriteFile(filepath.Join(dir, name), []byte(p.tail(1<<30)), 0o600)
		}
		if t.Failed() {
			t.Logf("the end of what %s said:\n%s", name, p.tail(25))
		}
	})
	return p
}

func (p *process) read(out *os.File) {
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.mu.Lock()
		p.said = append(p.said, line{time.Now(), strings.TrimRight(scanner.Text(), "\r")})
		close(p.grown)
		p.grown = make(chan struct{})
		p.mu.Unlock()
	}
}

// lines are those from number n on, and what tells that there are more.
func (p *process) lines(n int) ([]line, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said[min(n, len(p.said)):], p.grown
}

func (p *process) tail(n int) string {
	all, _ := p.lines(0)
	var text strings.Builder
	for _, l := range all[max(0, len(all)-n):] {
		fmt.Fprintf(&text, "%s %s\n", l.at.Format("15:04:05.000"), l.text)
	}
	return text.String()
}

// wait returns the first line from number from on that holds one of texts, and its number.
func (p *process) wait(t *testing.T, from int, texts ...string) (line, int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		all, grown := p.lines(from)
		for n, l := range all {
			for _, text := range texts {
				if strings.Contains(l.text, text) {
					return l, from + n
				}
			}
		}
		from += len(all)
		select {
		case <-grown:
		case <-p.ended:
			if rest, _ := p.lines(from); len(rest) == 0 {
				t.Fatalf("%s ended before it said one of %q:\n%s", p.name, texts, p.tail(40))
			}
		case <-deadline:
			t.Fatalf("%s did not say one of %q:\n%s", p.name, texts, p.tail(40))
		}
	}
}

// kill is SIGKILL, and returns when the child is gone.
func (p *process) kill() {
	_ = p.Process.Kill()
	<-p.ended
}
