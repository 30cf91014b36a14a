#!/usr/bin/env bash
# What must hold before any test runs: formatting, vet, staticcheck, known vulnerabilities.
set -euo pipefail
cd "$(dirname "$0")/.."

staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
govulncheck=golang.org/x/vuln/cmd/govulncheck@v1.8.0

echo "== gofmt"
unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
  printf 'not formatted:\n%s\n' "$unformatted" >&2
  exit 1
fi

echo "== go vet"
go vet ./...

echo "== staticcheck"
go run "$staticcheck" ./...

echo "== govulncheck"
if [ -n "${FERRULE_VULNDB:-}" ]; then
  go run "$govulncheck" -db "file://$(realpath "$FERRULE_VULNDB")" ./...
else
  cat >&2 <<'NOTE'
  ##########################################################################
  # FERRULE_VULNDB is not set: known vulnerabilities were NOT looked for.  #
  # It names a folder with a copy of the Go vulnerability database.        #
  ##########################################################################
NOTE
fi
