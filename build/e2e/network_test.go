package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/agent/agenttest"
)

// netspace is a network namespace with a broker in it and a gateway that is to find its way there.
// The broker listens at 10.77.0.1: on 8883 as MQTT over TLS, on 443 behind what chooses by ALPN, as
// load balancers do, on 8084 as WebSocket, and on 3128 there is a proxy.
type netspace struct {
	dir     string
	space   *process // holds the namespace
	ferrule []string
	broker  *process
	proxy   *process
	ca      *agenttest.CA
	agent   *process

	mu       sync.Mutex
	balanced []net.Conn // that were taken on port 443
}

// newNetwork makes the namespace. hosts are the addresses of broker.test, in the resolver's order.
func newNetwork(t *testing.T, hosts ...string) *netspace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	n := &netspace{dir: shortDir(t), ferrule: build(t, "ferrule", native)}
	text := "127.0.0.1 localhost\n"
	for _, address := range hosts {
		text += address + " broker.test\n"
	}
	if err := os.Chmod(n.file(t, "hosts", text), 0o644); err != nil { // nobody reads it
		t.Fatal(err)
	}
	// Nobody reads the tun devices, so that the kernel drops without a word what is sent there.
	n.space = start(t, "namespace", need(t, "unshare"), "-n", "-m", "--propagation", "private", need(t, "bash"), "-ec", `
		mount --bind "$0" /etc/hosts
		ip link set lo up
		ip addr add 10.77.0.1/32 dev lo
		ip tuntap add dev hole mode tun
		ip link set hole up
		ip -6 addr add 2001:db8:dead::2/64 dev hole nodad
		ip route add default dev hole table 88
		ip rule add pref 10 lookup local
		ip rule del pref 0
		echo ready
		exec sleep infinity`, filepath.Join(n.dir, "hosts"))
	n.space.waitLine(t, "ready")
	n.certificates(t)
	return n
}

// in gives the words that run a program in the namespace.
func (n *netspace) in(argv ...string) []string {
	return append([]string{"nsenter", "-t", fmt.Sprint(n.space.Process.Pid), "-n", "-m", "--"}, argv...)
}

func (n *netspace) file(t *testing.T, name string, text string) string {
	t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificates writes those of the broker and the gateway.
func (n *netspace) certificates(t *testing.T) {
	t.Helper()
	ca, err := agenttest.NewCA("network")
	if err != nil {
		t.Fatal(err)
	}
	n.ca = ca
	server, err := ca.Server("broker.test")
	if err != nil {
		t.Fatal(err)
	}
	device, err := ca.Device("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(n.dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"ca.crt": ca.RootPEM(), "server.crt": server.ChainPEM, "server.key": server.KeyPEM,
		"state/device.crt": device.ChainPEM, "state/device.pem": device.KeyPEM} {
		n.file(t, name, string(text))
	}
}

// serve starts the broker with all its doors.
func (n *netspace) serve(t *testing.T) {
	t.Helper()
	secure := fmt.Sprintf("cafile %[1]s/ca.crt\ncertfile %[1]s/server.crt\nkeyfile %[1]s/server.key\nrequire_certificate true\nuse_identity_as_username true\n", n.dir)
	config := n.file(t, "mosquitto.conf", "per_listener_settings true\nuser root\n"+
		"listener 8883 10.77.0.1\n"+secure+"listener 8084\nprotocol websockets\n"+secure+
		"listener 0 "+filepath.Join(n.dir, "m.sock")+"\nallow_anonymous true\n")
	n.broker = start(t, "mosquitto", n.in(need(t, "mosquitto"), "-c", config, "-v")...)
	waitFor(t, "mosquitto", func() bool { return strings.Contains(n.broker.output(), "running") })
	n.balance(t)
}

// balance listens on port 443 for those who ask for x-amzn-mqtt-ca, and passes them on to
// mosquitto without TLS.
func (n *netspace) balance(t *testing.T) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(n.dir, "server.crt"), filepath.Join(n.dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	l := n.listen(t, "10.77.0.1:443")
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: n.ca.Pool(), NextProtos: []string{"x-amzn-mqtt-ca"}}
	var all sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); n.stop(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.balanced = append(n.balanced, c)
			n.mu.Unlock()
			all.Go(func() { passOn(tls.Server(c, config), filepath.Join(n.dir, "m.sock")) })
		}
	})
}

// passOn joins a connection that asked for the protocol with mosquitto's socket.
func passOn(c *tls.Conn, socket string) {
	defer c.Close()
	if c.Handshake() != nil || c.ConnectionState().NegotiatedProtocol == "" {
		return
	}
	m, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer m.Close()
	go func() { // ends with c, which ends with the agent
		_, _ = io.Copy(m, c)
		_ = m.Close()
	}()
	_, _ = io.Copy(c, m)
}

// stop ends the agent and the broker, so that no connection of theirs is left.
func (n *netspace) stop() {
	for _, p := range []*process{n.agent, n.broker} {
		if p != nil {
			p.kill()
		}
	}
}

// hangUp ends the connections on port 443.
func (n *netspace) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.balanced {
		_ = c.Close()
	}
}

// listen opens a socket in the namespace.
func (n *netspace) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	inside := func() { // on a thread that ends with it, since it is in the other namespace for good
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", n.space.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", address)
		done <- result{l, err}
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			inside()
			return
		}
		// The first thread never ends, and /proc/net would be the other namespace's: it is held while
		// another one goes.
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			runtime.LockOSThread()
			inside()
		}()
		<-gone
		runtime.UnlockOSThread()
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l
}

// startProxy starts tinyproxy, which is nobody, so that what is blocked for the gateway is not
// blocked for it.
func (n *netspace) startProxy(t *testing.T, lines ...string) {
	t.Helper()
	config := n.file(t, "tinyproxy.conf", "User nobody\nPort 3128\nListen 10.77.0.1\nTimeout 600\nMaxClients 20\nLogLevel Info\n"+strings.Join(lines, "\n")+"\n")
	n.proxy = start(t, "tinyproxy", n.in(need(t, "tinyproxy"), "-d", "-c", config)...)
	waitFor(t, "tinyproxy", func() bool { return strings.Contains(n.proxy.output(), "Accepting connections") })
}

// block keeps the gateway from a port: packets go nowhere, or are refused where how says so.
func (n *netspace) block(t *testing.T, how string, ports ...string) {
	t.Helper()
	if how == "refused" {
		mustRun(t, "", n.in("ip", "route", "replace", "unreachable", "default", "table", "88")...)
	}
	for _, port := range ports {
		mustRun(t, "", n.in("ip", "rule", "add", "pref", "5", "uidrange", "0-0", "ipproto", "tcp", "dport", port, "lookup", "88")...)
	}
}

func (n *netspace) open(t *testing.T, port string) {
	t.Helper()
	mustRun(t, "", n.in("ip", "rule", "del", "pref", "5", "uidrange", "0-0", "ipproto", "tcp", "dport", port, "lookup", "88")...)
}

// run starts the agent with these brokers, and lines of [session].
func (n *netspace) run(t *testing.T, brokers []string, lines ...string) {
	t.Helper()
	text, err := json.Marshal(brokers)
	if err != nil {
		t.Fatal(err)
	}
	config := n.file(t, "ferrule.toml", fmt.Sprintf(`state_dir = "%[1]s/state"
[identity]
tpm = "none"
key = "file:device.pem"
allow_software_key = true
[local]
socket = "%[1]s/f.sock"
[session]
roots = "%[1]s/ca.crt"
brokers = %[2]s
%[3]s
[[line]]
name = "none"
port = "%[1]s/tty"
[[line.unit]]
name = "none"
address = 1
[[line.unit.point]]
name = "none"
at = "input:0"
`, n.dir, text, strings.Join(lines, "\n")))
	n.agent = start(t, "ferrule", n.in(append(n.ferrule, "run", "--config", config)...)...)
}

// session is what ferrule status --json says of the session.
type networkSession struct {
	Stage, Broker, Address string
	Path                   struct {
		Address, Family, Proxy, ALPN, Group string
		WebSocket                           bool
		PostQuantum                         bool `json:"post_quantum"`
		Raced                               []struct{ Address, Error string }
	}
	LastFailure struct{ Stage, Cause, Text, Hint string } `json:"last_failure"`
	History     []struct {
		At                   time.Time
		Stage, Broker, Cause string
	}
}

// up waits until the session is up, and says how.
func (n *netspace) up(t *testing.T) (s networkSession) {
	t.Helper()
	waitFor(t, "the session", func() bool { s = n.status(t); return s.Stage == "up" })
	return s
}

// status is what ferrule status says; nothing while the agent does not answer.
func (n *netspace) status(t *testing.T) networkSession {
	t.Helper()
	stdout, _, code := run(t, "", append(n.ferrule, "status", "--json", "--config", filepath.Join(n.dir, "ferrule.toml"))...)
	var status struct{ Session networkSession }
	if code != 0 || json.Unmarshal([]byte(stdout), &status) != nil {
		return networkSession{}
	}
	return status.Session
}

// failures are the stages and causes that the session met on its way.
func (s networkSession) failures() (all []string) {
	for _, c := range s.History {
		if c.Cause != "" {
			all = append(all, c.Stage+" "+c.Cause)
		}
	}
	return all
}

const (
	brokerMQTT = "mqtts://broker.test:8883"
	brokerALPN = "mqtts://broker.test:443?alpn=x-amzn-mqtt-ca"
	brokerWeb  = "wss://broker.test:8084/mqtt"
)

// A broker whose IPv6 address is a black hole, and whose IPv4 address is good: connected within
// two seconds, status says which address won, and the next start does not ask IPv6 first.
func TestBlackHoledIPv6(t *testing.T) {
	n := newNetwork(t, "2001:db8:dead::1", "10.77.0.1")
	n.serve(t)
	n.run(t, []string{brokerMQTT})
	s := n.up(t)
	var asked, connected time.Time
	for _, c := range s.History {
		if c.Stage == "dns" && asked.IsZero() {
			asked = c.At
		}
		if c.Stage == "suback" {
			connected = c.At
		}
	}
	took := connected.Sub(asked)
	t.Logf("connected in %v by way of %+v", took, s.Path)
	if asked.IsZero() || connected.IsZero() || took > 2*time.Second {
		t.Errorf("connected in %v: %+v", took, s.History)
	}
	if s.Path.Address != "10.77.0.1:8883" || s.Path.Family != "ipv4" || s.Address != "10.77.0.1:8883" {
		t.Errorf("status says %+v", s)
	}
	if len(s.Path.Raced) != 2 || s.Path.Raced[0].Address != "[2001:db8:dead::1]:8883" {
		t.Errorf("IPv6 was not the first choice, so that nothing was shown: %+v", s.Path.Raced)
	}
	n.agent.stop(t)
	n.run(t, []string{brokerMQTT})
	if s := n.up(t); len(s.Path.Raced) != 1 || s.Path.Raced[0].Address != "10.77.0.1:8883" {
		t.Errorf("what worked was not remembered: %+v", s.Path.Raced)
	}
}

// Every way out as the first choice that works, and as the one that is left when those before it
// do not; what worked is the first choice of the next start.
func TestWaysOut(t *testing.T) {
	const proxy = `proxy = "http://gw:s3cret@10.77.0.1:3128"`
	all := []string{brokerMQTT, brokerALPN, brokerWeb}
	for name, test := range map[string]struct {
		brokers  []string
		how      string
		blocked  []string
		proxy    []string // lines of tinyproxy's configuration; nil: none is used
		want     string
		failures string // that were met, joined
	}{
		"8883":                         {brokers: all, want: brokerMQTT},
		"ALPN first":                   {brokers: []string{brokerALPN, brokerMQTT}, want: brokerALPN},
		"WebSocket first":              {brokers: []string{brokerWeb, brokerMQTT}, want: brokerWeb},
		"8883 silently dropped, ALPN":  {brokers: all, how: "dropped", blocked: []string{"8883"}, want: brokerALPN, failures: "tcp stalled"},
		"8883 and 443 refused":         {brokers: all, how: "refused", blocked: []string{"8883", "443"}, want: brokerWeb, failures: "tcp unreachable, tcp unreachable"},
		"only a proxy":                 {brokers: all, how: "refused", blocked: []string{"8883", "443", "8084"}, proxy: []string{"BasicAuth gw s3cret"}, want: brokerMQTT},
		"a proxy that knows 443 only":  {brokers: all, how: "refused", blocked: []string{"8883", "443", "8084"}, proxy: []string{"BasicAuth gw s3cret", "ConnectPort 443"}, want: brokerALPN, failures: "proxy proxy-refused"},
		"a proxy that knows 8084 only": {brokers: all, how: "refused", blocked: []string{"8883", "443", "8084"}, proxy: []string{"BasicAuth gw s3cret", "ConnectPort 8084"}, want: brokerWeb, failures: "proxy proxy-refused, proxy proxy-refused"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			n := newNetwork(t, "10.77.0.1")
			n.serve(t)
			n.block(t, test.how, test.blocked...)
			var lines []string
			if test.proxy != nil {
				n.startProxy(t, test.proxy...)
				lines = []string{proxy}
			}
			n.run(t, test.brokers, lines...)
			s := n.up(t)
			n.check(t, s, test.want, test.proxy != nil)
			if got := strings.Join(s.failures(), ", "); got != test.failures {
				t.Errorf("it failed with %q on its way, want %q", got, test.failures)
			}
			if code := n.agent.stop(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			n.run(t, test.brokers, lines...)
			s = n.up(t)
			n.check(t, s, test.want, test.proxy != nil)
			if got := s.failures(); got != nil {
				t.Errorf("what worked was not the first choice of the next start, which met %v", got)
			}
			if strings.Contains(n.agent.output(), "s3cret") {
				t.Error("the log holds the proxy's password")
			}
		})
	}
}

// check compares how the session stands with what is expected of a way.
func (n *netspace) check(t *testing.T, s networkSession, broker string, proxied bool) {
	t.Helper()
	if s.Broker != broker || s.Path.Family != "ipv4" || !s.Path.PostQuantum && broker == brokerALPN {
		t.Errorf("status says %+v", s)
	}
	if (s.Path.ALPN == "x-amzn-mqtt-ca") != (broker == brokerALPN) || s.Path.WebSocket != (broker == brokerWeb) {
		t.Errorf("the way was %+v", s.Path)
	}
	if want := map[bool]string{true: "http://10.77.0.1:3128"}[proxied]; s.Path.Proxy != want {
		t.Errorf("the proxy was %q", s.Path.Proxy)
	}
}

// A way that opens again after a failure of the one in use is taken in its turn.
func TestWayChangesWhileTheAgentRuns(t *testing.T) {
	n := newNetwork(t, "10.77.0.1")
	n.serve(t)
	n.block(t, "refused", "8883")
	n.run(t, []string{brokerMQTT, brokerALPN})
	n.check(t, n.up(t), brokerALPN, false)
	n.open(t, "8883")
	n.block(t, "refused", "443")
	n.hangUp()
	waitFor(t, "the other way", func() bool { s := n.status(t); return s.Stage == "up" && s.Broker == brokerMQTT })
}
