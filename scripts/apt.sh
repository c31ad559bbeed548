#!/bin/sh
# Install packages: apt.sh PACKAGE... Another apt is waited for, and one that was interrupted is brought to its end.
set -eu

export DEBIAN_FRONTEND=noninteractive
wait_seconds=600

install() {
	apt-get -o "DPkg::Lock::Timeout=$wait_seconds" install -y --no-install-recommends "$@"
}

# The lock on the lists has no such option.
update() {
	waited=0
	while :; do
		if said=$(LC_ALL=C apt-get update 2>&1); then
			printf '%s\n' "$said"
			return 0
		fi
		printf '%s\n' "$said"
		case $said in
		*"Could not get lock"*) [ "$waited" -lt "$wait_seconds" ] || return 1 ;;
		*) return 1 ;;
		esac
		sleep 2
		waited=$((waited + 2))
	done
}

# The lists may be missing or too old to be of use: look again then.
install "$@" || {
	dpkg --configure -a || :
	update && install "$@"
}
