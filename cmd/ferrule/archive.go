package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"ferrule/agent/config"
	"ferrule/agent/doctor"
	"ferrule/agent/doctor/archive"
	"ferrule/agent/local"
)

// The bounds of what goes into an archive, in bytes of one file and in lines.
const (
	maxGathered = 1 << 20
	mostListed  = 512
)

// writeArchive makes the one file for support.
func writeArchive(ctx context.Context, e *env, x examination) error {
	a := archive.Archive{Folder: "ferrule-doctor", At: x.At, LeftOut: []string{
		"keys, certificates' private parts, tokens and passwords: they are secret",
		"readings: entries in the outbox, and what the lines say",
		"the audit log but for its end, and the journal of commands: they name who did what",
		"logs: the agent keeps none; where systemd does: journalctl -u ferrule",
	}}
	add := func(name, about string, data []byte) {
		a.Files = append(a.Files, archive.File{Name: name, About: about, Data: data[:min(len(data), maxGathered)]})
	}
	c, err := config.Load(e.configPath)
	if err != nil {
		text, _ := os.ReadFile(e.configPath) // what cannot be read is empty
		add("configuration.txt", "the keys of the configuration, which has a mistake: ferrule check says which", archive.Outline(text))
		a.LeftOut = append(a.LeftOut, "the report: the configuration has a mistake, and what is said about it may quote it")
	} else {
		add("report.json", "what doctor found, for machines", encoded(x))
		add("report.txt", "the same for people", printed(func(w io.Writer) error { return x.print(w, doctor.Style{}, false) }))
		add("handshake.txt", "what was said in the handshakes, message by message", printed(x.Explain))
		text, secrets := archive.Settings(*c)
		a.Secrets = append(secrets, environmentSecrets()...)
		add("configuration.txt", "the configuration as it is understood, without secrets", text)
		gatherAgent(ctx, c, &a, add)
		add("files.txt", "files of the state directory and those that are configured: size, time, and the digest of public ones", listFiles(e, c))
	}
	add("system.txt", "versions, kernel, memory, network", system())
	if err := a.Write(e.doctor.archive); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "ferrule: wrote %s; %s in it lists what is inside, and what was left out\n", e.doctor.archive, archive.README)
	return nil
}

func encoded(v any) []byte {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte(err.Error())
	}
	return append(text, '\n')
}

func printed(print func(w io.Writer) error) []byte {
	var b strings.Builder
	if err := print(&b); err != nil {
		fmt.Fprintln(&b, err)
	}
	return []byte(b.String())
}

// askMetrics asks the running agent for what Prometheus asks it for.
func askMetrics(ctx context.Context, socket string) ([]byte, error) {
	var dialer net.Dialer
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(io.LimitReader(answer.Body, maxGathered))
}

// gatherAgent adds what the running agent says of itself; the end of its audit log is in its status.
func gatherAgent(ctx context.Context, c *config.Config, a *archive.Archive, add func(name, about string, data []byte)) {
	client := local.Dial(c.Local.Socket)
	status, err := client.Status(ctx)
	if err != nil {
		a.LeftOut = append(a.LeftOut, "status and metrics: "+err.Error())
		return
	}
	add("status.json", "the agent's status, with the end of the audit log", status)
	metrics, err := askMetrics(ctx, c.Local.Socket)
	if err != nil {
		a.LeftOut = append(a.LeftOut, "metrics: "+err.Error())
		return
	}
	add("metrics.txt", "the agent's metrics", metrics)
}

// environmentSecrets are the passwords of the proxies that the environment names.
func environmentSecrets() (secrets []string) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		text := os.Getenv(name)
		u, err := url.Parse(text)
		if err != nil {
			secrets = append(secrets, text)
			continue
		}
		if u.User != nil {
			password, _ := u.User.Password()
			secrets = append(secrets, password, u.User.Username()+":"+password)
		}
	}
	return secrets
}

// listFiles lists files by size and time; those that are public by their digest, too. The digest of
// a token can be guessed back, so nothing else has one.
func listFiles(e *env, c *config.Config) []byte {
	var b strings.Builder
	for _, name := range []string{e.configPath, c.Session.Roots, c.Session.ProxyRoots, c.Session.InspectionRoots, c.Enroll.Roots, below(c, c.Identity.Certificate)} {
		if name != "" {
			listFile(&b, name, name != e.configPath)
		}
	}
	n := 0
	_ = filepath.WalkDir(c.StateDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", path, err)
			return nil
		}
		if n++; n > mostListed {
			return filepath.SkipAll
		}
		if !d.IsDir() {
			listFile(&b, path, false)
		}
		return nil
	})
	if n > mostListed {
		fmt.Fprintf(&b, "and more\n")
	}
	return []byte(b.String())
}

func below(c *config.Config, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.StateDir, path)
}

func listFile(b *strings.Builder, path string, public bool) {
	info, err := os.Stat(path)
	if err != nil {
		fmt.Fprintf(b, "%s: %v\n", path, err)
		return
	}
	fmt.Fprintf(b, "%s %9d %s %s", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
	if text, err := os.ReadFile(path); public && err == nil && info.Size() <= maxGathered {
		digest := sha256.Sum256(text)
		fmt.Fprintf(b, " sha256 %s", hex.EncodeToString(digest[:]))
	}
	b.WriteByte('\n')
}

// system describes the machine: what decides whether a program works on it, and no name of it.
func system() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "ferrule %s, built %s, %s, %s/%s, %d processors\n", version, built, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			fmt.Fprintf(&b, "  %s %s\n", dep.Path, dep.Version)
		}
	}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		fmt.Fprintf(&b, "kernel %s %s %s\n", chars(u.Sysname[:]), chars(u.Release[:]), chars(u.Machine[:]))
	}
	for _, name := range []string{"/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/mounts", "/etc/resolv.conf", "/proc/net/route", "/proc/net/if_inet6"} {
		file, err := os.Open(name)
		if err != nil {
			fmt.Fprintf(&b, "\n%s: %v\n", name, err)
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(file, 16<<10))
		_ = file.Close()
		fmt.Fprintf(&b, "\n%s:\n%s", name, text)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return []byte(b.String())
	}
	b.WriteString("\nnetwork:\n")
	for _, i := range interfaces {
		addresses, _ := i.Addrs() // none, where they cannot be had
		fmt.Fprintf(&b, "  %s %s mtu %d %v\n", i.Name, i.Flags, i.MTU, addresses)
	}
	return []byte(b.String())
}

// chars is a text of the kernel; its characters are signed on some machines.
func chars[T int8 | uint8](text []T) string {
	var b strings.Builder
	for _, c := range text {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}
