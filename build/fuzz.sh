#!/usr/bin/env bash
# Runs every fuzz target below the folders given, or of the whole tree, for FUZZTIME (60s unless
# set), one after another. What a target finds is written to its package's testdata; commit it with
# the repair.
#
#   build/fuzz.sh [FOLDER …]
set -euo pipefail
cd "$(dirname "$0")/.."

time=${FUZZTIME:-60s}
count=0
while IFS=: read -r file line; do
  target=${line#func }
  target=${target%%(*}
  echo "== $target in $(dirname "$file"), $time"
  # Shrinking an input that is only new, not bad, once: with the default, a target whose inputs are
  # long does nothing else after its first seconds.
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "./$(dirname "$file")"
  count=$((count + 1))
done < <(grep -rE --include='*_test.go' "^func Fuzz[A-Za-z0-9_]*\\(" "${@:-.}" | sort)
echo "fuzz: $count targets, nothing found"
