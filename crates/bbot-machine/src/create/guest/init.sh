#!/bin/busybox sh
# First process of a build machine, virtual or container: brings up the network and follows bootstrap protocol 1. No service
# manager: a machine lives for one bootstrap or one build, and what it needs is here to be read.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=dumb
exec </dev/null >/dev/console 2>&1

# Set by whoever made the container, if this is one.
container=${container:-}
agent=196.254.111.222
worker=/usr/lib/bbot/bbot-worker

say() {
	echo "bbot: $*"
}

# Everything that runs is told to end, then made to; what is written reaches the disk.
power_off() {
	say "power off"
	kill -TERM -1
	busybox sleep 0.1
	kill -KILL -1
	busybox sync
	[ -n "$container" ] || busybox mount -o remount,ro /
	busybox poweroff -f
}

# The ACPI power button is an input device; it has nothing else to say, so its first event is the order to end.
watch_power_button() {
	for dir in /sys/class/input/event*; do
		[ "$(busybox cat "$dir/device/name" 2>/dev/null)" = "Power Button" ] || continue
		(
			busybox dd "if=/dev/input/${dir##*/}" of=/dev/null bs=24 count=1 2>/dev/null && power_off
		) &
	done
}

mount_all() {
	busybox mount -t proc -o nosuid,noexec,nodev proc /proc 2>/dev/null
	busybox mount -t sysfs -o nosuid,noexec,nodev sysfs /sys 2>/dev/null
	busybox mount -t devtmpfs -o nosuid dev /dev 2>/dev/null
	busybox mkdir -p /dev/pts /dev/shm
	busybox mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
	busybox mount -t tmpfs -o nosuid,nodev,mode=1777 shm /dev/shm
	busybox mount -t tmpfs -o nosuid,nodev,mode=755 run /run
	busybox mkdir -p /run/lock
	busybox ln -sf /proc/self/fd /dev/fd
	busybox ln -sf /proc/self/fd/0 /dev/stdin
	busybox ln -sf /proc/self/fd/1 /dev/stdout
	busybox ln -sf /proc/self/fd/2 /dev/stderr
	# /tmp stays on the disk, which is thrown away with the machine: builds may need more room than there is memory.
	busybox chmod 1777 /tmp
}

# Sets the address that the agent has told a container on its wire, as address/mask: DHCP's packet sockets take the
# kernel a tenth of a second.
set_address() {
	[ -n "$container" ] && [ -n "${BBOT_ADDRESS:-}" ] &&
		busybox ifconfig eth0 "${BBOT_ADDRESS%/*}" netmask "${BBOT_ADDRESS#*/}" up
}

network() {
	# The loopback of a container is up.
	[ -n "$container" ] || busybox ip link set lo up
	# The wire to the agent: always the first card.
	set_address || until busybox udhcpc -i eth0 -f -q -n -t 4 -T 1 -s /usr/lib/bbot/udhcpc >/dev/null 2>&1; do
		say "no answer to DHCP on eth0, asking again"
		busybox sleep 1
	done
	# A second card leads to the internet, when this machine is given one. Nothing waits for it but the build.
	if [ -e /sys/class/net/eth1 ]; then
		busybox udhcpc -i eth1 -f -n -t 10 -T 1 -q -s /usr/lib/bbot/udhcpc >/dev/null 2>&1 ||
			say "no answer to DHCP on eth1: there is no way to the internet"
	fi
}

# A shell hears a signal only while it waits.
run() {
	"$@" &
	wait $!
}

bootstrap() {
	until busybox tftp -g -b 1468 -r bootstrap -l /run/bootstrap $agent; do
		say "no bootstrap script from $agent, asking again"
		busybox sleep 1
	done
	say "bootstrap"
	run /bin/sh /run/bootstrap $agent || say "bootstrap failed, exit code $?"
}

if [ -n "$container" ]; then
	# The file systems are mounted, and the order to end is a signal.
	trap power_off TERM
else
	mount_all
	watch_power_button
fi
# Who made a container has given it its name.
[ -n "$container" ] || busybox hostname -F /etc/hostname
network
read -r uptime _ </proc/uptime
say "network is up after $uptime s"

cd /build || cd /
if [ -x $worker ]; then
	say "worker"
	run $worker --startup || say "the worker ended with exit code $?"
else
	bootstrap
fi

# The agent ends the machine: by the power button or the signal after a bootstrap, by force after a build. Orphans end here meanwhile.
while :; do
	wait
	busybox sleep 3600 &
done
