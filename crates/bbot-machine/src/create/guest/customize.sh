# Runs in mmdebstrap, outside of the new system but with its root's rights: in the user namespace of an ordinary
# user as well as for root. $1 is the new system. Descriptor 9 is the caller's directory, which the user of that
# namespace could not reach by its name: to-add.tar, the files to add; handed-out.tar, what the caller needs to see; disk.img.
# Every command is shown: the last ones are what a failure is explained by.
set -eux
root=$1

image=$(APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache depends "$BBOT_KERNEL" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
[ -n "$image" ] || { echo "E: the package $BBOT_KERNEL names no kernel" >&2; exit 1; }
mkdir "$root/tmp/kernel"
# apt drops its rights for a download, where it can: let it write here.
chmod 777 "$root/tmp/kernel"
(cd "$root/tmp/kernel" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q download "$image")
# Unpacked, not installed: its scripts would make an initial RAM disk that nobody boots.
dpkg-deb -x "$root"/tmp/kernel/*.deb "$root/tmp/kernel/root"
# Where /lib is a link, only the contents may move.
mkdir -p "$root/usr/lib/modules"
for modules in "$root"/tmp/kernel/root/lib/modules "$root"/tmp/kernel/root/usr/lib/modules; do
	[ ! -d "$modules" ] || mv "$modules"/* "$root/usr/lib/modules/"
done
version=$(ls "$root/usr/lib/modules")
find "$root/usr/lib/modules/$version" -name '*.ko.xz' -exec xz -d {} +
find "$root/usr/lib/modules/$version" -name '*.ko.zst' -exec zstd -q -d --rm {} +
chroot "$root" depmod "$version"

tar -C "$root" -xf /proc/self/fd/9/to-add.tar
chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/sh build
echo build >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost build\n::1\tlocalhost\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 noatime 0 1\n' >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"

mkdir "$root/tmp/out"
cp "$root"/tmp/kernel/root/boot/vmlinuz-* "$root/tmp/out/vmlinuz"
cp "$root/bin/busybox" "$root/tmp/out/busybox"
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' >"$root/tmp/out/packages"
echo "$image" >>"$root/tmp/out/packages"
tar -C "$root/tmp/out" -c vmlinuz busybox packages -C "$root/usr/lib/modules" "$version" >/proc/self/fd/9/handed-out.tar
rm -rf "$root/tmp/out" "$root/tmp/kernel"

# What is of use only while a system is installed.
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/apt "$root"/var/log/dpkg.log "$root/etc/apt/apt.conf.d/99mmdebstrap"

# The new system without what is mounted into it now: a bind mount shows the directory alone.
export root
unshare --mount sh -eux -c '
	mount --make-rprivate /
	mkdir -p "$root/run/bare"
	mount --bind "$root" "$root/run/bare"
	mke2fs -q -F -t ext4 -L bbot -m 0 -J size=64 -E lazy_itable_init=1,lazy_journal_init=1 -d "$root/run/bare" /proc/self/fd/9/disk.img
'
