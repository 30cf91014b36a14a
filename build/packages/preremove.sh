#!/bin/sh
# Before the files go: dpkg (remove, upgrade …), rpm (0: the last one goes, 1: upgrade), apk, opkg. While
# an upgrade is under way the agent runs on.
set -e

case ${1:-remove} in
upgrade | failed-upgrade | deconfigure | 1) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl stop ferrule.service ferrule-reboot.path ferrule-revert.service || true
elif command -v rc-service >/dev/null 2>&1; then
	rc-service --ifstarted ferrule stop || true
	rc-update del ferrule default || true
elif [ -e /etc/rc.common ] && [ -x /etc/init.d/ferrule ]; then
	/etc/init.d/ferrule stop || true
	/etc/init.d/ferrule disable || true
fi
if [ "${1:-}" = 0 ] && command -v systemctl >/dev/null 2>&1; then
	systemctl disable --quiet ferrule.service ferrule-reboot.path || true
fi
exit 0
