#!/bin/sh
# After the files are gone: dpkg (remove, purge …), rpm (0, 1). State and configuration stay until a
# purge: with them goes the device's identity.
set -e

if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload || true
fi
if command -v deb-systemd-helper >/dev/null 2>&1; then
	case ${1:-} in
	remove) deb-systemd-helper mask ferrule.service ferrule-reboot.path >/dev/null || true ;;
	purge)
		deb-systemd-helper purge ferrule.service ferrule-reboot.path >/dev/null || true
		deb-systemd-helper unmask ferrule.service ferrule-reboot.path >/dev/null || true
		;;
	esac
fi
if [ "${1:-}" = purge ]; then
	rm -rf /var/lib/ferrule /etc/ferrule /run/ferrule
fi
exit 0
