#!/usr/bin/env bash
# Builds toxiproxy, through which tests make links bad, from its Go module into .cache/toxiproxy, unless
# it is there. Prints what it does, and the program's path last.
set -euo pipefail
cd "$(dirname "$0")/.."

module=github.com/Shopify/toxiproxy/v2/cmd/server
version=v2.5.0
dir=$PWD/.cache/toxiproxy

if [ ! -x "$dir/server" ] || [ "$(cat "$dir/version" 2>/dev/null)" != "$version" ]; then
  echo "toxiproxy: building $module@$version"
  mkdir -p "$dir"
  # For this machine, whatever the tests are built for.
  env -u GOOS -u GOARCH -u GOARM -u GOFLAGS CGO_ENABLED=0 GOBIN="$dir" "${GO:-go}" install "$module@$version"
  echo "$version" >"$dir/version"
fi
echo "$dir/server"
