"""What is measured: unmodified programs, how they are started, and how their output is read.

A workload's `measure` returns its metrics and how many datagrams must at least have passed the server's socket, which
is then held against `machnet status`.
"""

import json
import os
import re
import shlex
import shutil

from lab import Failure, compile_c


def number(pattern, text, what):
    found = re.search(pattern, text)
    if not found:
        tail = "\n".join("  | " + line for line in text.strip().splitlines()[-15:])
        raise Failure(f"{what}: no {pattern!r} in its output:\n{tail}")
    return float(found.group(1))


class Workload:
    name = ""
    message_bytes = 64
    writes_log = False  # of every latency, to the path `full_log` if that is set
    full_log = None
    program = ""        # the server's, as `machnet status` names it
    metrics = []        # (metric, unit, better)
    port = 21111
    protocol = "udp"    # of the port that says that the server is ready
    needs_tcp = False   # beside its UDP
    counts = True       # `measure` says how many
    closes = False      # the server's data socket is gone when the client is
    binds = False       # the client can bind `client_address`, if that is set
    client_address = None
    polling_option = [] # makes the program poll instead of sleep: the kernel's best shot
    needs = []          # programs
    latency_label = "RTT/2, us"

    def prepare(self, lab, address):
        pass


class SockperfPingPong(Workload):
    name, program, writes_log, binds = "sockperf-pp", "sockperf", True, True
    needs = ["sockperf"]
    # sockperf prints half of the round trip as the latency; so do we.
    metrics = [("p50 RTT/2", "us", "lower"), ("p99 RTT/2", "us", "lower")]
    polling_option = ["--nonblocked"]

    def server(self, address):
        return ["sockperf", "server", "-i", address, "-p", str(self.port)]

    def client(self, address, seconds):
        command = ["sockperf", "ping-pong", "-i", address, "-p", str(self.port), "-m", str(self.message_bytes), "-t",
                   str(seconds)]
        return command + self.binding() + (["--full-log", self.full_log] if self.full_log else [])

    def binding(self):
        return ["--client_ip", self.client_address] if self.client_address else []

    def measure(self, client, server, seconds):
        p50 = number(r"percentile 50\.000 = +([\d.]+)", client, "sockperf")
        p99 = number(r"percentile 99\.000 = +([\d.]+)", client, "sockperf")
        received = number(r"\[Total Run\].*ReceivedMessages=(\d+)", client, "sockperf")
        return {"p50 RTT/2": p50, "p99 RTT/2": p99}, received


class SockperfThroughput(SockperfPingPong):
    name, writes_log = "sockperf-tp", False
    # Delivered, not sent: the count is the receiving program's own, over the time that the sender sent.
    metrics = [("delivered", "datagrams/s", "higher")]
    polling_option = []

    def client(self, address, seconds):
        return ["sockperf", "throughput", "-i", address, "-p", str(self.port), "-m", str(self.message_bytes), "-t",
                str(seconds)] + self.binding()

    def measure(self, client, server, seconds):
        took = number(r"messages sent in ([\d.]+) sec", client, "sockperf")
        sent = number(r"Total of (\d+) messages sent", client, "sockperf")
        received = number(r"Total (\d+) messages received", server, "sockperf server")
        if received > sent + 1000:  # the warm-up is not in the client's count
            raise Failure(f"sockperf sent {sent:.0f} and its server received {received:.0f}")
        return {"delivered": received / took}, received


class Iperf3(Workload):
    name, program, port, protocol = "iperf3", "iperf3", 25201, "tcp"
    needs = ["iperf3"]
    needs_tcp = closes = True
    metrics = [("delivered", "Mbit/s", "higher")]

    def server(self, address):
        return ["iperf3", "-s", "-1", "-J", "-B", address, "-p", str(self.port)]

    def client(self, address, seconds):
        # 1448 bytes fit a frame, so the topologies can be compared; -b 0 is as fast as it goes.
        return ["iperf3", "-c", address, "-p", str(self.port), "-u", "-b", "0", "-l", "1448", "-t", str(seconds), "-J"]

    def measure(self, client, server, seconds):
        report = json.loads(client)
        if "error" in report:
            raise Failure("iperf3: " + report["error"])
        end = report["end"]["sum"]
        arrived = end["packets"] - end["lost_packets"]
        return {"delivered": arrived * 1448 * 8 / end["seconds"] / 1e6}, arrived


class Echoes(Workload):
    """Many on their way at once. A server sends back what comes in, until it is killed."""

    name, program, port, binds = "echoes", "udp-echoes", 21311, True
    needs = ["cc"]
    size, window = 64, 32
    metrics = [("echoes", "1/s", "higher")]
    rate = "rate"

    def server(self, address):
        return [compile_c("udp-echoes"), "serve", address, str(self.port)]

    def client(self, address, seconds):
        return [compile_c("udp-echoes"), "ask", address, str(self.port), str(seconds), str(self.size), str(self.window),
                *([self.client_address] if self.client_address else [])]

    def measure(self, client, server, seconds):
        return {self.metrics[0][0]: number(self.rate + r"=([\d.]+)", client, "udp-echoes")}, number(r"echoes=(\d+)", client, "udp-echoes")


class LargeEchoes(Echoes):
    name, size, window = "echoes-32k", 32 << 10, 8
    metrics = [("payload, one way", "Gbit/s", "higher")]
    rate = "gbps"


class Memcached(Workload):
    name, program, port = "memcached", "memcached", 21211
    needs = ["memcached", "cc"]
    metrics = [("gets", "1/s", "higher")]

    def server(self, address):
        return ["memcached", "-U", str(self.port), "-p", "0", "-l", address, "-t", "1", "-u", "root"]

    def client(self, address, seconds):
        return [compile_c("memcached-udp-load"), address, str(self.port), str(seconds)]

    def measure(self, client, server, seconds):
        gets = number(r"gets=(\d+)", client, "memcached-udp-load")
        return {"gets": number(r"rate=([\d.]+)", client, "memcached-udp-load")}, gets


class Nsd(Workload):
    name, program, port = "nsd", "nsd", 25353
    needs = ["nsd", "dnsperf"]
    metrics = [("queries", "1/s", "higher")]

    def prepare(self, lab, address):
        # Without rrl-ratelimit: 0, Debian's nsd answers a single client so many times and no more.
        self.directory = lab.directory
        hosts = "\n".join(f"host{i} A 192.0.2.{i}" for i in range(100))
        self._write("zone", f"$ORIGIN example.\n$TTL 3600\n@ SOA ns admin 1 3600 600 86400 60\n@ NS ns\nns A 192.0.2.200\n{hosts}\n")
        self._write("queries", "".join(f"host{i}.example A\n" for i in range(100)))
        self._write("nsd.conf", f"""server:
  ip-address: {address}@{self.port}
  server-count: 1
  ip-freebind: yes
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  username: ""
  zonesdir: "{lab.directory}"
  database: ""
  pidfile: "{lab.directory}/nsd.pid"
  zonelistfile: "{lab.directory}/zone.list"
  xfrdfile: "{lab.directory}/xfrd.state"
  xfrdir: "{lab.directory}"
  verbosity: 0
remote-control:
  control-enable: no
zone:
  name: example
  zonefile: zone
""")

    def _write(self, name, text):
        with open(os.path.join(self.directory, name), "w") as file:
            file.write(text)

    def server(self, address):
        return ["nsd", "-d", "-c", os.path.join(self.directory, "nsd.conf")]

    def client(self, address, seconds):
        return ["dnsperf", "-s", address, "-p", str(self.port), "-d", os.path.join(self.directory, "queries"), "-l",
                str(seconds), "-c", "1", "-T", "1", "-q", "100"]

    def measure(self, client, server, seconds):
        completed = number(r"Queries completed: +(\d+)", client, "dnsperf")
        if not re.search(r"NOERROR \d+ \(100\.00%\)", client):
            raise Failure("dnsperf: an answer was not NOERROR")
        if number(r"Queries lost: +\d+ \(([\d.]+)%\)", client, "dnsperf") > 5:
            raise Failure("dnsperf: more than 5% of the queries had no answer, so the rate would be that of time-outs")
        return {"queries": number(r"Queries per second: +([\d.]+)", client, "dnsperf")}, completed


class Custom(Workload):
    """A server and a client from the command line. {address}, {port} and {seconds} are filled in."""

    name, counts, latency_label = "custom", False, "response on the wire, us"

    def __init__(self, server, client, port, metrics, others=()):
        """`metrics`: as --metric says them; `others`: (name, unit, better) of what somebody else measures."""
        self.port = port
        self._server, self._client = self._words("--server", server), self._words("--client", client)
        self.program = os.path.basename(self._server[0])
        self.patterns = {}
        self.metrics = list(others)
        self.writes_log = bool(others)
        for metric in metrics or ([] if others else ["run time:s:lower:"]):
            try:
                name, unit, better, pattern = metric.split(":", 3)
            except ValueError:
                raise Failure(f"--metric wants NAME:UNIT:lower|higher:REGEX, found {metric!r}") from None
            if better not in ("lower", "higher"):
                raise Failure(f"--metric: the third part is `lower` or `higher`, found {better!r}")
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise Failure(f"--metric: {pattern!r} is no regular expression: {error}") from None
            if pattern and groups < 1:
                raise Failure(f"--metric: {pattern!r} has no group for the number, such as ([0-9.]+)")
            self.patterns[name] = pattern
            self.metrics.append((name, unit, better))

    def _words(self, option, command):
        """The command's words; whatever cannot work is said before anything is measured."""
        try:
            words = shlex.split(command)
            [word.format(address="", port=0, seconds=0) for word in words]
        except (KeyError, IndexError, ValueError) as error:
            raise Failure(f"{option}: expected a command with {{address}}, {{port}} and {{seconds}} (a brace that is one is doubled), "
                          f"found {command!r}: {error}") from None
        if not words or not shutil.which(words[0]):
            raise Failure(f"{option}: there is no program {words[0] if words else ''!r}")
        # Programs are run in a directory of their own.
        return [os.path.abspath(words[0]) if "/" in words[0] else words[0], *words[1:]]

    def _fill(self, words, address, seconds=""):
        return [word.format(address=address, port=self.port, seconds=seconds) for word in words]

    def server(self, address):
        return self._fill(self._server, address)

    def client(self, address, seconds):
        return self._fill(self._client, address, seconds)

    def measure(self, client, server, seconds):
        return {name: number(pattern, client, "the client") if pattern else seconds for name, pattern in self.patterns.items()}, 1


BUILT_IN = {workload.name: workload for workload in (SockperfPingPong, SockperfThroughput, Echoes, LargeEchoes, Iperf3, Memcached, Nsd)}
