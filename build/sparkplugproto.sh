#!/usr/bin/env bash
# Brings the schema of Sparkplug B payloads, which tests decode with, into .cache/sparkplug, unless it
# is there: Eclipse Tahu's sparkplug_b.proto, compiled, as the Python package below carries it. No Go
# module has it. Prints what it does, and the file's path last.
set -euo pipefail
cd "$(dirname "$0")/.."

package=pysparkplug==0.6.1
member=pysparkplug/_protobuf/sparkplug_b_pb2.py
# Of the compiled schema. What protoc makes of sparkplug_b/sparkplug_b.proto in Eclipse Tahu
# (5736e404) is the same but for json_name, which protoc adds to every field.
sum=ea8f04c7f5e77f15c2ccf964b5f13fb2417769a68e9988aca8f07654250c7f18
dir=$PWD/.cache/sparkplug
file=$dir/sparkplug_b.desc

if ! echo "$sum  $file" | sha256sum --check --status 2>/dev/null; then
  command -v python3 >/dev/null || { echo "sparkplugproto: python3 is missing; run: make deps" >&2; exit 1; }
  echo "sparkplugproto: fetching $package"
  mkdir -p "$dir"
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary :all: --dest "$tmp" "$package" ||
    { echo "sparkplugproto: pip could not fetch $package; is python3-pip installed? run: make deps" >&2; exit 1; }
  # A FileDescriptorSet of one file: what protoc --descriptor_set_in reads.
  python3 - "$tmp"/*.whl "$member" "$tmp/desc" <<'PY'
import ast, re, sys, zipfile
wheel, member, out = sys.argv[1:]
text = zipfile.ZipFile(wheel).read(member).decode()
file = ast.literal_eval(re.search(r"AddSerializedFile\((b'(?:[^'\\]|\\.)*')\)", text).group(1))
size, n = b"", len(file)
while n > 127:
    size, n = size + bytes([n & 127 | 128]), n >> 7
open(out, "wb").write(b"\x0a" + size + bytes([n]) + file)
PY
  echo "$sum  $tmp/desc" | sha256sum --check --status || { echo "sparkplugproto: $package is not what it was" >&2; exit 1; }
  mv "$tmp/desc" "$file"
fi
echo "sparkplugproto: the schema is $file"
