#!/usr/bin/env bash
# Installs the Debian packages that the tests, the demo and the benchmarks need, and only those
# that are missing. The product itself needs none of them.
#
#   build/deps.sh         everything that make test and make bench use
#   build/deps.sh demo    only what make demo uses
set -euo pipefail

demo=(
  swtpm             # a TPM 2.0 in software
  swtpm-tools       # swtpm_setup, which certifies it as its maker would
)
tests=(
  mosquitto         # the foreign broker
  mosquitto-clients # the foreign subscriber
  tinyproxy         # a proxy between a device and its broker
  iproute2          # networks of which some ways lead nowhere
  socat             # pairs of ptys
  tpm2-tools        # foreign reader and writer of TPM keys
  tpm2-openssl      # openssl over the same TPM
  openssl           # foreign reader of keys, requests and certificates
  libmodbus-dev     # the foreign Modbus unit
  mbpoll            # the foreign Modbus master
  python3-pymodbus  # the foreign Modbus peer in ASCII
  python3-serial-asyncio # its serial ports
  gcc libc6-dev     # builds that unit, and the race detector's runtime
  binutils          # readelf: are the cross-built binaries static?
  qemu-user-static  # runs the ARM builds
  softhsm2          # a PKCS #11 token in software
  strace            # kills a process at a chosen system call
  procps            # ps
  libubootenv-tool grub-common busybox # foreign readers and writers of boot loaders' environments; another sh
  chromium          # the browser that the status page is tested in
  testssl.sh libnss3-tools curl # looks at the listener; gives a browser a certificate; asks as docs/local.md does
  qemu-system-arm u-boot-qemu # the emulated gateway and its boot loader
  u-boot-tools mtools dosfstools fdisk e2fsprogs # make the images: boot.scr, FAT, partitions, ext4
  zstd              # the foreign reader of compressed messages and images
  squashfs-tools    # root file systems of Debian, to make deltas of
  mmdebstrap systemd systemd-container lintian rpm cpio # installs the packages in a root of its own, and looks at units and packages
  dbus rauc python3-jsonschema # a bus and RAUC on it; checks the bill of materials
  protobuf-compiler python3-pip # the foreign reader of Sparkplug B, and how build/sparkplugproto.sh gets its schema
)

want=("${demo[@]}")
[ "${1:-all}" = demo ] || want+=("${tests[@]}")

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${want[@]}"; do
    installed "$package" || missing+=("$package")
  done
else
  echo "deps: this is not Debian; please see to it that these are there: ${want[*]}" >&2
  exit 1
fi
if [ ${#missing[@]} -eq 0 ]; then
  echo "deps: all ${#want[@]} Debian packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    echo "deps: ${#missing[@]} Debian packages are missing and this is not root; run:" >&2
    echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null
}

echo "deps: installing ${missing[*]}"
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  # The package lists are absent or out of date.
  echo "deps: updating the package lists first"
  if ! apt update || ! apt install -y --no-install-recommends "${missing[@]}"; then
    tail -n 20 "$log" >&2
    echo "deps: installing failed" >&2
    exit 1
  fi
fi

# The tests start brokers and proxies of their own; the one that a package has just started as a
# service would only occupy its port. One that was there before is not ours to stop.
for service in mosquitto tinyproxy; do
  [[ " ${missing[*]} " == *" $service "* ]] || continue
  if [ -d /run/systemd/system ]; then
    "${as_root[@]}" systemctl disable --now --quiet "$service.service" >/dev/null 2>&1 || true
  elif [ -x "/etc/init.d/$service" ]; then
    "${as_root[@]}" "/etc/init.d/$service" stop >/dev/null 2>&1 || true
  fi
done
echo "deps: installed ${#missing[@]} Debian packages"
