package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unpack reads the archive by Go's own reader of the format.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(zipped); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || h.Mode != 0o600 {
			t.Fatalf("%s: mode %o, %v", h.Name, h.Mode, err)
		}
		files[h.Name] = string(data)
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "support.tar.gz")
	a := Archive{Folder: "ferrule-device-1", At: time.Unix(1_800_000_000, 0), LeftOut: []string{"keys: nobody needs them"},
		Files: []File{{"a.txt", "the first", []byte("hello")}, {"empty", "nothing", nil}, {"block", "a whole block", bytes.Repeat([]byte("x"), 512)}}}
	if err := a.Write(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	files := unpack(t, path)
	if len(files) != 4 || files["ferrule-device-1/a.txt"] != "hello" || len(files["ferrule-device-1/block"]) != 512 {
		t.Fatalf("%q", files)
	}
	for _, want := range []string{"a.txt", "the first", "keys: nobody needs them"} {
		if !strings.Contains(files["ferrule-device-1/"+README], want) {
			t.Errorf("the list has no %q", want)
		}
	}
	if err := a.Write(path); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("overwritten: %v", err)
	}
	a.Files[0].Name = strings.Repeat("n", 101)
	other := path + "2"
	if err := a.Write(other); err == nil {
		t.Error("a name that does not fit")
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("half an archive is left")
	}
}

// A secret is in no byte of the archive, however it is written, whether anybody knew of it or not.
func TestNoSecretTravels(t *testing.T) {
	const canary, user = "Ca nary/4:7%é\"", "operator"
	quoted, _ := json.Marshal(canary)
	known := []string{
		canary, url.QueryEscape(canary), url.PathEscape(canary), url.UserPassword(user, canary).String(), string(quoted),
		base64.StdEncoding.EncodeToString([]byte(canary)), base64.StdEncoding.EncodeToString([]byte(user + ":" + canary)), hex.EncodeToString([]byte(canary)),
	}
	unknown := []string{ // of which nobody told us
		"https://joe:hunter2hunter2@proxy:3128/", "proxy_password = \"hunter2hunter2\"", `{"token":"hunter2hunter2"}`, "token=hunter2hunter2",
		"Proxy-Authorization: Basic hunter2hunter2", "-----BEGIN EC PRIVATE KEY-----\nhunter2hunter2\n-----END EC PRIVATE KEY-----",
		"eyJhbGciOiJFUzI1NiJ9.hunter2hunter2.hunter2hunter2",
		"CLIENT_TRAFFIC_SECRET_0 00aa ffhunter2hunter2"[:24] + "aaaa bbbb",
	}
	var text strings.Builder
	for _, s := range append(known, unknown...) {
		text.WriteString("before " + s + " behind\n")
	}
	text.WriteString("-----BEGIN TSS2 PRIVATE KEY-----\nhunter2hunter2") // cut short
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	a := Archive{Folder: "f", Files: []File{{"a", "about " + canary, []byte(text.String())}}, LeftOut: []string{canary}, Secrets: []string{canary, user + ":" + canary}}
	if err := a.Write(path); err != nil {
		t.Fatal(err)
	}
	for name, data := range unpack(t, path) {
		for _, s := range append(known, "hunter2hunter2", "bbbb") {
			if strings.Contains(data, s) {
				t.Errorf("%s holds %q:\n%s", name, s, data)
			}
		}
		if name == "f/a" && strings.Count(data, "behind") != len(known)+len(unknown) {
			t.Errorf("more was taken out than secrets:\n%s", data)
		}
	}
}

type inner struct {
	Key      string `toml:"key"`
	Password string `toml:"password"`
}

func TestSettings(t *testing.T) {
	config := struct {
		inner
		Proxy   string            `toml:"proxy"`
		Broken  string            `toml:"broken"`
		Command []string          `toml:"command"`
		List    []inner           `toml:"list"`
		Map     map[string]string `toml:"map"`
		Number  int               `toml:"number"`
		Hidden  string
		Nothing *inner `toml:"nothing"`
	}{
		Proxy: "http://joe:canary1@proxy:3128", Broken: "http://joe:can ary2%zz@proxy", Command: []string{"/bin/enrol", "--pin", "canary3"},
		List: []inner{{"tpm2:file=device.key", "canary4"}}, Map: map[string]string{"api_token": "canary5"}, Number: 7, Hidden: "canary6",
	}
	config.inner = inner{"file:k.pem", "canary7"}
	text, secrets := Settings(config)
	for _, leak := range []string{"canary", "can ary", "joe", "--pin"} {
		if strings.Contains(string(text), leak) {
			t.Errorf("%q is in\n%s", leak, text)
		}
	}
	for _, want := range []string{`proxy = "http://(left out)@proxy:3128"`, `command[0] = "/bin/enrol"`, "number = \"7\"", `list[0].key = "tpm2:file=device.key"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	all := strings.Join(secrets, " ")
	for _, want := range []string{"canary1", "joe:canary1", "can ary2", "canary3", "canary4", "canary5"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not known to be secret: %q", want, secrets)
		}
	}
}

func TestOutline(t *testing.T) {
	text := Outline([]byte("# canary\nstate_dir = \"canary\" # canary\n[session]\nproxy = canary\ncanary\nx = \"\"\"\ncanary\n\"\"\"\n[[line]] # canary\n\"canary\" = 1\n"))
	if strings.Contains(string(text), "canary") || !strings.Contains(string(text), "[session]") || !strings.Contains(string(text), "proxy = ") {
		t.Errorf("%s", text)
	}
}

func FuzzClean(f *testing.F) {
	f.Add([]byte("https://a:canary-canary@b"), "canary-canary")
	f.Add([]byte("token: x"), "")
	f.Fuzz(func(t *testing.T, text []byte, secret string) {
		clean := NewScrubber([]string{secret}).Clean(text)
		if len(secret) >= leastSecret && !strings.Contains(Removed, secret) && !strings.Contains("${}\""+Removed+Removed, secret) && bytes.Contains(clean, []byte(secret)) &&
			!bytes.Contains([]byte(Removed+"\""+Removed+"@ "+Removed), []byte(secret)) && !strings.ContainsAny(secret, "()\"@ ") {
			t.Errorf("%q is in %q", secret, clean)
		}
	})
}

func FuzzOutline(f *testing.F) {
	f.Add([]byte("[a]\nb = 'c'"))
	f.Fuzz(func(_ *testing.T, text []byte) { Outline(text) })
}
