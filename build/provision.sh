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
  --batch CSV         columns device,gateway,tpm, named in the first line; others are left alone
  --jobs N            gateways at one time; default 4

  --ca DIR            the directory of ferrule-factory ca init
  --roots FILE        what the gateway believes: the roots of registrar, broker and issuer;
                      default root.crt of --ca
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

device='' batch='' jobs=4 ca='' roots='' registrar='' broker='' ferrule='' records='' collect='' deliver=''
gateway=local:/ config=$(dirname "$0")/ferrule.toml.in tpm=auto factory=ferrule-factory
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--device | --batch | --jobs | --ca | --roots | --registrar | --broker | --ferrule | --records | --gateway | --config | --tpm | --factory | --collect | --deliver)
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
	# As ferrule-factory records writes them, so that the two can be compared.
	serial=$(openssl x509 -noout -serial -in "$work/chain" | sed 's/^serial=0*//' | tr A-F a-f)
	[ -n "$serial" ] || die "the certificate of $device cannot be read" 'look at device.crt on the gateway; nothing was recorded'
	fingerprint=$(openssl x509 -outform DER -in "$work/chain" | digest)
	ek=$("$factory" devices --json "$ca" "$device" | sed -n 's/^{"device":"[^"]*","ek":"\([0-9a-f]*\)".*/\1/p')
	line=$(printf '{"device":"%s","ek":"%s","serial":"%s","certificate_sha256":"%s","binary_sha256":"%s","gateway":"%s",' \
		"$device" "$ek" "$serial" "$fingerprint" "$(digest <"$ferrule")" "$gateway")
	touch "$records"
	if ! grep -q -F -e "$line" "$records"; then
		{
			# Compared as text: the dots of an id are no pattern.
			awk -v own="{\"device\":\"$device\"," 'index($0, own) != 1' "$records"
			printf '%s"time":"%s"}\n' "$line" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
		} >"$work/records" # a pipe would hide that awk failed
		keep "$records" <"$work/records"
	fi
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
	# An earlier run that was cut may still have programs at work on this gateway.
	locks=${collect:-$records.tokens}/.locks
	mkdir -p "$locks" && chmod 700 "${locks%/*}"
	exec 8>"$locks/$device"
	flock -w 60 8 || die "another run is at $device" 'wait until it ends'

	there true || die "the gateway $gateway cannot be reached" 'check the address, and that this user may log in without a password'
	install_file 755 "$ferrule" "$root/usr/bin/ferrule" binary
	install_file 644 "${roots:-$ca/root.crt}" "$root/etc/ferrule/root.crt" roots
	sed -e "s|@ROOT@|$root|g" -e "s|@TPM@|$tpm|g" -e "s|@REGISTRAR@|${registrar:-https://registrar.invalid}|g" -e "s|@BROKER@|$broker|g" "$config" >"$work/ferrule.toml"
	install_file 644 "$work/ferrule.toml" "$root/etc/ferrule/ferrule.toml" config
	if [ -n "$collect" ]; then
		if enrolled_already; then
			say evidence "none is needed: $device has its certificate"
			return
		fi
		[ -s "$collect/$device.order.json" ] || die "there is no order for $device in $collect" 'make it: ferrule-factory batch plan'
		agent_enroll '--collect -' <"$collect/$device.order.json" >"$work/evidence" || die "$(cat "$work/errors")" 'mend that, then run this again'
		keep "$collect/$device.evidence.json" <"$work/evidence"
		say evidence "$collect/$device.evidence.json"
		return
	fi
	if ! enrolled_already; then
		if [ -n "$deliver" ]; then
			[ -s "$deliver/$device.delivery.json" ] || die "there is no delivery for $device in $deliver" 'make it: ferrule-factory batch issue; its lines say what is missing'
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
	awk '
		function wrong(text) { printf "%s:%d: %s\n", FILENAME, NR, text > "/dev/stderr"; bad = 1; exit 1 }
		# split_row: the fields of a line (RFC 4180) into field; a field does not go over its line.
		function split_row(line,  n, at, c, quoted) {
			split("", field)
			n = 1
			field[1] = ""
			for (at = 1; at <= length(line); at++) {
				c = substr(line, at, 1)
				if (c != "\"") { if (c == "," && !quoted) field[++n] = ""; else field[n] = field[n] c }
				else if (quoted && substr(line, at + 1, 1) == "\"") { field[n] = field[n] c; at++ }
				else quoted = !quoted
			}
			if (quoted) wrong("a quote is not closed in its line")
			return n
		}
		function value(name, usual) { return name in column && field[column[name]] != "" ? field[column[name]] : usual }
		{ sub(/\r$/, "") }
		NR == 1 {
			sub(/^\357\273\277/, "") # spreadsheets write it
			columns = split_row($0)
			for (n = 1; n <= columns; n++) column[field[n]] = n
			if (!("device" in column)) wrong("the first line names no column device")
			next
		}
		/^[[:space:]]*$/ { next }
		{
			if (split_row($0) != columns) wrong("there are more or fewer fields than in the first line")
			id = value("device", "")
			if (id !~ /^[A-Za-z0-9][A-Za-z0-9._-]*$/) wrong("\"" id "\" is no device id")
			if (seen[id]++) wrong("the device " id " is there twice")
			row = id " " value("gateway", "local:/") " " value("tpm", "auto")
			if (split(row, words, /[[:space:]]/) != 3) wrong("there is a space in gateway or tpm")
			print row
		}' "$1"
}

# bar: a bar where somebody looks on, else a line for every tenth part.
bar() {
	if [ -t 2 ]; then
		filled=$((done * 40 / all))
		printf '\r[%-40s] %d of %d, %d failed' "$(printf '%*s' "$filled" '' | tr ' ' '#')" "$done" "$all" "$failed" >&2
		[ "$done" -lt "$all" ] || printf '\n' >&2
	elif [ $((done * 10 / all)) -gt $(((done - 1) * 10 / all)) ]; then
		say batch "$done of $all, $failed failed" >&2
	fi
}

# worker: takes one row after the other, as all workers do, and tells what came of it. When
# nobody listens any more it ends with the gateway it is at.
worker() {
	exec 7>"$logs/.lock"
	while
		flock 7
		taken=0
		read -r device gateway tpm <&3 || taken=1
		flock -u 7
		[ "$taken" = 0 ]
	do
		provision >"$logs/$device" 2>&1 </dev/null 3<&- 7>&- &
		if wait $!; then echo "done $device"; else echo "failed $device"; fi
	done
}

# why: the first error in the log of a gateway, and what to do about it.
why() {
	reason=$(sed -n '/error: /{s/^provision: error: //;p;q;}' "$logs/$1")
	remedy=$(sed -n 's/^.*hint: //p' "$logs/$1" | head -n 1)
	printf '%s: %s\n%s: hint: %s\n' "$1" "${reason:-it was cut short; see $logs/$1}" "$1" "${remedy:-run this again}"
}

# provision_all: every row, some at one time; one that fails does not hold up the others.
provision_all() {
	case $jobs in '' | *[!0-9]* | 0*) die "--jobs $jobs is no number" 'give how many gateways at one time' ;; esac
	began=$(date +%s)
	logs=$(mktemp -d)
	rows "$batch" >"$logs/.rows" || die "$batch cannot be used" 'mend the line that is named; nothing was done'
	all=$(wc -l <"$logs/.rows") done=0 failed=0
	[ "$all" -gt 0 ] || die "$batch has no rows" 'write one line for each gateway'
	mkfifo "$logs/.outcomes"
	{
		n=0
		while [ "$n" -lt "$jobs" ]; do
			worker &
			n=$((n + 1))
		done
		wait
	} 3<"$logs/.rows" >"$logs/.outcomes" &
	: >"$logs/.failed"
	while read -r outcome device; do
		done=$((done + 1))
		if [ "$outcome" = failed ]; then
			failed=$((failed + 1))
			echo "$device" >>"$logs/.failed"
		fi
		bar
	done <"$logs/.outcomes"
	wait
	while read -r device; do why "$device" >&2; done <"$logs/.failed"
	[ "$done" -eq "$all" ] || die "$((all - done)) of $all gateways were not tried" 'run this again: what is done stays done'
	[ "$failed" -eq 0 ] || die "$failed of $all gateways failed; the whole story of each is in $logs" 'mend what is named, then run this again: what is done stays done'
	rm -rf "$logs"
	say batch "$all gateways done in $(($(date +%s) - began)) s"
}

if [ -n "$batch" ]; then
	provision_all
else
	provision
fi
