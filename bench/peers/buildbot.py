"""Buildbot with one worker on this host: the peer without any isolation.

A build is one step, the program that ours run too (bench/stamp.c), told to write the time to a file. It is queued by the REST API; that it is done is told by a small
service in the master, which sends a datagram when the master says so to its own parts, after its database has it: asking the
REST API again and again would take the time of the one thread that is measured. It counts once the REST API shows it as well.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time

VERSION = "4.3.0"
BUILDERS = 4
# Seconds after which a connection that was not used is made anew.
IDLE = 3
MASTER = """
import socket
from buildbot.plugins import schedulers, steps, util, worker
from buildbot.util.service import BuildbotService
from twisted.internet import defer

class Observer(BuildbotService):
    name = "observer"

    @defer.inlineCallbacks
    def startService(self):
        yield super().startService()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.connect({observer!r})
        self.consumer = yield self.master.mq.startConsuming(self.seen, ("buildrequests", None, "complete"))

    def seen(self, key, message):
        self.socket.send(str(message["buildrequestid"]).encode())

builders = ["b%d" % n for n in range({builders})]
command = [{stamp!r}, util.Interpolate("{stamps}/%(prop:tag)s")]
factory = util.BuildFactory([steps.ShellCommand(command=command, name="trivial")])
c = BuildmasterConfig = {{}}
c["workers"] = [worker.Worker("worker", "password", max_builds={slots})]
c["protocols"] = {{"pb": {{"port": "tcp:{pb}:interface=127.0.0.1"}}}}
c["builders"] = [util.BuilderConfig(name=b, workernames=["worker"], factory=factory, collapseRequests=False) for b in builders]
c["schedulers"] = [schedulers.ForceScheduler(name="force", builderNames=builders,
                                             properties=[util.StringParameter(name="tag", default="none")])]
c["collapseRequests"] = False
c["www"] = {{"port": "tcp:{www}:interface=127.0.0.1"}}
c["db"] = {{"db_url": "sqlite:///state.sqlite"}}
c["title"] = "bench"
c["titleURL"] = c["buildbotURL"] = "http://127.0.0.1:{www}/"
c["buildbotNetUsageData"] = None
c["services"] = [Observer()]
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Buildbot:
    def __init__(self, cache, stamp, processes, folder, slots=1):
        self.programs = os.path.join(cache, "buildbot", "bin")
        if not os.path.exists(os.path.join(self.programs, "buildbot-worker")):
            self.install(os.path.dirname(self.programs))
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.count = folder, 0
        self.stamps = os.path.join(folder, "stamps")
        os.makedirs(self.stamps)
        self.observer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.observer.bind(os.path.join(folder, "observer"))
        self.observer.settimeout(120)
        self.www, pb = free_port(), free_port()
        self.run("buildbot", "create-master", "-q", "master")
        with open(os.path.join(folder, "master", "master.cfg"), "w", encoding="ascii") as file:
            file.write(MASTER.format(observer=os.path.join(folder, "observer"), stamp=stamp, stamps=self.stamps, builders=BUILDERS,
                                     slots=slots, www=self.www, pb=pb))
        self.run("buildbot-worker", "create-worker", "-q", "worker", f"127.0.0.1:{pb}", "worker", "password")
        start = lambda name, part: processes.start([os.path.join(self.programs, name), "start", "--nodaemon", part],
                                                   os.path.join(folder, part + ".log"), cwd=folder)
        self.master = start("buildbot", "master")
        self.connection, self.used = http.client.HTTPConnection("127.0.0.1", self.www), 0
        self.wait(lambda: self.ask("GET", "/api/v2/builders"))
        self.worker = start("buildbot-worker", "worker")
        self.wait(lambda: self.ask("GET", "/api/v2/workers")["workers"][0]["connected_to"])
        builders = self.ask("GET", "/api/v2/builders")["builders"]
        self.builders = [builder["builderid"] for builder in builders if builder["name"].startswith("b")]

    @staticmethod
    def install(environment):
        print("installing Buildbot", VERSION, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([os.path.join(environment, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check",
                        f"buildbot=={VERSION}", f"buildbot-worker=={VERSION}", f"buildbot-www=={VERSION}", "setuptools"],
                       check=True, stdout=sys.stderr)

    def run(self, program, *words):
        subprocess.run([os.path.join(self.programs, program), *words], check=True, cwd=self.folder, stdout=subprocess.DEVNULL)

    def wait(self, condition):
        begin = time.monotonic()
        while time.monotonic() - begin < 120:
            try:
                if condition():
                    return
            except OSError:
                self.connection.close()
            time.sleep(0.2)
        sys.exit(f"Buildbot does not start: see {self.folder}")

    def ask(self, method, path, body=None):
        if time.monotonic() - self.used > IDLE:
            # The master may have closed it by now.
            self.connection.close()
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        text = response.read()
        self.used = time.monotonic()
        if response.status >= 300:
            sys.exit(f"Buildbot: {method} {path}: {response.status} {text[:300]}")
        return json.loads(text)

    def submit(self):
        """Queues a trivial build: (tag, the request's id)."""
        self.count += 1
        tag = f"t{self.count}"
        builder = self.builders[self.count % len(self.builders)]
        body = {"jsonrpc": "2.0", "method": "force", "id": 1,
                "params": {"builderid": str(builder), "tag": tag, "username": "bench <bench@example.org>", "reason": "bench"}}
        answer = self.ask("POST", "/api/v2/forceschedulers/force", json.dumps(body).encode())
        return tag, next(iter(answer["result"][1].values()))

    def done(self):
        """The next request that is complete."""
        return int(self.observer.recv(64))

    def timed(self):
        queued = time.time()
        tag, request = self.submit()
        accepted = time.time()
        while self.done() != request:
            pass
        ended = time.time()
        record = self.ask("GET", f"/api/v2/buildrequests/{request}")["buildrequests"][0]
        readable = time.time()
        if not record["complete"] or record["results"] != 0:
            sys.exit(f"Buildbot: the build failed: {record}")
        with open(os.path.join(self.stamps, tag), encoding="ascii") as file:
            began, done = [float(line.split()[-1]) for line in file]
        return {"queued": queued, "accepted": accepted, "handed": None, "first_line": None, "began": began, "done": done,
                "ended": ended, "readable": readable}
