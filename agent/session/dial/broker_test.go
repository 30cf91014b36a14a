package dial

import (
	"strings"
	"testing"
)

func TestParseBroker(t *testing.T) {
	for text, want := range map[string]Broker{
		"mqtts://broker.test":                          {host: "broker.test", port: "8883"},
		"mqtts://broker.test:443?alpn=x-amzn-mqtt-ca":  {host: "broker.test", port: "443", alpn: "x-amzn-mqtt-ca"},
		"mqtts://broker.test:443/?alpn=mqtt":           {host: "broker.test", port: "443", alpn: "mqtt"},
		"wss://broker.test":                            {host: "broker.test", port: "443", path: "/mqtt"},
		"wss://broker.test/":                           {host: "broker.test", port: "443", path: "/"},
		"wss://broker.test:8084/a%20b?alpn=http%2F1.1": {host: "broker.test", port: "8084", path: "/a%20b", alpn: "http/1.1"},
		"mqtts://[2001:db8::1]:8883":                   {host: "2001:db8::1", port: "8883"},
		"mqtts://[fe80::1%25eth0]":                     {host: "fe80::1%eth0", port: "8883"},
		"mqtts://192.0.2.1:1":                          {host: "192.0.2.1", port: "1"},
		"mqtts://bücher.test":                          {host: "xn--bcher-kva.test", port: "8883"},
		"mqtts://BÜCHER.test":                          {host: "xn--bcher-kva.test", port: "8883"},
		"mqtts://例え.テスト":                               {host: "xn--r8jz45g.xn--zckzah", port: "8883"},
		"mqtts://my_broker.test.":                      {host: "my_broker.test.", port: "8883"},
	} {
		want.text = text
		if got, err := ParseBroker(text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "broker.test", "mqtt://broker.test", "tcp://broker.test", "https://broker.test", "ws://broker.test", "mqtts://", "mqtts://:8883",
		"mqtts://user@broker.test", "mqtts://u:p@broker.test", "mqtts://broker.test/path", "mqtts://broker.test:0", "mqtts://broker.test:65536", "mqtts://broker.test:mqtt",
		"mqtts://broker.test?alpn=", "mqtts://broker.test?alpn=a&alpn=b", "mqtts://broker.test?x=y", "mqtts://broker.test#x", "wss://broker.test/mqtt?token=x",
		"mqtts://broker test", "mqtts://broker\r\nX: y", "mqtts://bro<ker", "mqtts://bro\"ker", "mqtts://b%0d%0aker", "mqtts://broker.test?alpn=" + strings.Repeat("a", 256),
		"mqtts://" + strings.Repeat("a", 255), "mqtts://a" + strings.Repeat("é", 600), "mqtts://[::1", "mqtts://[::g]", "mqtts://xn--\u200d.é", "wss://broker.test?alpn=%zz",
	} {
		if b, err := ParseBroker(text); err == nil {
			t.Errorf("%q: %+v", text, b)
		}
	}
}

// What TLS asks for and checks, and what a proxy is asked for.
func TestServerNames(t *testing.T) {
	for text, want := range map[string][2]string{
		"mqtts://broker.test.":       {"broker.test", "broker.test.:8883"},
		"mqtts://[fe80::1%25eth0]":   {"fe80::1", "[fe80::1%eth0]:8883"},
		"mqtts://[2001:DB8::1]:443":  {"2001:db8::1", "[2001:db8::1]:443"},
		"mqtts://bücher.test":        {"xn--bcher-kva.test", "xn--bcher-kva.test:8883"},
		"mqtts://[::ffff:192.0.2.1]": {"::ffff:192.0.2.1", "[::ffff:192.0.2.1]:8883"},
	} {
		b := must[Broker](t)(ParseBroker(text))
		if b.ServerName() != want[0] || b.Address() != want[1] || b.String() != text {
			t.Errorf("%s: %q, %q", text, b.ServerName(), b.Address())
		}
	}
}

func TestAuthority(t *testing.T) {
	for text, want := range map[string]string{
		"wss://broker.test":           "broker.test",
		"wss://broker.test.:443/x":    "broker.test",
		"wss://broker.test:8084":      "broker.test:8084",
		"wss://[2001:db8::1]":         "[2001:db8::1]",
		"wss://[fe80::1%25eth0]:8084": "[fe80::1]:8084",
		"wss://bücher.test:443/mqtt":  "xn--bcher-kva.test",
	} {
		if got := must[Broker](t)(ParseBroker(text)).authority(); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func TestShownWithoutPassword(t *testing.T) {
	for text, want := range map[string]string{
		"mqtts://broker.test":             "mqtts://broker.test",
		"mqtts://a:s3cret@broker.test:1":  "mqtts://…@broker.test:1",
		"mqtts://a:s3c@ret@broker.test":   "mqtts://…@broker.test",
		"a:s3cret@broker.test":            "…@broker.test",
		"a:s3cret@broker.test?x=mqtts://": "…@broker.test?x=mqtts://",
	} {
		if got := Shown(text); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// Whatever the text, what is accepted can be put into a request and a name server's question.
func FuzzParseBroker(f *testing.F) {
	for _, text := range []string{"mqtts://broker.test:443?alpn=mqtt", "wss://bücher.test/mqtt", "mqtts://[fe80::1%25eth0]:1", "mqtts://a\r\nb", "mqtts://[::ffff:1.2.3.4]"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBroker(text)
		if err != nil {
			return
		}
		if all := b.host + b.port + b.path; b.host == "" || b.port == "" || strings.ContainsFunc(all, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q gave %+v", text, b)
		}
		if again, err := ParseBroker(b.String()); err != nil || again != b {
			t.Errorf("%q read again: %+v, %v", text, again, err)
		}
		if strings.HasSuffix(b.ServerName(), ".") && b.ServerName() != "." && !strings.HasSuffix(b.host, "..") {
			t.Errorf("server name %q", b.ServerName())
		}
	})
}
