"""autopkgtest-virt-qemu, Debian's throw-away virtual machine for a test: the peer that isolates.

`boot` is what any Debian with systemd takes in the same QEMU, until it asks for a user's name.

One cycle is what a test run pays for its machine: `open` (an overlay over the image, boot, log in, a root shell), the command
`true` in it, `quit`. The image is made as its manual says: mmdebstrap, and the set-up script that comes with it.
"""

import os
import re
import shutil
import subprocess
import time
import urllib.parse

PROGRAMS = {"autopkgtest-virt-qemu": "autopkgtest", "mmdebstrap": "mmdebstrap", "qemu-system-x86_64": "qemu-system-x86",
            "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs"}
# The kernel of its kind that has the 9p file system, by which it shares a folder with the machine.
PACKAGES = ("linux-image-amd64,systemd-sysv,udev,dbus,python3,iproute2,initramfs-tools,ifupdown,isc-dhcp-client,ca-certificates")
# These of its waits are too short for a machine that is translated.
LONGER = [(r"timeout\(10,", "timeout(120,"), (r"execute_timeout\(None, 5,", "execute_timeout(None, 60,")]
# It takes KVM where there is /dev/kvm, whether a guest runs there or not.
WITHOUT_KVM = """#!/bin/sh
for word; do
  shift
  [ "$word" = -enable-kvm ] || set -- "$@" "$word"
done
exec qemu-system-x86_64 "$@"
"""


class Autopkgtest:
    def __init__(self, cache, is_kvm):
        self.folder = os.path.join(cache, "autopkgtest")
        self.is_kvm = is_kvm
        if not os.path.exists(os.path.join(self.folder, "disk.qcow2")):
            self.make()
        with open(shutil.which("autopkgtest-virt-qemu"), encoding="utf-8") as file:
            text = file.read()
        for short, long in LONGER:
            text = re.sub(short, long, text)
        for name, content in [("virt-qemu", text), ("qemu", WITHOUT_KVM)]:
            with open(self.path(name), "w", encoding="utf-8") as file:
                file.write(content)
            os.chmod(self.path(name), 0o755)

    def path(self, name):
        return os.path.join(self.folder, name)

    def make(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        root, raw = self.path("root"), self.path("disk.raw")
        run = lambda *command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=open(self.path("log"), "ab"))
        run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "--skip=output/dev",
            "--customize-hook=/usr/share/autopkgtest/setup-commands/setup-testbed", '--customize-hook=chroot "$1" passwd -d root',
            "bookworm", root)
        for name, link in [("vmlinuz", "vmlinuz-"), ("initrd", "initrd.img-")]:
            found = next(file for file in os.listdir(os.path.join(root, "boot")) if file.startswith(link))
            shutil.copy(os.path.join(root, "boot", found), self.path(name))
        with open(os.path.join(root, "etc/fstab"), "w", encoding="ascii") as file:
            file.write("/dev/vda / ext4 defaults 0 0\n")
        run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, raw, "3G")
        with open(self.path("machine.conf"), "w", encoding="ascii") as file:
            file.write(f'[machine]\n  kernel = "{self.path("vmlinuz")}"\n  initrd = "{self.path("initrd")}"\n'
                       '  append = "root=/dev/vda rw console=ttyS0 net.ifnames=0"\n')
        shutil.rmtree(root)
        # Last: it says that all is there.
        run("qemu-img", "convert", "-O", "qcow2", raw, self.path("disk.qcow2.new"))
        os.unlink(raw)
        os.rename(self.path("disk.qcow2.new"), self.path("disk.qcow2"))

    def boot(self):
        """Seconds of a cold start of that Debian, from QEMU's start to `login:`."""
        accelerator = ["-accel", "kvm", "-cpu", "host"] if self.is_kvm else ["-accel", "tcg", "-cpu", "max"]
        command = ["qemu-system-x86_64", *accelerator, "-M", "q35", "-m", "1024", "-nodefaults", "-display", "none", "-serial", "stdio",
                   "-kernel", self.path("vmlinuz"), "-initrd", self.path("initrd"),
                   "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0",
                   "-drive", f"file={self.path('disk.qcow2')},if=virtio,snapshot=on"]
        began = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as machine:
            seen = b""
            while b" login:" not in seen:
                more = os.read(machine.stdout.fileno(), 65536)
                if not more:
                    return None
                seen = seen[-100:] + more
            took = time.monotonic() - began
            machine.kill()
        return took

    def cycle(self):
        """Seconds of one cycle; None where it failed: in one of eight it waits for a prompt that it has lost (more patience than
        its 5 s does not help)."""
        command = [self.path("virt-qemu"), "--qemu-architecture", "x86_64", "--ram-size", "1024", "--cpus", "1",
                   "--timeout-reboot", "240", "--qemu-options",
                   ("" if self.is_kvm else "-accel tcg -cpu max ") + f"-readconfig {self.path('machine.conf')}"]
        if not self.is_kvm:
            command += ["-q", self.path("qemu")]
        began = time.monotonic()
        with open(self.path("log"), "ab") as log, \
             subprocess.Popen(command + [self.path("disk.qcow2")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                              text=True, bufsize=1) as testbed:
            def ask(word):
                testbed.stdin.write(word + "\n")
                return testbed.stdout.readline().split()
            if testbed.stdout.readline().strip() != "ok" or ask("open")[:1] != ["ok"]:
                testbed.kill()
                return None
            into = [urllib.parse.unquote(word) for word in ask("print-execute-command")[1].split(",")]
            subprocess.run(into + ["true"], check=True, stdin=subprocess.DEVNULL)
            ask("quit")
            testbed.stdin.close()
            testbed.wait()
        return time.monotonic() - began
