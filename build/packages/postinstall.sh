#!/bin/sh
# After the files are there. Called by dpkg (configure OLD-VERSION), rpm (1: first, 2: upgrade), apk and
# opkg. Safe to run again; nothing here fails because a service manager or udev does not run, as when an
# image is being made.
set -e

first=yes
case ${1:-} in
abort-upgrade | abort-remove | abort-deconfigure) exit 0 ;;
2) first=no ;;
*) [ -z "${2:-}" ] || first=no ;; # dpkg, apk: the old version
esac
have() { command -v "$1" >/dev/null 2>&1; }

# --- The user, in the groups of TPM and serial ports.
if have systemd-sysusers && [ -e /usr/lib/sysusers.d/ferrule.conf ]; then
	systemd-sysusers ferrule.conf
else
	for group in tss dialout ferrule; do
		grep -q "^$group:" /etc/group || { have groupadd && groupadd --system "$group"; } || addgroup -S "$group"
	done
	if ! grep -q '^ferrule:' /etc/passwd; then
		if have useradd; then
			useradd --system --gid ferrule --no-create-home --home-dir /var/lib/ferrule --shell /usr/sbin/nologin --comment 'Ferrule agent' ferrule
		else
			adduser -S -D -H -G ferrule -h /var/lib/ferrule -s /sbin/nologin -g 'Ferrule agent' ferrule
		fi
	fi
	for group in tss dialout; do
		if have usermod; then usermod --append --groups "$group" ferrule; else addgroup ferrule "$group"; fi
	done
fi

# --- Its folders. What lies in them is not touched.
for folder in /etc/ferrule:root:0770 /var/lib/ferrule:ferrule:0700; do
	path=${folder%%:*} rest=${folder#*:}
	mkdir -p "$path"
	chown "${rest%%:*}:ferrule" "$path"
	chmod "${rest#*:}" "$path"
done

# --- Devices that are there already get their groups.
if [ -e /run/udev/control ] && have udevadm; then
	udevadm control --reload || true
	udevadm trigger --subsystem-match=tpm --subsystem-match=tpmrm --subsystem-match=block || true
fi

# --- The service. Who has disabled it finds it disabled after an upgrade.
if have deb-systemd-helper; then
	for unit in ferrule.service ferrule-reboot.path; do
		deb-systemd-helper unmask "$unit" >/dev/null || true
		if deb-systemd-helper --quiet was-enabled "$unit"; then
			deb-systemd-helper enable "$unit" >/dev/null || true
		else
			deb-systemd-helper update-state "$unit" >/dev/null || true
		fi
	done
elif have systemctl; then
	[ $first = no ] || systemctl enable --quiet ferrule.service ferrule-reboot.path || true
elif have rc-update; then
	[ $first = no ] || rc-update add ferrule default || true
elif [ -z "${IPKG_INSTROOT:-}" ] && [ -e /etc/rc.common ]; then
	[ $first = no ] || /etc/init.d/ferrule enable || true
fi
if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload || true
	systemd-tmpfiles --create ferrule.conf || true
	systemctl start ferrule-reboot.path || true
	# One that was stopped by hand stays stopped.
	if [ $first = yes ]; then systemctl start --no-block ferrule.service || true; else systemctl try-restart --no-block ferrule.service || true; fi
fi
exit 0
