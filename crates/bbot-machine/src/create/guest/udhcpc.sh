#!/bin/busybox sh
# What udhcpc calls with its findings: sets the address, and on cards behind the first the way to the internet.
case $1 in
deconfig)
	busybox ip addr flush dev "$interface"
	busybox ip link set "$interface" up
	;;
bound | renew)
	busybox ip addr replace "$ip/${mask:-24}" dev "$interface"
	[ "$interface" != eth0 ] || exit 0
	for gateway in $router; do
		busybox ip route replace default via "$gateway" dev "$interface"
		break
	done
	[ -z "$dns" ] || for server in $dns; do
		echo "nameserver $server"
	done >/etc/resolv.conf
	;;
esac
