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
       provision.sh --device ID  --image IMG --to DEVICE        OPTIONS    one, from its empty disk on
       provision.sh --batch CSV  [--jobs N]                     OPTIONS    every row of a file

  --device ID         the gateway's id: the common name of its certificate
  --gateway WHERE     local:ROOT (default local:/, this machine), ssh:USER@HOST, or
                      image:DEVICE, which is the same as --to DEVICE
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

Where the agent comes with the whole disk (docs/image.md); --ferrule is not needed then:
  --image IMG         what is written to the disk, read back and compared
  --to DEVICE         the disk or card, or a file that stands for one
  --force             also a disk that is mounted, or that cannot be taken out
  --valid HOURS       how long its token is good for; default 24
  --wait SECONDS      how long to wait for the gateway's first start; without it, run this again
                      when the gateway has started: that writes the record

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
image='' force='' wait=0 valid=24
gateway=local:/ config=$(dirname "$0")/ferrule.toml.in tpm=auto factory=ferrule-factory
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--force) force=yes && shift ;;
	--to)
		[ $# -ge 2 ] || die "$1 needs a value" 'run: provision.sh --help'
		gateway=image:$2
		shift 2
		;;
	--image | --wait | --valid | --device | --batch | --jobs | --ca | --roots | --registrar | --broker | --ferrule | --records | --gateway | --config | --tpm | --factory | --collect | --deliver)
		[ $# -ge 2 ] || die "$1 needs a value" 'run: provision.sh --help'
		eval "${1#--}=\$2"
		shift 2
		;;
	*) die "there is no option $1" 'run: provision.sh --help' ;;
	esac
done
needed='ca broker ferrule'
[ -z "$image" ] || needed='ca broker'
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
	"$factory" token add "$@" --device "$device" "$ca" >"$work/token"
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

# record: what the gateway itself holds.
record() {
	there "cat '$root/var/lib/ferrule/device.crt'" >"$work/chain"
	# As ferrule-factory records writes them, so that the two can be compared.
	serial=$(openssl x509 -noout -serial -in "$work/chain" | sed 's/^serial=0*//' | tr A-F a-f)
	[ -n "$serial" ] || die "the certificate of $device cannot be read" 'look at device.crt on the gateway; nothing was recorded'
	fingerprint=$(openssl x509 -outform DER -in "$work/chain" | digest)
	ek=$("$factory" devices --json "$ca" "$device" | sed -n 's/^{"device":"[^"]*","ek":"\([0-9a-f]*\)".*/\1/p')
	write_record "$ek" "$serial" "$fingerprint" "\"binary_sha256\":\"$(digest <"$ferrule")\""
}

# write_record EK SERIAL CERTIFICATE SOFTWARE: one for each device, however often this ran; stations may
# share the file.
write_record() {
	exec 9>"$records.lock"
	flock 9
	line=$(printf '{"device":"%s","ek":"%s","serial":"%s","certificate_sha256":"%s",%s,"gateway":"%s",' \
		"$device" "$1" "$2" "$3" "$4" "$gateway")
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

# --- A whole disk.

# data_partition: where it begins, in bytes: the one of that name, or the last.
data_partition() {
	sfdisk --dump "$target" 2>/dev/null | awk '
		/^sector-size:/ { sector = $2 }
		/start=/ {
			start = $0; sub(/.*start= */, "", start); sub(/,.*/, "", start)
			if (!named) at = start
			if (/name="data"/) named = 1
		}
		END { if (at == "") exit 1; printf "%.0f\n", at * (sector ? sector : 512) }'
}

# ext4 COMMAND: debugfs on the data partition, which has neither to be mounted nor root. It says that
# all went well whatever happens, so nobody believes it.
ext4() { (cd "$work" && debugfs "$@" "$target?offset=$at" 2>/dev/null); }

# on_disk NAME: a file of the data partition's folder etc, which is the gateway's /etc/ferrule.
on_disk() { ext4 -R "cat /etc/$1"; }

# to_disk NAME: puts $work/NAME there, unless it is there.
to_disk() {
	[ "$(digest <"$work/$1")" != "$(on_disk "$1" | digest)" ] || return 0
	# Before the first write: what runs from this disk must not be written to, and what ran from it may
	# have left its journal.
	check_target
	e2fsck -p "$target?offset=$at" >/dev/null 2>&1 || [ $? = 1 ] || die "the data partition of $target is damaged" 'take another card'
	printf 'rm /etc/%s\nwrite %s /etc/%s\nsif /etc/%s mode 0100644\nsif /etc/%s uid 0\nsif /etc/%s gid 0\n' "$1" "$1" "$1" "$1" "$1" "$1" >"$work/commands"
	ext4 -w -f commands >/dev/null || true
	sync "$target"
	[ "$(digest <"$work/$1")" = "$(on_disk "$1" | digest)" ] || die "$1 was not written to $target" 'is its data partition full? Try another card'
	say files "$1 written"
}

# check_target: that nobody's disk is lost by a slip.
check_target() {
	size=$(stat -L -c %s "$image")
	[ "$(realpath "$image")" != "$(realpath "$target")" ] || die 'the image would be written to itself' 'give --to the disk'
	if [ -b "$target" ]; then
		target=$(realpath "$target")
		name=${target##*/}
		room=$(blockdev --getsize64 "$target") || die "the size of $target cannot be read" 'may this user read the disk?'
		[ "$room" -ge "$size" ] || die "$target has $room bytes, and the image $size" 'take a larger card'
		[ -n "$force" ] || [ ! -e "/sys/class/block/$name/partition" ] || die "$target is a partition" 'give the whole disk, or --force'
		[ -n "$force" ] || ! in_use "$target" || die "$target is in use: it is mounted, or something on it" 'unmount it, if it is the one that you mean, or --force'
		case $(cat "/sys/class/block/$name/removable" 2>/dev/null):$name in
		1:* | *:mmcblk*) ;;
		*) [ -n "$force" ] || die "$target cannot be taken out: it may be this machine's own disk" 'check the name; if it is the one that you mean, --force' ;;
		esac
	elif [ -e "$target" ] && [ ! -f "$target" ]; then
		die "$target is neither a disk nor a file" 'give --to the disk'
	elif [ ! -d "$(dirname "$target")" ]; then
		die "there is no folder $(dirname "$target")" 'check the path'
	else
		case $target in
		/dev/*) die "there is no disk $target" 'is the card in? see: lsblk' ;;
		esac
	fi
}

# in_use DISK: it, or a partition of it, is mounted, swapped to, or held by another (LVM, RAID, LUKS).
in_use() {
	for block in "$1" "$1"[0-9]* "$1"p[0-9]*; do
		[ -b "$block" ] || continue
		for holder in "/sys/class/block/${block##*/}/holders"/*; do
			[ ! -e "$holder" ] || return 0
		done
		number=$(printf '%d:%d' "0x$(stat -c %t "$block")" "0x$(stat -c %T "$block")")
		awk -v number="$number" '$3 == number { found = 1 } END { exit !found }' /proc/self/mountinfo && return 0
		awk -v block="$block" 'NR > 1 && $1 == block { found = 1 } END { exit !found }' /proc/swaps && return 0
	done
	return 1
}

# written: the digest of so much of the disk as the image has, from the medium where that can be.
written() {
	how=count_bytes
	[ ! -b "$target" ] || { blockdev --flushbufs "$target" && how=direct,count_bytes; }
	dd if="$target" iflag="$how" count="$size" bs=4M status=none | digest
}

# mebibyte: the table of partitions; everything in an image comes after it.
mebibyte=1048576

# flash: writes the image, the table of partitions last, and reads it back. Until the table is
# there the disk is empty: nothing on it boots, and the next run begins anew.
flash() {
	say flash "$image to $target, $((size / mebibyte)) MiB"
	progress=none
	[ ! -t 2 ] || progress=progress
	head -c "$mebibyte" /dev/zero | dd of="$target" bs=1M conv=notrunc,fsync status=none || die "$target cannot be written" 'may this user write to it? is the card locked?'
	dd if="$image" of="$target" bs=1M skip=1 seek=1 conv=notrunc,fsync status="$progress" || die "writing $target failed" 'try another card'
	[ -b "$target" ] || truncate -s "$size" "$target"
	dd if="$image" of="$target" bs=1M count=1 conv=notrunc,fsync status=none || die "writing $target failed" 'try another card'
	sync "$target"
	say flash 'reading it back'
	[ "$(written)" = "$image_sha256" ] || die "$target does not hold what was written to it" 'the card is worn out or a counterfeit: take another one'
	say flash "written and read back, sha256 $image_sha256"
}

# issued: what the station's records say of the device's certificate, "" while there is none. A sealed
# one was not shown by the device yet.
issued() {
	"$factory" records "$ca" | awk -v own="{\"device\":\"$device\"," 'index($0, own) == 1 && !/"sealed":true/ { last = $0 } END { if (last != "") print last }'
}

# member NAME: a text of the record in $work/issued.
member() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$work/issued"; }

# held: the disk holds this image with the files of this device.
held() { [ -e "$target" ] && at=$(data_partition) && [ "$(on_disk provisioned)" = "$mark" ]; }

# fill: the files of the device. A token that was not used for long is replaced.
fill() {
	at=$(data_partition) || die "$image has no table of partitions" 'is it an image of docs/image.md?'
	[ -z "$(find "$records.tokens/$device" -mmin +"$((valid * 50))" 2>/dev/null)" ] || rm "$records.tokens/$device"
	[ -s "$records.tokens/$device" ] || new_token --valid "${valid}h"
	cp "$records.tokens/$device" "$work/token"
	cp "${roots:-$ca/root.crt}" "$work/root.crt"
	echo "$mark" >"$work/provisioned"
	for name in root.crt ferrule.toml token provisioned; do to_disk "$name"; done
	[ ! -b "$target" ] || blockdev --flushbufs "$target"
	say files "$device may be started"
}

# provision_disk: image, files, first start, record. What the disk is for lies on it, in a file that is
# written last: a disk that was exchanged is noticed.
provision_disk() {
	target=${gateway#image:}
	case $target in /*) ;; *) target=$PWD/$target ;; esac # debugfs runs elsewhere
	for program in sfdisk debugfs e2fsck; do
		command -v "$program" >/dev/null || die "$program is missing on this machine" 'install the packages fdisk and e2fsprogs'
	done
	[ -f "$image" ] || die "there is no image $image" 'make it: make image; or give --image'
	image_sha256=$(digest <"$image")
	mark="$device $image_sha256"
	issued >"$work/issued"
	if held; then
		say flash "$target holds it already"
		# What has enrolled needs nothing, and may be running from it.
		if [ ! -s "$work/issued" ]; then fill; fi
	elif [ ! -s "$work/issued" ] || [ -e "$target" ]; then
		check_target
		flash
		fill
	fi
	waited=0
	while [ ! -s "$work/issued" ] && [ "$waited" -lt "$wait" ]; do
		sleep 2
		waited=$((waited + 2))
		issued >"$work/issued"
	done
	if [ ! -s "$work/issued" ]; then
		[ "$wait" = 0 ] || die "$device did not enroll within $wait seconds" 'look at its console and at the log of the registrar; then run this again'
		say next "start the gateway with it; when it has enrolled, run this again for the record"
		return
	fi
	say enroll "enrolled as $device"
	write_record "$(member ek)" "$(member serial)" "$(member certificate_sha256)" "\"image_sha256\":\"$image_sha256\""
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
	image:*)
		root=''
		case $wait$valid in *[!0-9]*) die '--wait and --valid are whole numbers' 'run: provision.sh --help' ;; esac
		[ -n "$image" ] || die '--image is missing' 'run: provision.sh --help'
		[ -z "$collect$deliver" ] || die 'a disk needs a registrar that it reaches at its first start' 'leave --collect and --deliver away'
		;;
	*) die "--gateway $gateway is neither local:ROOT nor ssh:USER@HOST nor image:DEVICE" 'run: provision.sh --help' ;;
	esac
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	# An earlier run that was cut may still have programs at work on this gateway.
	locks=${collect:-$records.tokens}/.locks
	mkdir -p "$locks" && chmod 700 "${locks%/*}"
	exec 8>"$locks/$device"
	flock -w 60 8 || die "another run is at $device" 'wait until it ends'

	sed -e "s|@ROOT@|$root|g" -e "s|@TPM@|$tpm|g" -e "s|@REGISTRAR@|${registrar:-https://registrar.invalid}|g" -e "s|@BROKER@|$broker|g" "$config" >"$work/ferrule.toml"
	case $gateway in
	image:*)
		provision_disk
		return
		;;
	esac
	[ -n "$ferrule" ] || die '--ferrule is missing' 'run: provision.sh --help'
	there true || die "the gateway $gateway cannot be reached" 'check the address, and that this user may log in without a password'
	install_file 755 "$ferrule" "$root/usr/bin/ferrule" binary
	install_file 644 "${roots:-$ca/root.crt}" "$root/etc/ferrule/root.crt" roots
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
