package agenttest_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"ferrule/agent/agenttest"
)

// get asks url and gives up connections that are idle, so that none outlives the test.
func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestESTTellsItsCertificates(t *testing.T) {
	ca, err := agenttest.NewCA("site")
	if err != nil {
		t.Fatal(err)
	}
	server, err := agenttest.StartEST(agenttest.ESTConfig{CA: ca, Label: "line"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
	status, body := get(t, client, server.URL()+"/cacerts")
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\r\n", ""))
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	message, err := pkcs7.Parse(der)
	if err != nil || len(message.Certificates) != 2 {
		t.Errorf("%+v, %v", message, err)
	}
	for line := range strings.Lines(body) {
		if len(line) > 66 {
			t.Errorf("a line of %d characters", len(line))
		}
	}
	if status, _ := get(t, client, strings.Replace(server.URL(), "line", "other", 1)+"/cacerts"); status != http.StatusNotFound {
		t.Errorf("another label: %d", status)
	}
	if saw := server.Requests(); len(saw) != 1 || saw[0].Operation != "cacerts" || len(server.Issued()) != 0 {
		t.Errorf("it saw %+v", saw)
	}
}

// step-ca that is killed or stopped starts again at the same address.
func TestStepCAStartsAgain(t *testing.T) {
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	step, err := agenttest.StartStepCA(t.Context(), program, t.TempDir(), agenttest.StepOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer step.Kill()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: step.Pool()}}}
	url := step.URL() + "/health"
	for name, end := range map[string]func(){"killed": step.Kill, "stopped": step.Stop} {
		if status, body := get(t, client, url); status != http.StatusOK {
			t.Errorf("before it is %s: %d %s", name, status, body)
		}
		end()
		end() // nothing to end
		if _, err := client.Get(url); err == nil {
			t.Errorf("it is %s and answers", name)
		}
		if err := step.Start(t.Context()); err != nil {
			t.Fatalf("after it was %s: %v", name, err)
		}
	}
}

func TestStepCAThatCannotStart(t *testing.T) {
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, start := range map[string]func() error{
		"no program": func() error {
			_, err := agenttest.StartStepCA(t.Context(), "/nonexistent", t.TempDir(), agenttest.StepOptions{})
			return err
		},
		"no folder": func() error {
			_, err := agenttest.StartStepCA(t.Context(), program, "/nonexistent", agenttest.StepOptions{})
			return err
		},
		"no time": func() error {
			_, err := agenttest.StartStepCA(ctx, program, t.TempDir(), agenttest.StepOptions{})
			return err
		},
	} {
		if err := start(); err == nil {
			t.Errorf("%s: it started", name)
		}
	}
	t.Chdir("/")
	t.Setenv("FERRULE_STEP_CA", "")
	if _, err := agenttest.StepCAProgram(); err == nil || !strings.Contains(err.Error(), "build/stepca.sh") {
		t.Errorf("%v", err)
	}
	t.Setenv("FERRULE_STEP_CA", "/x")
	if got, err := agenttest.StepCAProgram(); err != nil || got != "/x" {
		t.Errorf("%q, %v", got, err)
	}
}
