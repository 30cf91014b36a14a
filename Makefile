# Ferrule. "make help" lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# The time of the commit, not of the build: two builds of one commit are the same bytes.
BUILT   ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
# Nobody here speaks HTTP/2, which is half a megabyte of a gateway's flash.
TAGS     = nethttpomithttp2
LDFLAGS  = -s -w -buildid= -X main.version=$(VERSION) -X main.built=$(BUILT)

.PHONY: help build cross packages image deps peers demo test check race test-arm test-arm64 e2e gateway powercut batch soak fuzz bench lint generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## build every program for this machine into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...
	@if command -v gcc >/dev/null; then \
	  CGO_ENABLED=1 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/ferrule-p11; \
	else echo "build: there is no gcc, so ferrule-p11 was left out"; fi

cross: ## build the device binary for every architecture into dist/; fail if too large or not static
	@build/cross.sh '$(LDFLAGS)' $(TAGS)

packages: cross ## .deb, .rpm, .apk and .ipk of every architecture into dist/packages/
	@build/packages/build.sh '$(VERSION)'

deps: ## install the Debian packages that tests and benchmarks need; say which
	@build/deps.sh

peers: ## bring step-ca, toxiproxy and the schema of Sparkplug B into .cache/, which tests need: some minutes, once
	@build/stepca.sh
	@build/toxiproxy.sh
	@build/sparkplugproto.sh

image: ## build the appliance's disk images into dist/: no root, no loop devices, the same bytes every time
	$(GO) run ./build/image qemu-arm64
	$(GO) run ./build/image rpi-arm64

demo: ## the whole loop on this machine; DEMO_FOR=30s ends by itself with a tally
	@build/deps.sh demo || echo "demo: going on with what there is"
	@CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/ferrule ./cmd/ferrule-demo
	@bin/ferrule-demo

test: deps check race test-arm test-arm64 ## everything that must hold: checks, tests with -race, tests on ARM

check: ## gofmt, vet, staticcheck, known vulnerabilities
	@build/check.sh

race: peers ## only the tests on this machine, with the race detector
	@build/test.sh native

test-arm: peers ## only the tests for ARMv6, under qemu
	@build/test.sh arm

test-arm64: peers ## only the tests for ARM64, under qemu
	@build/test.sh arm64

e2e: gateway deps peers ## the emulated gateway; then the built binaries against mosquitto, swtpm, libmodbus, step-ca, Chromium and openssl
	$(GO) test -count=1 -timeout 30m ./build/e2e

gateway: deps ## only the emulated gateway: flashed, enrolled, updated, rolled back, and its power cut throughout
	$(GO) test -count=1 -timeout 30m ./build/gateway

powercut: ## every disk that a power cut leaves of an update, each cut a second time: an hour
	$(GO) test -count=1 -timeout 0 -v -run PowerCuts ./firmware -exhaustive

batch: deps ## 100 gateways with 100 TPMs from bare to enrolled, with the minutes that takes
	E2E_BATCH=100 $(GO) test -count=1 -timeout 30m -v -run '^TestBatch$$' ./build/e2e

soak: deps peers ## every test SOAK times over (default 20) with -race: what fails seldom fails here
	$(GO) test -race -count=$(or $(SOAK),20) -timeout 0 $$($(GO) list ./... | grep -Ev '/build/(e2e|gateway)$$')

fuzz: ## every fuzz target for FUZZTIME (default 60s)
	@build/fuzz.sh

bench: deps ## speed, memory and disk, side by side with peers; one table
	$(GO) run ./build/bench

lint: ## golangci-lint with .golangci.yml (compiles the linter the first time)
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

generate: ## write docs/configuration.md anew from the structs
	$(GO) test -count=1 -run TestConfigurationDocs ./agent/config -update

clean: ## remove what the other targets made
	rm -rf bin dist .cache
