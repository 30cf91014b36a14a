package dial

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What docs/networks.md tells to write can be written.
func TestNetworksDocument(t *testing.T) {
	text := string(must[[]byte](t)(os.ReadFile("../../../docs/networks.md")))
	brokers := regexp.MustCompile(`"((?:mqtts|wss)://[^"]+)"`).FindAllStringSubmatch(text, -1)
	proxies := regexp.MustCompile(`proxy = "([^"]+)"`).FindAllStringSubmatch(text, -1)
	for _, b := range brokers {
		if _, err := ParseBroker(b[1]); err != nil {
			t.Errorf("%s: %v", b[1], err)
		}
	}
	for _, p := range proxies {
		if _, err := parseProxy(p[1]); err != nil {
			t.Errorf("%s: %v", p[1], err)
		}
	}
	if len(brokers) < 15 || len(proxies) < 3 {
		t.Errorf("%d brokers and %d proxies", len(brokers), len(proxies))
	}
	for _, value := range []string{PostQuantumAuto, PostQuantumRequired, PostQuantumNever} {
		if !strings.Contains(text, "`\""+value+"\"`") {
			t.Errorf("post_quantum = %q is not described", value)
		}
	}
}
