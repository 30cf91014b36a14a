package agent_test

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// arrows says what a package may import, and why. A key that ends in /* stands for every
// package below.
type arrows map[string]string

// trees is the first rule: imports point down only. hw, tpm and firmware know neither each
// other nor the agent. It is all that holds for test files, which may use every test double of
// their own tree and of those below.
var trees = map[string][]string{
	"build":    {"build", "cmd", "agent", "hw", "tpm", "firmware", "internal"},
	"docs":     {"agent", "hw", "internal"},
	"cmd":      {"agent", "hw", "tpm", "firmware", "internal"},
	"agent":    {"agent", "hw", "tpm", "firmware", "internal"},
	"hw":       {"hw", "internal"},
	"tpm":      {"tpm", "internal"},
	"firmware": {"firmware", "internal"},
	"internal": {"internal"},
}

// rooms is the second rule: every package of the module, and what it may import of the
// others. Any arrow that is not here is refused; so is any package. All may import internal.
var rooms = map[string]arrows{
	"build": {},
	"build/bench": {
		"agent/*": "measures the outbox and the session beside their peers",
		"hw/*":    "simulates the line that the measured agent polls",
		"tpm/*":   "starts the TPM that the measured agent uses",
	},
	"build/e2e":        {},
	"build/gateway":    {"firmware/*": "rebuilds disks from recorded writes, and reads their environments"},
	"build/image":      {"firmware/slot": "writes the first environment of a disk"},
	"build/image/init": {},

	"docs/examples/consumer": {}, // knows of the project what its documents say

	"cmd/ferrule": {
		"agent/*": "turns the agent's errors into exit codes and prints what it says",
		"hw":      "read and write on a line that no agent holds",
		"hw/*":    "lists ports, prints values",
		"tpm":     "exit codes of TPM errors",

		"firmware":      "exit codes of updates, and what their status says",
		"firmware/slot": "what the boot loader says",
	},
	"cmd/ferrule-demo": {"agent/*": "the cloud in a box", "hw/*": "the sensors in a box", "tpm/*": "the TPM in a box"},
	"cmd/ferrule-factory": {
		"agent/command/authorize": "signs what a command is allowed to do",
		"agent/enroll/*":          "serves enrollment",
		"tpm/attest":              "the manufacturers' roots that it is told to trust",
	},
	"cmd/ferrule-release": {
		"firmware/bundle":   "writes releases",
		"firmware/bundle/*": "makes deltas",
		"firmware/manifest": "shows what it wrote",
	},
	"cmd/ferrule-p11": {"tpm/signer": "serves the protocol of signer helpers"},

	"agent": {
		"agent/*": "composes its children",
		"hw":      "runs the lines",
		"hw/*":    "reads and writes for commands",
		"tpm":     "reports the TPM in the status, and counts in it",

		"firmware":      "runs the updates",
		"firmware/slot": "gives them the slots that are configured",
		"firmware/rauc": "gives them RAUC",
	},
	"agent/agenttest":         {"agent/enroll/registrar/*": "the registrar of the cloud in a box"},
	"agent/audit":             {},
	"agent/command/authorize": {},
	"agent/clock":             {},
	"agent/command": {
		"agent/command/authorize": "asks whether a command may act",
		"agent/command/journal":   "remembers what was executed",
	},
	"agent/config": {
		"agent/*":    "reads the file into the Config struct of every part",
		"hw":         "reads [[line]] into its Config struct",
		"firmware":   "reads [update] into its Config struct",
		"hw/profile": "the points of a unit are written as in a profile",
	},
	"agent/encode": {
		"agent/encode/sparkplug": "speaks Sparkplug B",
		"hw":                     "encodes what a line reads",
		"hw/point":               "encodes its values",
	},
	"agent/encode/sparkplug": {"hw": "encodes what a line reads", "hw/point": "encodes its values"},
	"agent/enroll": {
		"agent/enroll/est":    "enrolls at an EST server",
		"agent/enroll/hook":   "enrolls by a program of the user's",
		"agent/enroll/peer":   "asks the registrar, and sorts the answers of all",
		"agent/enroll/stepca": "enrolls at step-ca",
		"agent/enroll/wire":   "speaks the registrar's messages",
	},
	"agent/enroll/est":  {"agent/enroll/peer": "asks the server"},
	"agent/enroll/hook": {"agent/enroll/peer": "sorts the program's answers"},
	"agent/enroll/peer": {},
	"agent/enroll/registrar": {
		"agent/enroll/est":    "hands checked requests to an EST server",
		"agent/enroll/hook":   "hands them to a program of the user's",
		"agent/enroll/peer":   "tells a passing fault of the service behind it from its no",
		"agent/enroll/stepca": "hands them to step-ca",
		"agent/enroll/wire":   "answers the device's messages",
		"tpm/attest":          "checks the TPM's evidence",

		"agent/enroll/registrar/ca":      "issues, and serves with its certificate",
		"agent/enroll/registrar/records": "remembers what was issued to whom",
	},
	"agent/enroll/registrar/ca":      {},
	"agent/enroll/registrar/records": {},
	"agent/enroll/stepca":            {"agent/enroll/peer": "asks step-ca"},
	"agent/enroll/wire":              {},
	"agent/identity": {
		"agent/enroll":      "obtains certificates",
		"agent/enroll/wire": "reads and writes the files of an enrollment without a network",
		"tpm":               "holds the key",
		"tpm/attest":        "binds the TPM's evidence to one enrollment",
	},
	"agent/command/journal": {},
	"agent/local": {
		"agent/local/listener": "lets clients in over TLS",
		"agent/local/role":     "says what each may do",
	},
	"agent/local/listener": {"agent/local/role": "asks who each client is"},
	"agent/local/page":     {},
	"agent/local/role":     {},
	"agent/outbox":         {},
	"agent/session": {
		"agent/encode":        "expands topics",
		"agent/identity":      "presents the certificate",
		"agent/outbox":        "drains it",
		"agent/session/cause": "names failures",
		"agent/session/dial":  "connects",
	},
	"agent/session/cause": {},
	"agent/session/dial": {
		"agent/identity":      "presents the certificate",
		"agent/session/cause": "names the stage that failed",
	},
	"agent/doctor": {
		"agent/identity":      "asks whether key and certificate fit",
		"agent/session/cause": "names failures as the session does",
		"agent/session/dial":  "connects as the session does",

		"agent/doctor/handshake": "explains what was said",
	},
	"agent/doctor/archive":   {},
	"agent/doctor/handshake": {},
	"agent/config/trial":     {},
	"agent/trust":            {},

	"firmware": {
		"firmware/fetch":    "gets what an update is made of",
		"firmware/manifest": "carries it out",
		"firmware/patch":    "makes parts of objects",
		"firmware/rauc":     "has RAUC install where it owns the slots",
		"firmware/slot":     "writes slots and has them booted",
		"firmware/tuf":      "believes no repository that the roles have not signed",
	},
	"firmware/bundle": {
		"firmware/bundle/delta": "makes objects",
		"firmware/manifest":     "describes them",
		"firmware/patch":        "checks what it wrote",
		"firmware/tuf":          "looks at the repository as a device does",
		"firmware/fetch":        "reads the repository as a device does",
	},
	"firmware/bundle/bundletest": {"firmware/bundle": "makes what it serves", "firmware/manifest": "says what it made"},
	"firmware/bundle/delta":      {"firmware/manifest": "the size of a segment", "firmware/patch": "writes its format"},
	"firmware/fetch":             {"firmware/manifest": "gets its objects"},
	"firmware/manifest":          {"firmware/tuf": "is made of a signed target, and of nothing else"},
	"firmware/patch":             {"firmware/manifest": "checks every segment against its hash"},
	"firmware/rauc":              {"firmware/manifest": "installs what it names", "firmware/slot": "is a boot loader, too"},
	"firmware/slot":              {},
	"firmware/slot/blocktest":    {"firmware/slot": "stands in for a medium"},
	"firmware/slot/slottest":     {"firmware/slot": "the suite that every boot loader passes", "firmware/slot/blocktest": "cuts its power"},
	"firmware/tuf":               {},

	"hw": {
		"hw/*": "polls units and listens to talkers in the protocols of its children",
	},
	"hw/dsmr":            {"hw/frame": "cuts telegrams", "hw/obis": "names points", "hw/point": "gives readings"},
	"hw/frame":           {"hw/point": "gives the readings of a frame of bytes"},
	"hw/frame/frametest": {"hw/frame": "the suite that every Split passes"},
	"hw/hwtest":          {"hw/modbus": "a simulated unit uses the server's side of the codec", "hw/port": "knows a line's settings"},
	"hw/mbus":            {"hw/frame": "cuts frames", "hw/point": "gives readings"},
	"hw/modbus":          {},
	"hw/nmea":            {"hw/frame": "cuts sentences", "hw/point": "gives readings"},
	"hw/obis":            {"hw/point": "makes values of decimal numbers"},
	"hw/point":           {},
	"hw/port":            {},
	"hw/profile":         {"hw/modbus": "checks the addresses of a profile", "hw/point": "checks its types"},
	"hw/sml":             {"hw/frame": "cuts transmissions", "hw/obis": "names points", "hw/point": "gives readings"},
	"hw/sunspec":         {"hw/profile": "gives the points of a model", "hw/modbus": "names registers"},
	"hw/text":            {"hw/frame": "cuts lines", "hw/point": "gives readings"},
	"hw/vedirect":        {"hw/frame": "cuts blocks", "hw/point": "gives readings"},

	"tpm": {
		"tpm/attest": "gives the evidence that it checks",
		"tpm/signer": "opens keys that a helper process keeps",
	},
	"tpm/attest":  {},
	"tpm/signer":  {},
	"tpm/tpmtest": {"tpm": "stands in for its transport"},

	"internal/atomicfile":    {},
	"internal/cli":           {},
	"internal/disk":          {},
	"internal/disk/disktest": {},
	"internal/hint":          {},
	"internal/jws":           {},
	"internal/quantity":      {},
	"internal/record":        {},
	"internal/strict":        {},
}

// library is a module of others, or a package of Go's own that needs a reason.
type library struct {
	by    []string // the packages that may import it, in code and in tests
	tests bool     // any test may
	why   string
}

// libraries is the third rule: what is foreign has one door. A module that is not here is refused.
var libraries = map[string]library{
	"github.com/VictoriaMetrics/metrics":                {by: []string{"agent"}, why: "writes /metrics"},
	"github.com/chromedp/cdproto":                       {tests: true, why: "the words of Chromium's protocol"},
	"github.com/chromedp/chromedp":                      {tests: true, why: "drives the browser that the status page is tested in"},
	"github.com/coreos/go-systemd/v22":                  {by: []string{"agent", "cmd/ferrule"}, why: "tells systemd that the agent is ready"},
	"github.com/creack/pty":                             {by: []string{"hw/hwtest"}, tests: true, why: "a pty is the simulated wire"},
	"github.com/eclipse/paho.mqtt.golang":               {by: []string{"agent/session", "build/bench", "docs/examples/consumer"}, why: "its traps are known in one place; build/bench measures it bare; a consumer of ours is anybody's"},
	"github.com/fxamacker/cbor/v2":                      {by: []string{"docs/examples/consumer"}, tests: true, why: "the foreign reader of CBOR"},
	"github.com/godbus/dbus/v5":                         {tests: true, why: "the foreign RAUC; the device speaks D-Bus in fewer lines and 300 KB less"},
	"github.com/google/go-cmp":                          {tests: true, why: "compares structs in tests"},
	"github.com/google/go-tpm":                          {by: []string{"tpm", "tpm/attest", "tpm/tpmtest"}, why: "one tree owns the TPM's wire format"},
	"github.com/gorilla/websocket":                      {by: []string{"agent/local", "agent/session/dial"}, tests: true, why: "WebSocket, of the listener and to brokers"},
	"github.com/miekg/pkcs11":                           {by: []string{"cmd/ferrule-p11"}, why: "cgo, in the one program that may use it"},
	"github.com/insomniacslk/dhcp":                      {by: []string{"build/image/init"}, why: "gives the emulated gateway its address"},
	"github.com/klauspost/compress":                     {by: []string{"build/bench", "agent/encode", "docs/examples/consumer", "firmware/patch", "firmware/bundle/delta"}, tests: true, why: "zstd, of messages and of patches"},
	"github.com/mochi-mqtt/server/v2":                   {by: []string{"agent/agenttest"}, why: "the broker of the cloud in a box"},
	"github.com/pelletier/go-toml/v2":                   {by: []string{"internal/strict"}, why: "reads the configuration and the profiles"},
	"github.com/rogpeppe/go-internal":                   {tests: true, why: "testscript runs the real programs"},
	"github.com/schollz/progressbar/v3":                 {by: []string{"cmd/ferrule-factory", "cmd/ferrule-release"}, why: "shows how far long work is"},
	"github.com/smallstep/pkcs7":                        {by: []string{"agent/agenttest"}, tests: true, why: "what EST servers send; the device reads it in fewer lines and 84 KB less"},
	"github.com/secure-systems-lab/go-securesystemslib": {tests: true, why: "the canonical JSON that ours is held against"},
	"github.com/sigstore/sigstore":                      {tests: true, why: "how go-tuf signs"},
	"github.com/theupdateframework/go-tuf/v2":           {by: []string{"firmware/bundle"}, tests: true, why: "writes the repository, and is the foreign reader of what our client believes; linking it costs a device 2.4 MB"},
	"github.com/thejerf/suture/v4":                      {by: []string{"agent"}, why: "supervises the parts"},
	"go.bug.st/serial":                                  {by: []string{"hw/port"}, why: "one package opens serial ports"},
	"go.etcd.io/bbolt":                                  {by: []string{"build/bench"}, tests: true, why: "the peer that the outbox is measured against"},
	"go.uber.org/goleak":                                {tests: true, why: "finds goroutines that nobody waits for"},
	"golang.org/x/sys/unix":                             {by: []string{"agent", "agent/clock", "agent/session", "hw/hwtest", "hw/modbus", "hw/port", "tpm", "firmware/slot", "build/bench", "build/image/init", "build/gateway"}, tests: true, why: "system calls Go has no name for"},
	"golang.org/x/crypto/chacha20poly1305":              {by: []string{"agent/doctor/handshake"}, tests: true, why: "opens the records of a recorded handshake"},
	"golang.org/x/crypto/ocsp":                          {tests: true, why: "makes what a broker staples"},
	"golang.org/x/term":                                 {by: []string{"cmd/ferrule-factory", "cmd/ferrule-release"}, why: "is somebody watching?"},
	"pgregory.net/rapid":                                {tests: true, why: "properties in tests"},
	"rsc.io/qr":                                         {by: []string{"cmd/ferrule-factory"}, why: "draws the codes on labels"},

	"github.com/pkg/errors": {why: "errors are wrapped by fmt.Errorf with %w"},
	"log":                   {why: "logs are events of log/slog, and the logger is handed in"},
	"os/exec":               {by: []string{"agent/agenttest", "agent/enroll/hook", "build/bench", "build/image", "build/image/init", "cmd/ferrule", "cmd/ferrule-demo", "firmware", "tpm/tpmtest"}, tests: true, why: "the product starts no program but those that enroll.command and update.health_command name, and the operator's browser for status --web"},
	"testing":               {by: []string{"internal/disk/disktest"}, tests: true, why: "no program should link it"},
}

// TestImports holds the architecture: who may import whom, one door for each library, a
// sentence on every package, and no code that runs before main.
func TestImports(t *testing.T) {
	problems, err := checkImports(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// The negative control: each of these is one file that the check has to refuse.
func TestImportsRefuses(t *testing.T) {
	for name, file := range map[string]struct{ path, text, want string }{
		"upward":          {"hw/x.go", `import "ferrule/agent/outbox"`, "hw imports agent/outbox"},
		"sideways":        {"tpm/x.go", `import "ferrule/hw/port"`, "tpm imports hw/port"},
		"between parts":   {"agent/outbox/x.go", `import "ferrule/agent/session"`, "agent/outbox imports agent/session"},
		"child to parent": {"hw/modbus/x.go", `import "ferrule/hw"`, "hw/modbus imports hw"},
		"upward in test":  {"hw/x_test.go", `import "ferrule/agent/agenttest"`, "hw imports agent/agenttest"},
		"second door":     {"agent/x.go", `import mqtt "github.com/eclipse/paho.mqtt.golang"`, "agent imports github.com/eclipse/paho.mqtt.golang"},
		"below a library": {"agent/identity/x.go", `import "github.com/google/go-tpm/tpm2"`, "agent/identity imports github.com/google/go-tpm/tpm2"},
		"unknown library": {"hw/x.go", `import "example.com/modbus"`, "hw imports example.com/modbus"},
		"log":             {"hw/x.go", `import "log"`, "hw imports log"},
		"unknown package": {"agent/util/x.go", ``, "agent/util is not in the table"},
		"unknown tree":    {"pkg/x.go", ``, "pkg is not in the table"},
		"init":            {"hw/x.go", "func init() {}", "hw/x.go has a func init"},
		"no comment":      {"hw/port/x.go", "", "hw/port has no package comment"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := fstest.MapFS{
				"hw/hw.go":  {Data: []byte("// Package hw is a good one.\npackage hw\nimport \"ferrule/hw/point\"\n")},
				file.path:   {Data: []byte("package x\n" + file.text + "\n")},
				"x/LICENSE": {Data: []byte("no package at all")},
			}
			problems, err := checkImports(tree)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(problems, func(p string) bool { return strings.HasPrefix(p, file.want) }) {
				t.Errorf("want %q among %q", file.want, problems)
			}
		})
	}
}

// The table itself keeps the first rule, gives a reason for each arrow, and has no room that
// is gone.
func TestImportsTable(t *testing.T) {
	for from, to := range rooms {
		if files, err := filepath.Glob(filepath.Join("..", from, "*.go")); err != nil || len(files) == 0 {
			t.Errorf("the table has a room %s, and the module has not: %v", from, err)
		}
		for target, why := range to {
			if !inTree(from, target) {
				t.Errorf("the table lets %s import %s, which is not below it", from, target)
			}
			if strings.HasPrefix(from, target+"/") && !strings.HasSuffix(from, "test") {
				t.Errorf("the table lets %s import its parent; only a test double may", from)
			}
			if why == "" {
				t.Errorf("no reason is given why %s may import %s", from, target)
			}
		}
	}
}

// checkImports reads every Go file of a module and returns what breaks a rule.
func checkImports(module fs.FS) (problems []string, err error) {
	described := make(map[string]bool) // package → has a comment
	err = fs.WalkDir(module, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() && name != "." && (base == "testdata" || strings.HasPrefix(base, ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || path.Ext(name) != ".go" {
			return nil
		}
		text, err := fs.ReadFile(module, name)
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return fmt.Errorf("parsing %s: %w", name, err)
		}
		dir := path.Dir(name)
		described[dir] = described[dir] || file.Doc != nil
		if bytes.Contains(text, []byte("\nfunc init()")) {
			problems = append(problems, name+" has a func init; what a package needs is handed to it")
		}
		problems = append(problems, checkFile(dir, strings.HasSuffix(name, "_test.go"), file)...)
		return nil
	})
	for dir, has := range described {
		if _, known := rooms[dir]; !known {
			problems = append(problems, dir+" is not in the table; add it with a reason for each of its imports")
		}
		if !has {
			problems = append(problems, dir+" has no package comment")
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems), err
}

func checkFile(dir string, test bool, file *ast.File) (problems []string) {
	for _, spec := range file.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return append(problems, fmt.Sprintf("%s imports %s: %v", dir, spec.Path.Value, err))
		}
		if ours, ok := strings.CutPrefix(target, "ferrule/"); ok {
			if why := refuse(dir, ours, test); why != "" {
				problems = append(problems, fmt.Sprintf("%s imports %s: %s", dir, ours, why))
			}
		} else if why := refuseLibrary(dir, target, test); why != "" {
			problems = append(problems, fmt.Sprintf("%s imports %s: %s", dir, target, why))
		}
	}
	return problems
}

// refuse says why package from may not import package to, or "".
func refuse(from, to string, test bool) string {
	if !inTree(from, to) {
		return "imports point down only"
	}
	if test || strings.HasPrefix(to, "internal/") {
		return ""
	}
	for target := range rooms[from] {
		if below, wild := strings.CutSuffix(target, "/*"); to == target || wild && (to == below || strings.HasPrefix(to, below+"/")) {
			return ""
		}
	}
	return "the table has no such arrow"
}

func inTree(from, to string) bool {
	first := func(p string) string { return strings.Split(p, "/")[0] }
	return slices.Contains(trees[first(from)], first(to))
}

// refuseLibrary says why package from may not import a package that is not ours, or "".
func refuseLibrary(from, to string, test bool) string {
	module := slices.SortedFunc(maps.Keys(libraries), func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, path := range module {
		if to != path && !strings.HasPrefix(to, path+"/") || to != path && standard(path) {
			continue
		}
		allowed := libraries[path]
		if test && allowed.tests || slices.Contains(allowed.by, from) {
			return ""
		}
		return allowed.why
	}
	if standard(to) {
		return ""
	}
	return "a module that the table does not know"
}

// standard tells Go's own packages from those of modules: no dot in the first element.
func standard(p string) bool { return !strings.Contains(strings.Split(p, "/")[0], ".") }
