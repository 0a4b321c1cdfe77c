"""What the benchmarks of whole builds share: a controller, agents, machines, and a client that times a build.

Not a command by itself: bench/latency and bench/throughput import it.
"""

import base64
import ctypes
import fcntl
import hashlib
import http.client
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import trivial

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = "x86_64-linux-gnu"

# Seconds after which a connection that was not used is made anew.
IDLE = 3


def fail(why):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {why}")


def progress(what):
    print(what, file=sys.stderr, flush=True)


def install(programs):
    """{program: Debian package}"""
    missing = sorted({package for program, package in programs.items()
                      if not shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")})
    if not missing:
        return
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    progress("installing " + " ".join(missing))
    subprocess.run(sudo + ["apt-get", "update", "-q"], check=True, stdout=sys.stderr)
    environment = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    subprocess.run(sudo + environment + ["apt-get", "install", "-q", "-y", "--no-install-recommends"] + missing,
                   check=True, stdout=sys.stderr)


class Programs:
    """Release builds of all that is ours, and the trivial package."""

    def __init__(self, package):
        subprocess.run(["cargo", "build", "--quiet", "--release", "-p", "bbot", "-p", "bbot-agent", "-p", "bbot-controller"], check=True, cwd=TOP)
        worker = subprocess.run(["cargo", "xtask", "worker"], check=True, cwd=TOP, capture_output=True, text=True)
        metadata = subprocess.run(["cargo", "metadata", "--format-version=1", "--no-deps"],
                                  check=True, cwd=TOP, capture_output=True)
        self.target = json.loads(metadata.stdout)["target_directory"]
        self.folder = os.path.join(self.target, "release")
        shutil.copy2(worker.stdout.split()[-1], os.path.join(self.folder, "bbot-worker"))
        # What is worth keeping from run to run: machines.
        self.cache = os.path.join(self.target, "bench")
        os.makedirs(self.cache, exist_ok=True)
        install({"cc": "gcc"})
        self.stamp, self.archive = trivial.stamp(self.cache), trivial.archive(package, self.cache)

    def __getitem__(self, name):
        return os.path.join(self.folder, name)


class Processes:
    """Ends what it has started, the last first."""

    def __init__(self):
        self.all = []

    def start(self, command, log, **more):
        with open(log, "ab") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=more.pop("stdout", out), stderr=out, **more)
        self.all.append(process)
        return process

    def end(self, process, within=90):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(within)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.all.remove(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(list(self.all)):
            self.end(process)


class Machines:
    """A virtual machine and a container, made once. They are on btrfs where that can be had (root): a copy is a
    snapshot then, which is what one uses a build host with; elsewhere each copy is one of all bytes."""

    def __init__(self, programs, kinds):
        self.home = os.path.join(programs.cache, "home")
        self.volume = os.path.join(programs.cache, "volume")
        self.is_btrfs = False
        for folder in [self.home, self.volume]:
            os.makedirs(folder, exist_ok=True)
        if os.geteuid() == 0:
            self.mount(os.path.join(programs.cache, "btrfs.img"))
        for kind in kinds:
            for root in {"kvm": ["cold", "warm"], "nspawn": ["nspawn", "nspawn-prepared"]}[kind]:
                self.make(programs, kind, self.root(root))

    def root(self, name):
        """An agent's --machines."""
        return os.path.join(self.volume, name)

    def mount(self, image):
        if not os.path.exists(image):
            install({"mkfs.btrfs": "btrfs-progs"})
            with open(image + ".new", "wb") as file:
                file.truncate(24 << 30)
            subprocess.run(["mkfs.btrfs", "-q", image + ".new"], check=True, stdout=subprocess.DEVNULL)
            os.rename(image + ".new", image)
        # Two loop devices over one file would spoil it.
        self.lock = open(image, "rb")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another benchmark uses {image}")
        # In a mount namespace of our own: it is gone with us, however we end.
        if ctypes.CDLL(None, use_errno=True).unshare(0x20000) != 0:
            return
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        mounted = subprocess.run(["mount", "-o", "loop", image, self.volume], capture_output=True)
        self.is_btrfs = mounted.returncode == 0
        if not self.is_btrfs:
            progress("no btrfs can be mounted: machines are copied byte by byte")

    def make(self, programs, kind, root):
        os.makedirs(root, exist_ok=True)
        subprocess.run([programs["bbot"], "--home", self.home, "machine", "create", "debian-12", "--type", kind,
                        "--machines", root, "--if-missing"], check=True, stdout=sys.stderr)


def machine_stub(root, name):
    """A machine that is there to be offered, for agents that start none."""
    machine = os.path.join(root, "default", name)
    revision = os.path.join(machine, f"{name}-1.1")
    os.makedirs(revision)
    with open(os.path.join(revision, "manifest"), "w", encoding="ascii") as file:
        file.write(f": 1\nid: {name}-1\nname: {name}\nsummary: Stands in for a machine\ntype: kvm\nmac: de:ad:be:ef:de:ad\n")
    with open(os.path.join(revision, "disk.img"), "wb") as file:
        file.truncate(1 << 20)
    os.symlink(f"{name}-1.1", os.path.join(machine, f"{name}-1"))


class Controller:
    """A controller of ours, and what one asks it."""

    def __init__(self, programs, processes, folder, machine):
        os.makedirs(folder, exist_ok=True)
        buildtab = os.path.join(folder, "buildtab")
        with open(buildtab, "w", encoding="ascii") as file:
            file.write(f"{machine} bench {TARGET}\n")
        self.data = os.path.join(folder, "controller")
        self.process = processes.start(
            [programs["bbot-controller"], "--listen", "127.0.0.1:0", "--data", self.data, "--buildtab", buildtab],
            os.path.join(folder, "controller.log"), stdout=subprocess.PIPE)
        words = self.process.stdout.readline().decode().split()
        self.url = next((word for word in words if word.startswith("http")), None) or fail("the controller does not start")
        self.address = urllib.parse.urlsplit(self.url).netloc
        with open(os.path.join(self.data, "token"), encoding="ascii") as file:
            self.token = file.read().strip()
        self.connection, self.used = http.client.HTTPConnection(self.address), 0
        self.archive = self.put_archive(programs.archive)
        self.count = 0

    def call(self, method, path, body=None, is_json=True):
        headers = {"Authorization": f"Bearer {self.token}"}
        if is_json and body is not None:
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if time.monotonic() - self.used > IDLE:
            # The server may have closed it by now.
            self.connection.close()
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        text = response.read()
        self.used = time.monotonic()
        if response.status >= 300:
            fail(f"{method} {path}: {response.status} {text[:300]}")
        return json.loads(text) if is_json else text

    def put_archive(self, packed):
        sha256 = hashlib.sha256(packed).hexdigest()
        self.call("PUT", f"/api/v1/archives/{sha256}", packed, is_json=False)
        return sha256

    def submit(self):
        """Queues a trivial build; its id."""
        self.count += 1
        answer = self.call("POST", "/api/v1/submissions",
                           {"name": "trivial", "version": f"1.{self.count}", "source": {"archive": self.archive}})
        return answer["builds"][0]["id"]

    def build(self, build):
        return self.call("GET", f"/api/v1/builds/{build}")

    def follow(self, build):
        """The events of its log's stream, each with the moment when it was here: (event, data, time)."""
        connection = http.client.HTTPConnection(self.address)
        connection.request("GET", f"/api/v1/builds/{build}/log?follow=1", headers={"Authorization": f"Bearer {self.token}"})
        response = connection.getresponse()
        if response.status != 200:
            fail(f"following build {build}: {response.status}")
        event, data = None, ""
        while line := response.readline():
            line = line.decode().rstrip("\r\n")
            if line.startswith("event:"):
                event = line[6:].strip()
            elif line.startswith("data:"):
                data += line[5:].strip()
            elif not line and event:
                yield event, json.loads(data), time.time()
                event, data = None, ""
        connection.close()

    def timed(self, expected, within=900):
        """One build, from the request that queues it until it has been read as built."""
        # As by Ctrl-C: what was started is ended.
        timer = threading.Timer(within, lambda: (progress(f"a build has not ended within {within} s"), os.kill(os.getpid(), signal.SIGINT)))
        timer.daemon = True
        timer.start()
        queued = time.time()
        build = self.submit()
        accepted = time.time()
        handed, ended, text, first_line = None, None, b"", None
        for event, data, at in self.follow(build):
            if event == "state" and data["state"] == "building" and handed is None:
                handed = at
            elif event == "log":
                text += base64.b64decode(data["bytes"])
                if first_line is None and b"bench began" in text:
                    first_line = at
            elif event == "end":
                ended = at
        record = self.build(build)
        readable = time.time()
        timer.cancel()
        if record["state"] != "built" or record["status"] != expected or ended is None:
            fail(f"build {build} is {record['state']} with {record['status']}:\n{text.decode(errors='replace')}")
        began = stamp(text, b"bench began")
        done = stamp(text, b"bench ended")
        if expected == "success" and (began is None or done is None):
            log = self.call("GET", f"/api/v1/builds/{build}/log", is_json=False)
            began, done = began or stamp(log, b"bench began"), done or stamp(log, b"bench ended")
        return {"queued": queued, "accepted": accepted, "handed": handed, "first_line": first_line, "began": began,
                "done": done, "ended": ended, "readable": readable, "id": build}


def stamp(text, what):
    for line in text.split(b"\n"):
        if what in line:
            return float(line.split()[-1])
    return None


class Agent:
    """An agent of ours, asking one controller."""

    def __init__(self, programs, processes, folder, controller, machines, arguments=()):
        os.makedirs(folder, exist_ok=True)
        tftp = os.path.join(folder, "tftp")
        subprocess.run([programs["bbot"], "--home", folder, "toolchain", "add", "--tftp", tftp], check=True, stdout=subprocess.DEVNULL)
        self.log = os.path.join(folder, "agent.log")
        self.state = os.path.join(folder, "state")
        command = [programs["bbot-agent"], "--machines", machines, "--tftp", tftp,
                   "--state", self.state, "--min-free-disk", "0", "--min-free-memory", "0", "--suspend-timeout", "0",
                   "--drain-timeout", "1", "--network", "none", *arguments, controller.url]
        self.process = processes.start(command, self.log)

    def warnings(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file if line.startswith(("warning:", "error:")) or '"level":"warn' in line or '"level":"error' in line]

    def machine(self):
        """The words that its QEMU was started with, if one runs."""
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    name, _, rest = file.read().partition("(")[2].rpartition(")")
                if not name.startswith("qemu-system") or int(rest.split()[1]) != self.process.pid:
                    continue
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")[:-1]
            except (OSError, ValueError):
                continue
            if words:
                return words
        return None


def is_booted(words):
    """Not one by which the agent tries what its host can do."""
    return words is not None and "-name" in words and "-incoming" not in words


def is_restored(words):
    return words is not None and "-incoming" in words


def warm_up(what, controller, agent, until=None, tries=20):
    """Builds until the machine is bootstrapped and, where one waits for that, saved; the words of the last machine."""
    for _ in range(tries):
        seen, stop = [], threading.Event()

        def look():
            while not stop.is_set() and not seen:
                words = agent.machine()
                if until(words):
                    seen.append(words)
                time.sleep(0.005)

        thread = threading.Thread(target=look)
        if until:
            thread.start()
        controller.timed("success")
        stop.set()
        if not until:
            return None
        thread.join()
        if seen:
            return seen[0]
        time.sleep(3)
    fail(f"{what}: not within {tries} builds: {agent.warnings()}")


def wait_until(what, within, condition, pause=0.2):
    begin = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - begin > within:
            fail(f"{what}: not within {within} s")
        time.sleep(pause)
    return found


def cpu(pid):
    """Seconds of processor time of a process, its ended threads included, by its own clock."""
    return time.clock_gettime(~pid << 3 | 2)


class Syncs:
    """Counts the disk syncs of running processes."""

    CALLS = "fsync,fdatasync,sync_file_range,syncfs,sync,msync"

    def __init__(self, pids, folder):
        install({"strace": "strace"})
        self.files = [os.path.join(folder, f"syncs-{pid}") for pid in pids]
        self.tracers = [subprocess.Popen(["strace", "-f", "-qq", "-e", f"trace={self.CALLS}", "-o", file, "-p", str(pid)],
                                         stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                        for file, pid in zip(self.files, pids)]
        for pid in pids:
            wait_until(f"strace has process {pid}", 20, lambda pid=pid: self.is_traced(pid), 0.05)

    @staticmethod
    def is_traced(pid):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status", encoding="ascii", errors="replace") as file:
                if "TracerPid:\t0\n" in file.read():
                    return False
        return True

    def stop(self):
        """How many there were, by process."""
        counts = []
        for tracer, file in zip(self.tracers, self.files):
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
            with open(file, encoding="utf-8", errors="replace") as lines:
                counts.append(sum("(" in line and "resumed" not in line for line in lines))
        return counts


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def quantile(values, part):
    """The value that this part of them does not exceed: of 50, p99 is the largest."""
    values = sorted(values)
    return values[min(len(values) - 1, max(0, -(-len(values) * part // 100) - 1))]
