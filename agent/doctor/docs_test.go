package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"ferrule/agent/session/cause"
)

var update = flag.Bool("update", false, "write the tables of docs/doctor.md anew")

const (
	document = "../../docs/doctor.md"
	begin    = "<!-- generated: go test ./agent/doctor -run TestDocument -update -->\n"
	end      = "<!-- end of what is generated -->\n"
)

// alert is how Go says what the other side sent.
func alert(text string) error {
	return &net.OpError{Op: "remote error", Err: errors.New("tls: " + text)}
}

func invalid(reason x509.InvalidReason, detail string) error {
	return &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: reason, Detail: detail}}
}

// refused is what revocation says.
type refused struct{ revoked bool }

func (r refused) Error() string { return "revocation" }
func (r refused) Revoked() bool { return r.revoked }

// sample is an error that has an answer.
type sample struct {
	stage cause.Stage
	err   error
}

// samples are errors of every kind. That each cause has one is checked.
func samples() []sample {
	all := []sample{
		{cause.StageDNS, &net.DNSError{IsNotFound: true}}, {cause.StageDNS, &net.DNSError{}}, {cause.StageDNS, cause.ErrStalled},
		{cause.StageTCP, syscall.ECONNREFUSED}, {cause.StageTCP, syscall.ENETUNREACH}, {cause.StageTCP, cause.ErrStalled},
	}
	for _, err := range []error{syscall.ECONNREFUSED, x509.UnknownAuthorityError{}, x509.HostnameError{Certificate: &x509.Certificate{}}, tls.RecordHeaderError{}} {
		all = append(all, sample{cause.StageProxy, &cause.AtProxy{Err: err}})
	}
	for _, answer := range []cause.ProxyAnswer{{Code: 407}, {Code: 407, Schemes: "Negotiate"}, {Code: 403}, {Code: 502}} {
		all = append(all, sample{cause.StageProxy, &answer})
	}
	all = append(all, sample{cause.StageProxy, cause.ErrNotProxy},
		sample{cause.StageTLS, tls.RecordHeaderError{}}, sample{cause.StageTLS, io.EOF}, sample{cause.StageTLS, cause.ErrStalled},
		sample{cause.StageTLS, alert("protocol version not supported")}, sample{cause.StageTLS, alert("internal error")}, sample{cause.StageTLS, alert("handshake failure")},
		sample{cause.StageTLS, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}},
		sample{cause.StageTLS, &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}}}},
		sample{cause.StageTLS, invalid(x509.Expired, "current time 2026 is after 2025")}, sample{cause.StageTLS, invalid(x509.Expired, "current time 1970 is before 2025")},
		sample{cause.StageTLS, invalid(x509.TooManyIntermediates, "")},
		sample{cause.StageTLS, &cause.Distrust{Err: refused{true}}}, sample{cause.StageTLS, &cause.Distrust{Err: refused{false}}},
		sample{cause.StageTLS, cause.ErrALPN}, sample{cause.StageTLS, &cause.Inspected{Err: io.EOF}})
	for _, text := range []string{"certificate required", "unknown certificate authority", "expired certificate", "revoked certificate", "bad certificate"} {
		all = append(all, sample{cause.StageConnack, alert(text)})
	}
	all = append(all, sample{cause.StageTLS, errors.New("chain is not signed by an acceptable CA")}, sample{cause.StageTLS, errors.New("tls: failed to sign")},
		sample{cause.StageWebSocket, cause.ErrNotWebSocket})
	for _, code := range []int{401, 404, 400, 503} {
		all = append(all, sample{cause.StageWebSocket, &cause.WebSocketAnswer{Code: code}})
	}
	for _, code := range []cause.Refusal{1, 2, 3, 4} {
		all = append(all, sample{cause.StageConnack, code})
	}
	all = append(all, sample{cause.StageConnack, io.EOF}, sample{cause.StageConnack, cause.ErrStalled}, sample{cause.StageConnack, cause.ErrProtocol})
	for _, err := range []error{cause.ErrSubscription, io.EOF, context.DeadlineExceeded} {
		all = append(all, sample{cause.StageSuback, err})
	}
	for _, err := range []error{cause.ErrFrozen, cause.ErrNoAck, cause.ErrTooLarge, cause.ErrFlood, cause.ErrEntry, cause.ErrDuplicate, io.EOF, errors.New("anything else")} {
		all = append(all, sample{cause.StageUp, err})
	}
	return all
}

// told are the causes that no error has: the session tells of them by itself.
func told() []cause.Cause { return []cause.Cause{cause.Budget, cause.Poison} }

// constants returns the values of the constants of a type, or of those that begin with prefix, in the
// files of a folder.
func constants(t *testing.T, folder, kind, prefix string) (values []string) {
	t.Helper()
	eachFile(t, folder, func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			name, _ := spec.Type.(*ast.Ident)
			literal, isText := spec.Values[0].(*ast.BasicLit)
			if isText && literal.Kind == token.STRING && (kind != "" && name != nil && name.Name == kind || prefix != "" && strings.HasPrefix(spec.Names[0].Name, prefix)) {
				value, _ := strconv.Unquote(literal.Value)
				values = append(values, value)
			}
			return true
		})
	})
	if len(values) == 0 {
		t.Fatalf("no constants %s%s in %s", kind, prefix, folder)
	}
	return values
}

// eachFile reads the files of a folder that are not tests.
func eachFile(t *testing.T, folder string, look func(*ast.File)) {
	t.Helper()
	names := must[[]string](t)(filepath.Glob(filepath.Join(folder, "*.go")))
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			look(must[*ast.File](t)(parser.ParseFile(token.NewFileSet(), name, nil, 0)))
		}
	}
}

// table is every answer of package cause, and those that doctor alone gives.
func table() string {
	var b strings.Builder
	b.WriteString("| stage | cause | whose side | what it says | repair |\n|---|---|---|---|---|\n")
	seen := make(map[string]bool)
	row := func(stage, what, side, text, repair string) {
		line := fmt.Sprintf("| %s | `%s` | %s | %s | %s |\n", stage, what, side, text, strings.ReplaceAll(repair, "|", "\\|"))
		if !seen[what+text] {
			b.WriteString(line)
		}
		seen[what+text] = true
	}
	for _, s := range samples() {
		f := cause.Classify(s.stage, s.err)
		text, _, _ := strings.Cut(f.Text, " ("+s.err.Error())
		row(string(s.stage), string(f.Cause), string(f.Side), text, f.Hint)
	}
	for _, a := range Answers() {
		row(string(a.Layer), string(a.Cause), string(a.Side), a.Text, a.Repair)
	}
	return b.String()
}

// Every cause has an answer, and every answer is in docs/doctor.md as it is given.
func TestDocument(t *testing.T) {
	covered := told()
	for _, s := range samples() {
		f := cause.Classify(s.stage, s.err)
		if f.Hint == "" || f.Side == "" || f.Text == "" {
			t.Errorf("%+v", f)
		}
		covered = append(covered, f.Cause)
	}
	for _, value := range constants(t, "../session/cause", "Cause", "") {
		if !slices.Contains(covered, cause.Cause(value)) {
			t.Errorf("the cause %q has no sample in this test, so it is not in the document", value)
		}
	}
	text := string(must[[]byte](t)(os.ReadFile(document)))
	head, rest, ok := strings.Cut(text, begin)
	old, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for what is generated", document)
	}
	want := "\n" + table() + "\n"
	if *update {
		if err := os.WriteFile(document, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if old != want {
		t.Errorf("the table of %s is not that of package cause; write it by: go test ./agent/doctor -run TestDocument -update", document)
	}
	for _, what := range told() {
		if !strings.Contains(tail, "`"+string(what)+"`") {
			t.Errorf("%s says nothing of %s", document, what)
		}
	}
}

// What the agent's own checks answer is in the document, too.
func TestDocumentOfLocalLayers(t *testing.T) {
	text := string(must[[]byte](t)(os.ReadFile(document)))
	var causes []string
	eachFile(t, "..", func(file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 4 {
				return true
			}
			name := ""
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				name = f.Sel.Name
			case *ast.Ident:
				name = f.Name
			}
			at := map[string]int{"Fail": 0, "worst": 1}
			i, known := at[name]
			if literal, isText := call.Args[i].(*ast.BasicLit); known && isText {
				value, _ := strconv.Unquote(literal.Value)
				causes = append(causes, value)
			}
			return true
		})
	})
	if len(causes) < 10 {
		t.Fatalf("only %v", causes)
	}
	for _, fault := range constants(t, "../../tpm", "", "Fault") {
		causes = append(causes, "tpm-"+fault)
	}
	for _, what := range append(causes, "wrong-tpm", "key-lost", "not-enrolled", "certificate-mismatch", "software-key", "no-key", "tpm-silent", "key-damaged") {
		if !strings.Contains(text, "`"+what+"`") {
			t.Errorf("%s says nothing of `%s`", document, what)
		}
	}
	for _, layer := range Layers() {
		if !strings.Contains(text, "`"+string(layer)+"`") {
			t.Errorf("%s says nothing of the layer %s", document, layer)
		}
	}
}
