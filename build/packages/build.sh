#!/usr/bin/env bash
# Makes the packages of every architecture of what make cross has built, into dist/packages/:
# .deb and .rpm for systems with systemd, .apk for Alpine, .ipk for opkg. All times are that of the commit
# (or SOURCE_DATE_EPOCH): two builds of one commit are the same bytes.
#
#   build/packages/build.sh VERSION [ARCHITECTURE…]    VERSION as git describe writes it
set -euo pipefail
cd "$(dirname "$0")/../.."

# The last version that this machine's module proxy has all of: later ones need modules for MSIX packages.
nfpm=v2.45.2
describe=$1
shift
architectures=("$@")
[ $# -gt 0 ] || architectures=(armv6 armv7 arm64 riscv64 amd64)

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
out=dist/packages
export PACKAGE_WORK=$out/.work
rm -rf "$out"
mkdir -p "$PACKAGE_WORK/docs"

tool=$PWD/.cache/nfpm/$nfpm/nfpm
if [ ! -x "$tool" ]; then
  echo "packages: building nfpm $nfpm; the first time takes a minute"
  env -u GOOS -u GOARCH -u GOARM -u GOFLAGS CGO_ENABLED=0 GOBIN="$(dirname "$tool")" "${GO:-go}" install "github.com/goreleaser/nfpm/v2/cmd/nfpm@$nfpm"
fi

# --- The version: 1.2.3, 1.2.3~rc1 before it, 1.2.3+5.g0123abc five commits after it. Without a tag it
# is older than every release, and the younger commit is the higher version.
day=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)
if [[ $describe =~ ^v?([0-9]+\.[0-9]+\.[0-9]+)(-([a-z]+\.?[0-9]+))?(-([0-9]+)-g([0-9a-f]+))?(-dirty)?$ ]]; then
  version=${BASH_REMATCH[1]} pre=${BASH_REMATCH[3]} commits=${BASH_REMATCH[5]} hash=${BASH_REMATCH[6]} dirty=${BASH_REMATCH[7]}
  after=${commits:+$commits.g$hash}${dirty:+${commits:+.}dirty}
  small_pre=${pre//./} small_after=${commits:+p$commits}
else
  version=0.0.0 pre=git$day.${describe//[^A-Za-z0-9]/.} after=''
  small_pre=git$day small_after=''
fi

# --- What every package has beside the program.
{
  cat LICENSE
  printf '\n\nThe program contains the following, whose licences follow.\n'
  # For all architectures alike: what one of them links.
  CGO_ENABLED=0 GOOS=linux GOARCH=arm "${GO:-go}" list -deps -tags nethttpomithttp2 -f '{{with .Module}}{{if .Version}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/ferrule | sort -u |
    while read -r path number dir; do
      printf '\n%s\n%s %s\n\n' "------------------------------------------------------------------------" "$path" "$number"
      found=no
      for file in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
        [ -f "$file" ] || continue
        found=yes
        cat "$file"
      done
      [ $found = yes ] || { echo "packages: $path has no licence file" >&2; exit 1; }
    done
  printf '\n%s\nGo, its runtime and standard library\n\n' "------------------------------------------------------------------------"
  cat "$("${GO:-go}" env GOROOT)/LICENSE"
} >"$PACKAGE_WORK/copyright"
gzip -9n <CHANGELOG.md >"$PACKAGE_WORK/changelog.gz"
full=$version${pre:+\~$pre}${after:++$after}
printf 'ferrule (%s-1) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- The Ferrule maintainers <ferrule@ferrule.invalid>  %s\n' \
  "$full" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$PACKAGE_WORK/changelog.Debian.gz"
cp docs/*.md "$PACKAGE_WORK/docs/"

# nfpm gives the scripts of an .apk the times and rights that they have on disk: they are copies, then.
for file in nfpm-systemd.yaml nfpm-small.yaml postinstall.sh preremove.sh postremove.sh; do
  sed "s|: build/packages/\([a-z]*\.sh\)\$|: $PACKAGE_WORK/\1|" "build/packages/$file" >"$PACKAGE_WORK/$file"
  chmod 755 "$PACKAGE_WORK/$file"
  touch -d "@$SOURCE_DATE_EPOCH" "$PACKAGE_WORK/$file"
done

# make_package FORMAT FILE CONFIGURATION
make_package() {
  "$tool" package --config "$PACKAGE_WORK/$3" --packager "$1" --target "$out/$2" >/dev/null
  printf '  %-58s %9d bytes\n' "$out/$2" "$(stat -c %s "$out/$2")"
}

for name in "${architectures[@]}"; do
  export PACKAGE_BINARY=dist/ferrule-$name
  [ -f "$PACKAGE_BINARY" ] || { echo "packages: $PACKAGE_BINARY is missing; run: make cross" >&2; exit 1; }
  # Go's name, and what the file is called for .deb, .rpm, .apk and .ipk. Both ARMs are armhf to
  # Debian: the one for ARMv6 is for a Raspberry Pi 1 or Zero.
  case $name in
  armv6) names="arm6 armhf-armv6 armv6hl armhf armhf-armv6" ;;
  armv7) names="arm7 armhf armv7hl armv7 armhf" ;;
  arm64) names="arm64 arm64 aarch64 aarch64 arm64" ;;
  riscv64) names="riscv64 riscv64 riscv64 riscv64 riscv64" ;;
  amd64) names="amd64 amd64 x86_64 x86_64 x86_64" ;;
  *) echo "packages: there is no architecture $name" >&2; exit 2 ;;
  esac
  read -r PACKAGE_ARCH deb rpm apk ipk <<<"$names"
  export PACKAGE_ARCH
  export PACKAGE_VERSION=$full PACKAGE_PRERELEASE=''
  make_package deb "ferrule_${full}-1_$deb.deb" nfpm-systemd.yaml
  make_package rpm "ferrule-${full}-1.$rpm.rpm" nfpm-systemd.yaml
  make_package ipk "ferrule_${full}-1_$ipk.ipk" nfpm-small.yaml
  small=$version${small_pre:+_$small_pre}${small_after:+_$small_after}
  export PACKAGE_VERSION=$small
  make_package apk "ferrule-$small-r1.$apk.apk" nfpm-small.yaml
done
rm -rf "$PACKAGE_WORK"
(cd "$out" && sha256sum -- * >SHA256SUMS)
