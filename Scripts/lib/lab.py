"""A place to run programs in: a directory, processes, network namespaces and daemons, all gone when it closes.

Namespaces and directories carry the owner's pid in their names, so that what a killed owner left behind is found and
removed by the next one.
"""

import ctypes
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
PREFIX = "machnet-lab-"
SERVER_ADDRESS, CLIENT_ADDRESS = "10.77.0.1", "10.77.0.2"
_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Something that the person at the terminal should read; no traceback."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def alive(pid):
    return os.path.exists(f"/proc/{pid}")


def group(pid):
    """The group of a process, by its leader's pid (proc(5)); None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[2])
    except OSError:
        return None


def sweep():
    """Removes what labs of dead owners left."""
    for directory in glob.glob(os.path.join(tempfile.gettempdir(), PREFIX + "*")):
        owner = os.path.basename(directory)[len(PREFIX):].split("-")[0]
        if owner.isdigit() and not alive(owner):
            shutil.rmtree(directory, ignore_errors=True)
    for path in glob.glob(f"/run/netns/{PREFIX}*"):
        name = os.path.basename(path)
        owner = name[len(PREFIX):].split("-")[0]
        if owner.isdigit() and not alive(owner):
            subprocess.run(["ip", "netns", "del", name], check=False)


def binaries():
    """The directory of the release build, built if it is not there."""
    directory = os.environ.get("MACHNET_BIN", os.path.join(ROOT, ".build/release"))
    wanted = ["machnetd", "machnet", "libmachnet-preload.so"]
    if not all(os.path.exists(os.path.join(directory, name)) for name in wanted):
        say("building (swift build -c release)")
        if subprocess.run(["swift", "build", "-c", "release"], cwd=ROOT, stdout=sys.stderr).returncode != 0:
            raise Failure("swift build -c release failed")
    return directory


def compile_c(name):
    """Tests/Programs/NAME.c, compiled once per version of its source."""
    source = os.path.join(ROOT, "Tests/Programs", name + ".c")
    target = os.path.join(ROOT, ".build/programs", name)
    if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        subprocess.run(["cc", "-O2", "-pthread", "-o", target, source], check=True)
    return target


class Process:
    """A program that runs in a group of its own, with its output in files."""

    def __init__(self, lab, name, argv):
        self.name, self.argv = name, argv
        base = os.path.join(lab.directory, f"{len(lab.processes)}-{name}")
        self.out_path, self.err_path = base + ".out", base + ".err"

        def prepare():
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed script leaves no program behind

        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            # No session of its own: the kernel would schedule each as a group apart (sched_autogroup_enabled, sched(7)), and a
            # sched_yield(2) does not reach beyond its group.
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=lab.directory, process_group=0,
                preexec_fn=prepare)
        self.pid = self.popen.pid
        self.ended_cpu_seconds = 0.0

    def out(self):
        with open(self.out_path, errors="replace") as file:
            return file.read()

    def err(self):
        with open(self.err_path, errors="replace") as file:
            return file.read()

    def wait(self, seconds):
        """The exit status; the processor time is then in `ended_cpu_seconds`."""
        deadline = time.monotonic() + seconds
        while self.popen.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise Failure(f"{self.name} did not end within {seconds:.0f} s\n{self.story()}")
            time.sleep(0.02)
        if self.popen.returncode is None:
            self.ended_cpu_seconds = self.cpu_seconds()
        return self.popen.wait()

    def cpu_seconds(self):
        """Processor time that the process has used, in user space and in the kernel, all threads."""
        with open(f"/proc/{self.pid}/stat") as file:
            # The name may hold spaces and parentheses; utime and stime are the 14th and 15th field of proc(5).
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, sign=signal.SIGINT, seconds=5):
        """Asks the program to end; whatever of its group is left is killed."""
        if self.popen.poll() is None:
            os.kill(self.pid, sign)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                say(f"{self.name} did not end on {signal.Signals(sign).name}: killed")
        self.kill()
        return self.popen.returncode

    def kill(self):
        # The group is ours alone (process_group), and its leader is unreaped or just reaped.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.popen.wait()

    def story(self):
        tail = (self.out() + self.err()).strip().splitlines()[-15:]
        return "\n".join(["  command: " + " ".join(self.argv), *("  | " + line for line in tail)])


class Daemon:
    """A machnetd with a generated config; `profile` is of the programs that run on it."""

    def __init__(self, lab, name, flows, engine_cpus, interface=None, interfaces=None, namespace=None, polling="adaptive",
                 extra="", transport="udp", queues=1, profile=None):
        self.lab, self.namespace, self.profile = lab, namespace, profile
        self.config = os.path.join(lab.directory, name + ".yaml")
        self.socket = os.path.join(lab.directory, name + ".sock")
        lines = []
        interfaces = interfaces or ({name: interface} if interface else {})
        lines += ["interfaces:"] if interfaces else []
        for one, its in interfaces.items():
            lines += [f"  - name: {one}", f"    address: {its['address']}/24",
                      f"    device: {{ vdev: \"{its['vdev']}\" }}", f"    queues: {queues}"]
        lines += ["engine:", f"  cpus: [{', '.join(map(str, engine_cpus))}]", f"  polling: {polling}"]
        lines += ["  separate-hosts: true"] if len(interfaces) > 1 else []
        lines += [extra] if extra else []
        lines += [f"control: {{ socket: {self.socket} }}", "flows:"]
        lines += [f"  - {{ match: {{ {flow} }}, path: machnet, transport: {transport} }}" for flow in flows]
        with open(self.config, "w") as file:
            file.write("\n".join(lines) + "\n")
        self.process = lab.spawn("machnetd-" + name, [lab.tool("machnetd"), "--config", self.config],
                                 namespace=namespace)

    def wait_ready(self, seconds=20):
        deadline = time.monotonic() + seconds
        while not os.path.exists(self.socket) or self.status(quietly=True) is None:
            if self.process.popen.poll() is not None:
                raise Failure(f"machnetd ended at start\n{self.process.story()}")
            if time.monotonic() > deadline:
                raise Failure(f"machnetd is not ready after {seconds} s\n{self.process.story()}")
            time.sleep(0.02)

    def run(self, argv):
        """The command line that runs a program under the preload."""
        profile = ["--profile", self.profile] if self.profile else []
        return [self.lab.tool("machnet"), "run", "--socket", self.socket, *profile, "--", *argv]

    def status(self, quietly=False):
        done = subprocess.run([self.lab.tool("machnet"), "status", "--socket", self.socket, "--json"],
                              capture_output=True, text=True, timeout=10, check=False)
        if done.returncode != 0:
            if quietly:
                return None
            raise Failure(f"machnet status failed: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def carried(self, program, process):
        """Datagrams that the engine and the kernel carried for a program's sockets, both directions.

        Those of the process and its children; by the program's name where none is found, as of one that has become a daemon.
        """
        sockets = self.status()["sockets"]
        mine = ([socket for socket in sockets if group(socket["pid"]) == process.pid]
                or [socket for socket in sockets if socket["program"].startswith(program)])
        return tuple(sum(socket[way]["rx"]["datagrams"] + socket[way]["tx"]["datagrams"] for socket in mine)
                     for way in ("engine", "kernel"))


class Lab:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        os.chmod(self.directory, 0o755)  # servers that drop their privileges read their files here
        self.processes, self.namespaces, self.bin = [], [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for process in reversed(self.processes):
            process.stop(signal.SIGTERM, 3) if "machnetd" in process.name else process.kill()
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def tool(self, name):
        self.bin = self.bin or binaries()
        return os.path.join(self.bin, name)

    def spawn(self, name, argv, cpus=None, namespace=None):
        """Starts a program; its pid is that of the returned process (ip, taskset and machnet run all exec)."""
        if cpus is not None:
            argv = ["taskset", "-c", ",".join(map(str, cpus)), *argv]
        if namespace:
            argv = ["ip", "netns", "exec", namespace, *argv]
        process = Process(self, name, argv)
        self.processes.append(process)
        return process

    def wait_bound(self, process, port, protocol="udp", seconds=15):
        """Until some socket of the process's namespace is bound to the port."""
        deadline, wanted = time.monotonic() + seconds, f":{port:04X} "
        while True:
            for table in (protocol, protocol + "6"):
                try:
                    with open(f"/proc/{process.pid}/net/{table}") as file:
                        if any(wanted in line[:line.index(":", 20) + 6] for line in file.readlines()[1:]):
                            return
                except (OSError, ValueError):
                    pass
            if process.popen.poll() is not None:
                raise Failure(f"{process.name} ended before it was ready\n{process.story()}")
            if time.monotonic() > deadline:
                raise Failure(f"{process.name} is not bound to port {port} after {seconds} s\n{process.story()}")
            time.sleep(0.01)

    def ip(self, *arguments):
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def namespace(self, name):
        if os.geteuid() != 0:
            raise Failure("this topology needs root: it makes network namespaces")
        full = f"{PREFIX}{os.getpid()}-{name}"
        self.ip("netns", "add", full)
        self.namespaces.append(full)
        self.ip("-n", full, "link", "set", "lo", "up")
        return full

    def veth(self, addresses=(SERVER_ADDRESS, CLIENT_ADDRESS)):
        """Two namespaces joined by a veth, `veth0` in each; an address of None leaves that end to an engine."""
        ends = self.namespace("a"), self.namespace("b")
        self.ip("-n", ends[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", ends[1])
        for end, address in zip(ends, addresses):
            if address:
                self.ip("-n", end, "addr", "add", address + "/24", "dev", "veth0")
            # A link-local IPv6 address comes when it likes; where it is the only one, getaddrinfo(3) makes IPv4 addresses
            # v4-mapped ones, which not every program takes.
            self.ip("-n", end, "link", "set", "veth0", "addrgenmode", "none", "up")
        return ends

    def whole_frames(self, namespace):
        """Makes a kernel end send what a wire would carry: checksums filled in, no segment larger than the MTU."""
        subprocess.run(["ip", "netns", "exec", namespace, "ethtool", "-K", "veth0", "tx", "off", "gso", "off", "tso",
                        "off", "gro", "off"], check=True, stdout=subprocess.DEVNULL)

    def shut_out_udp(self, namespace):
        """Leaves UDP on veth0 to the engine and the rest (a program's TCP side channel) to the kernel."""
        rules = "table inet machnet { chain input { type filter hook input priority 0; iif veth0 meta l4proto udp drop; }; }"
        subprocess.run(["ip", "netns", "exec", namespace, "nft", rules], check=True)
