#!/usr/bin/env bash
# Builds step-ca, which tests enroll at, from its Go module into .cache/stepca, unless it is there.
# The first time takes minutes: 4 on two cores. Prints what it does, and the program's path last.
set -euo pipefail
cd "$(dirname "$0")/.."

module=github.com/smallstep/certificates/cmd/step-ca
version=v0.30.2
dir=$PWD/.cache/stepca

if [ ! -x "$dir/step-ca" ] || [ "$(cat "$dir/version" 2>/dev/null)" != "$version" ]; then
  echo "stepca: building $module@$version; the first time takes minutes"
  mkdir -p "$dir"
  # For this machine, whatever the tests are built for.
  env -u GOOS -u GOARCH -u GOARM -u GOFLAGS CGO_ENABLED=0 GOBIN="$dir" "${GO:-go}" install "$module@$version"
  echo "$version" >"$dir/version"
fi
echo "stepca: $version is $dir/step-ca"
