#!/bin/sh
# Takes gateways from bare to enrolled, and leaves one record of each.
#
# Safe to run again, after it has succeeded and after a cut at any step: every step looks
# first whether it is done, files are put in place by a rename, the token is kept until the
# gateway has its certificate, and the registrar gives the same certificate for the same
# token and key. So a second run ends where the first would have.
set -eu

usage() {
	cat <<'USAGE'
usage: provision.sh --device ID  [--gateway WHERE] [--tpm TPM]  OPTIONS    one gateway
       provision.sh --batch CSV  [--jobs N]                     OPTIONS    every row of a file

  --device ID         the gateway's id: the common name of its certificate
  --gateway WHERE     local:ROOT (default local:/, this machine) or ssh:USER@HOST
  --tpm TPM           identity.tpm of the configuration; default auto
  --batch CSV         columns device,gateway,tpm, with that first line; further columns are left alone
  --jobs N            gateways at one time; default 4

  --ca DIR            the directory of ferrule-factory ca init
  --registrar URL     where its registrar runs; not needed with --collect and --deliver
  --broker HOST:PORT  what the configuration names
  --ferrule BINARY    the agent, built for the gateway
  --records FILE      JSON lines, one for each gateway; made if absent
  --config TEMPLATE   default: ferrule.toml.in beside this script
  --factory BINARY    ferrule-factory on this machine; default: from the PATH

Without a network between gateway and registrar (docs/factory.md):
  --collect DIR       get the evidence of each gateway: DIR/ID.order.json -> DIR/ID.evidence.json
  --deliver DIR       bring each its certificate: DIR/ID.delivery.json, and record it
USAGE
}

say() { printf 'provision: %-9s %s\n' "$1" "$2"; }
die() {
	printf 'provision: error: %s\nprovision: hint: %s\n' "$1" "$2" >&2
	exit 1
}

device='' batch='' jobs=4 ca='' registrar='' broker='' ferrule='' records='' collect='' deliver=''
gateway=local:/ config=$(dirname "$0")/ferrule.toml.in tpm=auto factory=ferrule-factory
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--device | --batch | --jobs | --ca | --registrar | --broker | --ferrule | --records | --gateway | --config | --tpm | --factory | --collect | --deliver)
		[ $# -ge 2 ] || die "$1 needs a value" 'run: provision.sh --help'
		eval "${1#--}=\$2"
		shift 2
		;;
	*) die "there is no option $1" 'run: provision.sh --help' ;;
	esac
done
needed='ca broker ferrule'
[ -n "$collect" ] || needed="$needed records"
[ -n "$collect$deliver" ] || needed="$needed registrar"
for option in $needed; do
	eval "[ -n \"\$$option\" ]" || die "--$option is missing" 'run: provision.sh --help'
done
[ -z "$collect" ] || [ -z "$deliver" ] || die '--collect and --deliver are two steps' 'collect, then ferrule-factory batch issue, then deliver'
[ -n "$device" ] || [ -n "$batch" ] || die '--device or --batch is missing' 'run: provision.sh --help'
command -v openssl >/dev/null || die 'openssl is missing on this machine' 'install the package openssl' # a gateway need not have it

digest() { sha256sum | cut -d ' ' -f 1; }

# put MODE PATH: standard input becomes the file; a cut leaves the old one or the new one.
put() {
	there "umask 022 && mkdir -p '$(dirname "$2")' && cat > '$2.new' && chmod $1 '$2.new' && sync '$2.new' && mv '$2.new' '$2'"
}

# keep PATH: the same for a file of this machine.
keep() {
	cat >"$1.new" && sync "$1.new" && mv "$1.new" "$1"
}

# install_file MODE SOURCE PATH WHAT: nothing is written that is there already.
install_file() {
	if [ "$(digest <"$2")" = "$(there "cat '$3' 2>/dev/null || true" | digest)" ]; then
		say "$4" "$3 is in place"
		return
	fi
	put "$1" "$3" <"$2"
	say "$4" "$3 written"
}

# agent_enroll FLAGS: what it prints on standard output is the caller's; errors are in said.
agent_enroll() { there "'$root/usr/bin/ferrule' enroll --config '$root/etc/ferrule/ferrule.toml' $1" 2>"$work/errors"; }
enroll() { agent_enroll '--token -' >"$work/said" || { cat "$work/errors" >>"$work/said" && false; }; }

# is_this: the gateway said that it is the device of this run, and no other.
is_this() {
	read -r first rest <"$work/said" && [ "$first" = "$device" ] && case $rest in 'is already enrolled'*) ;; *) false ;; esac
}

# The token is kept beside the records until the gateway has its certificate.
new_token() {
	mkdir -p "$records.tokens" && chmod 700 "$records.tokens"
	"$factory" token add --device "$device" "$ca" >"$work/token"
	keep "$records.tokens/$device" <"$work/token"
	say token "a new one for $device"
}

enrolled_already() { there "test -e '$root/var/lib/ferrule/device.crt'"; }

# confirm: what the gateway says by itself counts, not what an earlier step printed.
confirm() {
	: | enroll || die "$(cat "$work/said")" 'the gateway has a certificate that it cannot use'
	is_this || die "$(cat "$work/said"), and this run is for $device" \
		'check that this is the gateway you mean; nothing was recorded'
	say enroll "$(cat "$work/said")"
}

enroll_online() {
	[ -s "$records.tokens/$device" ] || new_token
	say enroll 'key in the TPM, then the certificate'
	if ! enroll <"$records.tokens/$device"; then
		# A token that a run of long ago left may have expired; any other fault is shown.
		grep -q 'token-expired\|token-unknown' "$work/said" || die "$(cat "$work/said")" 'mend that, then run this again'
		new_token
		enroll <"$records.tokens/$device" || die "$(cat "$work/said")" 'mend that, then run this again'
	fi
	cat "$work/said"
}

# record: one for each device, however often this ran; stations may share the file.
record() {
	exec 9>"$records.lock"
	flock 9
	there "cat '$root/var/lib/ferrule/device.crt'" >"$work/chain"
	serial=$(openssl x509 -noout -serial -in "$work/chain" | sed 's/^serial=//')
	[ -n "$serial" ] || die "the certificate of $device cannot be read" 'look at device.crt on the gateway; nothing was recorded'
	touch "$records"
	{
		# Compared as text: the dots of an id are no pattern.
		awk -v own="{\"device\":\"$device\"," 'index($0, own) != 1' "$records"
		printf '{"device":"%s","serial":"%s","certificate_sha256":"%s","binary_sha256":"%s","gateway":"%s","time":"%s"}\n' \
			"$device" "$serial" "$(digest <"$work/chain")" "$(digest <"$ferrule")" "$gateway" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
	} >"$work/records" # a pipe would hide that awk failed
	keep "$records" <"$work/records"
	exec 9>&-
	rm -f "$records.tokens/$device"
	say record "$device in $records"
}

# provision: one gateway, in a shell of its own.
provision() (
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
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT

	there true || die "the gateway $gateway cannot be reached" 'check the address, and that this user may log in without a password'
	install_file 755 "$ferrule" "$root/usr/bin/ferrule" binary
	install_file 644 "$ca/root.crt" "$root/etc/ferrule/root.crt" roots
	sed -e "s|@ROOT@|$root|g" -e "s|@TPM@|$tpm|g" -e "s|@REGISTRAR@|${registrar:-https://registrar.invalid}|g" -e "s|@BROKER@|$broker|g" "$config" >"$work/ferrule.toml"
	install_file 644 "$work/ferrule.toml" "$root/etc/ferrule/ferrule.toml" config
	if [ -n "$collect" ]; then
		agent_enroll '--collect -' <"$collect/$device.order.json" >"$work/evidence" || die "$(cat "$work/errors")" 'mend that, then run this again'
		keep "$collect/$device.evidence.json" <"$work/evidence"
		say evidence "$collect/$device.evidence.json"
		return
	fi
	if ! enrolled_already; then
		if [ -n "$deliver" ]; then
			agent_enroll '--deliver -' <"$deliver/$device.delivery.json" || die "$(cat "$work/errors")" 'mend that, then run this again'
		else
			enroll_online
		fi
	fi
	confirm
	record
)

# rows: device, gateway and tpm of every row, one row a line, or what is wrong with the file.
rows() {
	awk -F, '
		function wrong(text) { printf "%s:%d: %s\n", FILENAME, NR, text > "/dev/stderr"; bad = 1; exit 1 }
		{ sub(/\r$/, "") }
		NR == 1 {
			for (n = 1; n <= NF; n++) column[$n] = n
			if (!("device" in column)) wrong("the first line names no column device")
			next
		}
		/^[[:space:]]*$/ { next }
		/["[:space:]]/ { wrong("quotes and spaces are not taken") }
		{
			id = $column["device"]
			if (id !~ /^[A-Za-z0-9][A-Za-z0-9._-]*$/) wrong("\"" id "\" is no device id")
			if (seen[id]++) wrong("the device " id " is there twice")
			gateway = "gateway" in column ? $column["gateway"] : ""
			tpm = "tpm" in column ? $column["tpm"] : ""
			print id, gateway == "" ? "local:/" : gateway, tpm == "" ? "auto" : tpm
		}' "$1"
}

# bar DONE FAILED ALL: a bar where somebody looks on, else a line for every tenth part.
bar() {
	if [ -t 2 ]; then
		filled=$(($1 * 40 / $3))
		printf '\r[%-40s] %d of %d, %d failed' "$(printf '%*s' "$filled" '' | tr ' ' '#')" "$1" "$3" "$2" >&2
		[ "$1" -lt "$3" ] || printf '\n' >&2
	elif [ $(($1 * 10 / $3)) -gt $((($1 - 1) * 10 / $3)) ]; then
		say batch "$1 of $3, $2 failed" >&2
	fi
}

# finish PID ID: waits for one gateway of the batch and counts it.
finish() {
	done=$((done + 1))
	if ! wait "$1"; then
		failed=$((failed + 1))
		printf '%s: %s\n' "$2" "$(grep -m 1 'error:' "$logs/$2" || echo 'see its log')" >>"$logs/failures"
	fi
	bar "$done" "$failed" "$all"
}

# provision_all: every row, some at one time; one that fails does not hold up the others.
provision_all() {
	case $jobs in '' | *[!0-9]* | 0) die "--jobs $jobs is no number" 'give how many gateways at one time' ;; esac
	logs=$(mktemp -d)
	rows "$batch" >"$logs/rows" || die "$batch cannot be used" 'mend the line that is named; nothing was done'
	all=$(wc -l <"$logs/rows") done=0 failed=0 running=''
	[ "$all" -gt 0 ] || die "$batch has no rows" 'write one line for each gateway'
	while read -r device gateway tpm; do
		provision >"$logs/$device" 2>&1 </dev/null &
		running="$running $!:$device"
		# shellcheck disable=SC2086
		set -- $running
		if [ $# -ge "$jobs" ]; then
			finish "${1%%:*}" "${1#*:}"
			shift
			running=$*
		fi
	done <"$logs/rows"
	for one in $running; do finish "${one%%:*}" "${one#*:}"; done
	if [ "$failed" -gt 0 ]; then
		cat "$logs/failures" >&2
		die "$failed of $all gateways failed; the whole story of each is in $logs" 'mend what is named, then run this again: what is done stays done'
	fi
	rm -rf "$logs"
	say batch "$all gateways done"
}

if [ -n "$batch" ]; then
	provision_all
else
	provision
fi
