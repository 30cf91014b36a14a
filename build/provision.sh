#!/bin/sh
# Takes a gateway from bare to enrolled, and leaves one record of it.
#
# Safe to run again, after it has succeeded and after a cut at any step: every step looks
# first whether it is done, files are put in place by a rename, the token is kept until the
# gateway has its certificate, and the registrar gives the same certificate for the same
# token and key. So a second run ends where the first would have.
set -eu

usage() {
	cat <<'USAGE'
usage: provision.sh --device ID --ca DIR --registrar URL --broker HOST:PORT --ferrule BINARY --records FILE
                    [--gateway local:ROOT | ssh:USER@HOST] [--config TEMPLATE] [--tpm TPM] [--factory BINARY]

  --device ID         the gateway's id: the common name of its certificate
  --ca DIR            the directory of ferrule-factory ca init, whose registrar runs at URL
  --ferrule BINARY    the agent, built for the gateway
  --records FILE      JSON lines, one for each gateway; made if absent
  --gateway WHERE     local:ROOT (default local:/, this machine) or ssh:USER@HOST
  --config TEMPLATE   default: ferrule.toml.in beside this script
  --tpm TPM           identity.tpm of the configuration; default auto
  --factory BINARY    ferrule-factory on this machine; default: from the PATH
USAGE
}

say() { printf 'provision: %-9s %s\n' "$1" "$2"; }
die() {
	printf 'provision: error: %s\nprovision: hint: %s\n' "$1" "$2" >&2
	exit 1
}

device='' ca='' registrar='' broker='' ferrule='' records=''
gateway=local:/ config=$(dirname "$0")/ferrule.toml.in tpm=auto factory=ferrule-factory
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--device | --ca | --registrar | --broker | --ferrule | --records | --gateway | --config | --tpm | --factory)
		[ $# -ge 2 ] || die "$1 needs a value" 'run: provision.sh --help'
		eval "${1#--}=\$2"
		shift 2
		;;
	*) die "there is no option $1" 'run: provision.sh --help' ;;
	esac
done
for option in device ca registrar broker ferrule records; do
	eval "[ -n \"\$$option\" ]" || die "--$option is missing" 'run: provision.sh --help'
done
case $device in
*[!A-Za-z0-9._-]* | [!A-Za-z0-9]*) die "--device $device is no id" 'use letters, digits and . _ -' ;;
esac

# The gateway: where its files are, how to run a command there, how to put a file there.
case $gateway in
local:*)
	root=${gateway#local:}
	root=${root%/}
	there() { sh -c "$1"; }
	;;
ssh:*)
	root=''
	host=${gateway#ssh:}
	there() { ssh -o BatchMode=yes -- "$host" "$1"; }
	;;
*) die "--gateway $gateway is neither local:ROOT nor ssh:USER@HOST" 'run: provision.sh --help' ;;
esac

# put MODE PATH: standard input becomes the file; a cut leaves the old one or the new one.
put() {
	there "umask 022 && mkdir -p '$(dirname "$2")' && cat > '$2.new' && chmod $1 '$2.new' && sync '$2.new' && mv '$2.new' '$2'"
}

digest() { sha256sum | cut -d ' ' -f 1; }

# install_file MODE SOURCE PATH WHAT: nothing is written that is there already.
install_file() {
	if [ "$(digest <"$2")" = "$(there "cat '$3' 2>/dev/null || true" | digest)" ]; then
		say "$4" "$3 is in place"
		return
	fi
	put "$1" "$3" <"$2"
	say "$4" "$3 written"
}

# Read here: a gateway need not have it.
command -v openssl >/dev/null || die 'openssl is missing on this machine' 'install the package openssl'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

there true || die "the gateway $gateway cannot be reached" 'check the address, and that this user may log in without a password'
install_file 755 "$ferrule" "$root/usr/bin/ferrule" binary
install_file 644 "$ca/root.crt" "$root/etc/ferrule/root.crt" roots
sed -e "s|@ROOT@|$root|g" -e "s|@TPM@|$tpm|g" -e "s|@REGISTRAR@|$registrar|g" -e "s|@BROKER@|$broker|g" "$config" >"$work/ferrule.toml"
install_file 644 "$work/ferrule.toml" "$root/etc/ferrule/ferrule.toml" config

enroll() { there "'$root/usr/bin/ferrule' enroll --config '$root/etc/ferrule/ferrule.toml' --token -" >"$work/said" 2>&1; }

# is_this: the gateway said that it is the device of this run, and no other.
is_this() {
	read -r first rest <"$work/said" && [ "$first" = "$device" ] && case $rest in 'is already enrolled'*) ;; *) false ;; esac
}

# The token is kept beside the records until the gateway has its certificate.
tokens=$records.tokens
new_token() {
	mkdir -p "$tokens" && chmod 700 "$tokens"
	"$factory" token add --device "$device" "$ca" >"$tokens/$device.new"
	sync "$tokens/$device.new"
	mv "$tokens/$device.new" "$tokens/$device"
	say token "a new one for $device"
}

if there "test -e '$root/var/lib/ferrule/device.crt'"; then
	: | enroll || die "$(cat "$work/said")" 'the gateway has a certificate that it cannot use'
	is_this || die "$(cat "$work/said"), and this run is for $device" \
		'check that this is the gateway you mean; nothing was recorded'
	say enroll "$(cat "$work/said")"
else
	[ -s "$tokens/$device" ] || new_token
	say enroll 'key in the TPM, then the certificate'
	if ! enroll <"$tokens/$device"; then
		# A token that a run of long ago left may have expired; any other fault is shown.
		grep -q 'token-expired\|token-unknown' "$work/said" || die "$(cat "$work/said")" 'mend that, then run this again'
		new_token
		enroll <"$tokens/$device" || die "$(cat "$work/said")" 'mend that, then run this again'
	fi
	cat "$work/said"
	# What the gateway says by itself counts, not what the run above printed.
	: | enroll && is_this ||
		die "$(cat "$work/said")" "the gateway does not say that it is $device"
fi

# One record for each device, however often this ran; stations may share the file.
exec 9>"$records.lock"
flock 9
there "cat '$root/var/lib/ferrule/device.crt'" >"$work/chain"
serial=$(openssl x509 -noout -serial -in "$work/chain" | sed 's/^serial=//')
[ -n "$serial" ] || die "the certificate of $device cannot be read" 'look at device.crt on the gateway; nothing was recorded'
fingerprint=$(digest <"$work/chain")
touch "$records"
{
	# Compared as text: the dots of an id are no pattern.
	awk -v own="{\"device\":\"$device\"," 'index($0, own) != 1' "$records"
	printf '{"device":"%s","serial":"%s","certificate_sha256":"%s","binary_sha256":"%s","gateway":"%s","time":"%s"}\n' \
		"$device" "$serial" "$fingerprint" "$(digest <"$ferrule")" "$gateway" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
} >"$records.new"
sync "$records.new"
mv "$records.new" "$records"
rm -f "$tokens/$device"
say record "$device in $records"
