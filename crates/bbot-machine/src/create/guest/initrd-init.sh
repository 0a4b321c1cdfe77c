#!/bin/busybox sh
# First process of the initial RAM disk: load the few drivers the disk needs, mount it, go there.
# /modules lists the drivers in the order of their dependencies.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

stuck() {
	echo "bbot: $1" >/dev/console
	# The kernel reboots (and QEMU ends) when its first process ends: a machine that cannot start is gone at once.
	exit 1
}

root=/dev/vda init=/sbin/init mode=rw
for word in $(cat /proc/cmdline); do
	case $word in
	root=*) root=${word#root=} ;;
	init=*) init=${word#init=} ;;
	ro) mode=ro ;;
	esac
done

while read -r module; do
	insmod "/lib/$module" || echo "bbot: $module cannot be loaded" >/dev/console
done </modules

waited=0
while ! [ -b "$root" ]; do
	[ $waited -lt 100 ] || stuck "there is no disk $root"
	waited=$((waited + 1))
	sleep 0.05
done

mount -t ext4 -o "$mode,noatime" "$root" /root || stuck "$root cannot be mounted"
for dir in proc sys dev; do
	mount --move /$dir /root/$dir
done
exec switch_root /root "$init"
