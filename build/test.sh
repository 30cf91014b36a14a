#!/usr/bin/env bash
# Runs the tests of every package:
#
#   build/test.sh native          here, with the race detector
#   build/test.sh arm|arm64       the same packages, built for ARM and run by qemu
#
# build/e2e and build/gateway are not among them: make e2e runs them.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${FERRULE_CORPORA:-}" ]; then
  cat >&2 <<'NOTE'
  ##########################################################################
  # FERRULE_CORPORA is not set: tests over real captures have NOT been run.#
  # It names a folder with captures of real sensors' lines.                #
  ##########################################################################
NOTE
fi

# packages are those of one kind of build: without cgo, ferrule-p11 is none of them.
packages() { # CGO_ENABLED
  CGO_ENABLED=$1 go list ./... | grep -Ev '/build/(e2e|gateway)$'
}

# devices leaves out what only a release engineer's machine runs, none of which is ARM.
devices() { packages 0 | grep -Ev '/(cmd/ferrule-release|firmware/bundle|firmware/bundle/.*|build/image)$'; }

# emulated runs the tests of one architecture under qemu-user. There is no binfmt to rely on, so
# a test that starts its own binary again puts the words of FERRULE_EXEC before it.
emulated() { # qemu
  command -v "$1" >/dev/null || { echo "$1 is missing; run: make deps" >&2; exit 1; }
  # shellcheck disable=SC2046
  FERRULE_EXEC=$1 CGO_ENABLED=0 go test -exec "$1" -timeout 15m $(devices)
}

case ${1:-native} in
native)
  echo "== go test -race"
  # shellcheck disable=SC2046
  CGO_ENABLED=1 go test -race -timeout 15m $(packages 1)
  ;;
arm)
  echo "== go test, GOARCH=arm GOARM=6 under qemu"
  GOARCH=arm GOARM=6 emulated qemu-arm-static
  ;;
arm64)
  echo "== go test, GOARCH=arm64 under qemu"
  GOARCH=arm64 emulated qemu-aarch64-static
  ;;
*)
  echo "usage: build/test.sh native|arm|arm64" >&2
  exit 2
  ;;
esac
