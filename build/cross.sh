#!/usr/bin/env bash
# Builds the device binary for every architecture into dist/, prints the sizes, and fails when
# one is not static or the one for ARMv7 is larger than a gateway's flash should have to hold.
#
#   build/cross.sh LDFLAGS TAGS [ARCHITECTURE…]
set -euo pipefail
cd "$(dirname "$0")/.."

ldflags=$1 tags=$2
shift 2
most_armv7=14000000 # bytes: what a gateway's flash should have to hold, updates included
command -v readelf >/dev/null || { echo "cross: readelf is missing; run: make deps" >&2; exit 1; }

mapfile -t flags < <(grep -v '^#' build/device.flags)
bad=0
mkdir -p dist
for target in "armv6 arm 6" "armv7 arm 7" "arm64 arm64" "riscv64 riscv64" "amd64 amd64"; do
  read -r name arch arm <<<"$target"
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  out=dist/ferrule-$name
  # Nothing of this machine or folder may get into the program: two builds of one commit are the same bytes.
  env -u GOFLAGS -u GOEXPERIMENT -u GOAMD64 -u GOARM64 -u GORISCV64 CGO_ENABLED=0 GOOS=linux GOARCH="$arch" GOARM="${arm:-}" \
    go build -trimpath -buildvcs=false "${flags[@]}" -tags "$tags" -ldflags "$ldflags" -o "$out" ./cmd/ferrule
  size=$(stat -c %s "$out")
  note=static
  if readelf -lW "$out" | grep -Eq '^ *(INTERP|DYNAMIC) '; then
    note="NOT STATIC" bad=1
  fi
  if [ "$name" = armv7 ] && [ "$size" -gt "$most_armv7" ]; then
    note+=", LARGER THAN $most_armv7" bad=1
  fi
  printf '  %-24s %10d bytes  %s\n' "$out" "$size" "$note"
done
exit $bad
