package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestExamplesOfLocal executes what docs/local.md says can be done with openssl and curl.
func TestExamplesOfLocal(t *testing.T) {
	need(t, "openssl")
	need(t, "curl")
	blocks := shellBlock.FindAllStringSubmatch(readFile(t, filepath.Join("..", "..", "docs", "local.md")), -1)
	if len(blocks) != 3 {
		t.Fatalf("%d examples in docs/local.md", len(blocks))
	}
	dir := shortDir(t)
	execute := func(text string) string {
		t.Helper()
		return mustRun(t, "", "bash", "-euc", "set -o pipefail; cd "+dir+"\n"+text)
	}
	execute(blocks[0][1])
	block, _ := pem.Decode([]byte(readFile(t, filepath.Join(dir, "people.pem"))))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	g := (&people{certificate: certificate}).gateway(t, "")
	pin, _ := field(g.status(t), "local", "listener", "certificate", "pin").(string)
	variables := fmt.Sprintf("GATEWAY=%q PIN=%q SOCKET=%q\n", g.address, pin, filepath.Join(g.dir, "f.sock"))
	for _, c := range []struct {
		text string
		want []string
	}{
		{blocks[1][1], []string{`"device": "gw-1"`, "ferrule_session_up", `data: {"boot":`, `"value"`}},
		{blocks[2][1], []string{`"device": "gw-1"`, "manufacturer"}},
	} {
		out := execute(variables + c.text)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in the answers to\n%s\n%s", want, c.text, out)
			}
		}
	}
	g.kill(t)
}
