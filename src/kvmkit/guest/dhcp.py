"""What a guest does with an address that udhcpc, busybox's DHCP client, has got for it."""

from __future__ import annotations

USE_LEASE = """\
#!/bin/sh
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound | renew)
	ip addr replace $ip/${mask:-24} dev $interface
	[ -z "$mtu" ] || ip link set $interface mtu $mtu
	for gateway in $router; do ip route replace default via $gateway dev $interface; break; done
	[ -z "$dns" ] || {
		[ -z "$domain" ] || echo "search $domain"
		for server in $dns; do echo "nameserver $server"; done
	} > /etc/resolv.conf ;;
esac
"""
"""udhcpc tells it by its environment."""
