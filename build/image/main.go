// Command image builds the appliance's disk images: boot loader's script, two slots with kernel
// and agent, and a data partition, without root, loop devices or mounts, and to the same bytes
// every time. The trap: tools write times, ids and owners of their own unless each is told not
// to, and a delta between two releases is as large as what they let slip.
//
//	go run ./build/image [-o DIR] [-version V] qemu-arm64|rpi-arm64|slot
//	go run ./build/image provision IMAGE FILE...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// builder is one run: what to build, from what, and where to.
type builder struct {
	out     string
	cache   string // the downloaded kernel
	work    string // removed at the end
	version string
	epoch   time.Time // the time of everything that is written
	agent   string    // a finished ferrule for arm64; "": build it
	kernel  string    // version of Debian's package; "": the newest
	dataMiB int64
	// firmware is a folder with the Raspberry Pi's own files, which are not free and not here.
	firmware string
	broken   string // what a test wants to be wrong with the slot
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b := &builder{}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&b.out, "o", "dist", "folder for the images")
	flags.StringVar(&b.cache, "cache", ".cache/image", "folder for what is downloaded")
	flags.StringVar(&b.version, "version", "", "version of the release (default: git describe)")
	flags.StringVar(&b.agent, "agent", "", "ferrule for arm64 (default: it is built)")
	flags.StringVar(&b.kernel, "kernel", "", "version of Debian's kernel package (default: that in the cache, else the newest)")
	flags.Int64Var(&b.dataMiB, "data", 64, "size of the data partition in MiB")
	flags.StringVar(&b.firmware, "firmware", "", "folder with the Raspberry Pi's firmware (start4.elf, fixup4.dat, overlays/), for its slots")
	flags.StringVar(&b.broken, "broken", "", "for tests: panic makes a slot whose kernel panics")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.Arg(0) == "provision" && flags.NArg() > 2 {
		if err := b.provision(ctx, flags.Arg(1), flags.Args()[2:]); err != nil {
			fmt.Fprintln(stderr, "image: error:", err)
			return 1
		}
		return 0
	}
	build, known := map[string]func(*builder, context.Context) ([]string, error){
		"qemu-arm64": (*builder).qemu, "rpi-arm64": (*builder).raspberry, "slot": (*builder).slotAlone,
	}[flags.Arg(0)]
	if !known || flags.NArg() != 1 {
		fmt.Fprintln(stderr, "usage: image [flags] qemu-arm64|rpi-arm64|slot\n       image provision IMAGE FILE...")
		flags.PrintDefaults()
		return 2
	}
	files, err := b.build(ctx, build)
	if err != nil {
		fmt.Fprintln(stderr, "image: error:", err)
		return 1
	}
	for _, name := range files {
		fmt.Fprintln(stdout, name)
	}
	return 0
}

// build prepares a folder to work in, and what comes from git.
func (b *builder) build(ctx context.Context, build func(*builder, context.Context) ([]string, error)) (files []string, err error) {
	if b.epoch, err = sourceDate(ctx); err != nil {
		return nil, err
	}
	if b.version == "" {
		described, err := output(ctx, "git", "describe", "--tags", "--always", "--dirty")
		if err != nil {
			return nil, err
		}
		b.version = strings.TrimSpace(described)
	}
	if strings.Trim(b.version, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+~_-") != "" {
		return nil, errors.New("the version has other characters than letters, digits and . + ~ _ -")
	}
	for _, dir := range []string{b.out, b.cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("preparing the folders: %w", err)
		}
	}
	if b.work, err = os.MkdirTemp("", "image"); err != nil {
		return nil, fmt.Errorf("preparing the folders: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	return build(b, ctx)
}

// sourceDate is SOURCE_DATE_EPOCH, else the time of the commit.
func sourceDate(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		var err error
		if text, err = output(ctx, "git", "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, err
		}
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// tool runs a program with times and places that are the same everywhere.
func (b *builder) tool(ctx context.Context, stdin string, argv ...string) error {
	_, err := b.ask(ctx, stdin, argv...)
	return err
}

func (b *builder) ask(ctx context.Context, stdin string, argv ...string) (string, error) {
	path, err := find(argv[0])
	if err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, path, argv[1:]...)
	epoch := strconv.FormatInt(b.epoch.Unix(), 10)
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch, "E2FSPROGS_FAKE_TIME="+epoch,
		"MTOOLS_SKIP_CHECK=1", "TZ=UTC", "LC_ALL=C")
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), nil
}

// find looks where programs for root lie, too: none of them needs to be root here.
func find(program string) (string, error) {
	for _, name := range []string{program, filepath.Join("/usr/sbin", program), filepath.Join("/sbin", program)} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing; run: make deps", program)
}

func output(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("running %s: %w", strings.Join(argv, " "), err)
	}
	return string(out), nil
}
