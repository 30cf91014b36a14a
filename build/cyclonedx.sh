#!/usr/bin/env bash
# Brings the JSON schema of CycloneDX 1.6, which a test checks the bill of materials with, into
# .cache/cyclonedx, unless it is there: as the Python package below carries it. No Go module has it.
# Prints what it does, and the folder last.
set -euo pipefail
cd "$(dirname "$0")/.."

package=cyclonedx-python-lib==11.12.0
members="bom-1.6.SNAPSHOT.schema.json spdx.SNAPSHOT.schema.json jsf-0.82.SNAPSHOT.schema.json cryptography-defs.SNAPSHOT.schema.json"
sum=601571a27a4fe2e32f5fe3c9cde625fcdbae87823c7fc39392bdd263114919b3
dir=$PWD/.cache/cyclonedx

if [ "$(cat "$dir/sum" 2>/dev/null)" != "$sum" ]; then
  command -v python3 >/dev/null || { echo "cyclonedx: python3 is missing; run: make deps" >&2; exit 1; }
  echo "cyclonedx: fetching $package"
  mkdir -p "$dir"
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary :all: --dest "$tmp" "$package" ||
    { echo "cyclonedx: pip could not fetch $package; is python3-pip installed? run: make deps" >&2; exit 1; }
  # shellcheck disable=SC2086 # a list
  (cd "$tmp" && python3 -m zipfile -e ./*.whl all && cd all/cyclonedx/schema/_res && cp $members "$tmp")
  # shellcheck disable=SC2086 # a list
  got=$(cd "$tmp" && sha256sum $members | sha256sum | cut -d ' ' -f 1)
  [ "$got" = "$sum" ] || { echo "cyclonedx: $package is not what it was: $got" >&2; exit 1; }
  # shellcheck disable=SC2086 # a list
  (cd "$tmp" && mv $members "$dir")
  echo "$sum" >"$dir/sum"
fi
echo "cyclonedx: the schema is $dir"
