"""Latency from the wire: how long after a client's datagram the answer passes, seen at the client's network interface.

Where the client is on Machnet, `machnet capture` looks at its engine's interface (or at what the engine hands over on one
host); where it is on the kernel, tcpdump looks at its kernel interface. Both stamp a frame where it passes from the host to
the network and back, by the same clock, and both run on the client's cores.

Two figures, because no stamp sees what a program does before the network has its datagram:
  response  from a datagram of the client to the first one of the answer: the network, the server, and the network
  period    from a datagram of the client to its next one: all of that, the client's own waking and work, and on Machnet the
            time until the engine takes the datagram. Only a client that asks again as soon as it has its answer makes it a
            round trip.
"""

import os
import re
import shutil
import signal
import statistics
import struct
import time

from lab import Failure

METRICS = [(f"{name} {quantile}", "us", "lower") for name in ("response", "period") for quantile in ("p50", "p99")]
# Of the questions that may be asked before the last one was answered. More, and nobody can tell which answer is whose.
OVERLAPPING = 0.1
LEAST = 100  # exchanges
# A flow that has been silent for so long begins anew: its last question was lost, or is answered no more.
QUIET = 0.05


class Instrument:
    """Records the datagrams of one port until `measure`."""

    def __init__(self, lab, side, port, cpus, device):
        self.port = port
        self.path = os.path.join(lab.directory, "wire.pcap")
        if side.daemon:
            command = [lab.tool("machnet"), "capture", "--socket", side.daemon.socket, "--port", str(port), "--snap", "64", "--write", self.path]
        else:
            if not shutil.which("tcpdump"):
                raise Failure("--latency wire looks at the kernel's side by tcpdump, which is not there: Scripts/setup installs it")
            command = ["tcpdump", "-Z", "root", "-n", "-i", device, "-s", "64", "-B", "65536", "--time-stamp-precision=nano", "-w", self.path,
                       f"udp port {port}"]
        self.process = lab.spawn("wire", command, cpus, side.namespace)
        deadline = time.monotonic() + 10
        # A capture's file begins when the engines have begun; tcpdump says it.
        while not (os.path.exists(self.path) and os.path.getsize(self.path) if side.daemon else "listening on" in self.process.err()):
            if self.process.popen.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"nothing looks at the wire\n{self.process.story()}")
            time.sleep(0.01)

    def measure(self):
        """({metric: value}, the seconds of each response)."""
        if self.process.stop(signal.SIGINT, 20) != 0:
            raise Failure(f"the recorder of the wire failed\n{self.process.story()}")
        said = self.process.err()
        lost = re.search(r"(\d+) lost", said) or re.search(r"(\d+) packets? dropped by kernel", said)
        if not lost or int(lost.group(1)):
            raise Failure(f"the recorder of the wire could not keep up: fewer datagrams a second, please\n{self.process.story()}")
        with open(self.path, "rb") as file:
            responses, periods = exchanges(frames(file.read()), self.port)
        if len(responses) < LEAST:
            raise Failure(f"--latency wire saw {len(responses)} answers from port {self.port}; it takes {LEAST}, of a server that answers from where it was asked")
        values = {}
        for name, found in (("response", responses), ("period", periods)):
            cuts = statistics.quantiles(found, n=100, method="inclusive")
            values[f"{name} p50"], values[f"{name} p99"] = cuts[49] * 1e6, cuts[98] * 1e6
        return values, responses


def exchanges(seen, port):
    """(seconds from each question to its answer, seconds from each question to the next of its flow).

    `seen`: (time, source, destination) with (address, port) for both, in order. A question is a datagram to the port; its
    answer is the first one from there to whoever asked. Questions that overlap are left out, with all until the flow is quiet.
    """
    responses, periods = [], []
    asked, last, latest, confused = {}, {}, {}, set()
    questions = overlapping = 0
    for at, source, destination in seen:
        flow = source if destination[1] == port else destination
        if at - latest.get(flow, at) > QUIET:
            confused.discard(flow)
            asked.pop(flow, None)
            last.pop(flow, None)
        latest[flow] = at
        if destination[1] == port:
            questions += 1
            if flow in confused or flow in asked:
                overlapping += 1
                confused.add(flow)
                asked.pop(flow, None)
                last.pop(flow, None)
                continue
            if flow in last:
                periods.append(at - last[flow])
            asked[flow] = last[flow] = at
        elif flow in asked:
            responses.append(at - asked.pop(flow))
    if overlapping > OVERLAPPING * questions:
        raise Failure("--latency wire cannot tell which answer is whose: the client asks before it is answered. "
                      "Take the latency from the program's own output, by --metric")
    return responses, periods


def frames(data):
    """(time, source, destination) of each UDP datagram in a pcap or pcapng file, in the order of their times."""
    reader = capture_file if data[:4] == b"\x0a\x0d\x0d\x0a" else pcap_file
    found = [(at, *ends) for at, frame in reader(data) if (ends := udp(frame))]
    found.sort(key=lambda one: one[0])
    return found


def udp(frame):
    """((address, port), (address, port)) of an IPv4 datagram's first fragment in an Ethernet frame."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[23] != 17 or (frame[20] & 0x1F) | frame[21]:
        return None
    ports = 14 + 4 * (frame[14] & 15)
    if len(frame) < ports + 4:
        return None
    source, destination = struct.unpack_from(">HH", frame, ports)
    return (frame[26:30], source), (frame[30:34], destination)


def pcap_file(data):
    """Of tcpdump with --time-stamp-precision=nano: the magic number also tells the byte order, which is ours."""
    if len(data) < 24 or struct.unpack_from("=I", data)[0] != 0xA1B23C4D:
        raise Failure("tcpdump wrote no file with stamps of nanoseconds")
    place = 24
    while place + 16 <= len(data):
        seconds, nanoseconds, length, _ = struct.unpack_from("=IIII", data, place)
        yield seconds + nanoseconds / 1e9, data[place + 16:place + 16 + length]
        place += 16 + length


def capture_file(data):
    """Of machnet capture. On a daemon with several interfaces, what passes the one that is called `client`."""
    names, place, found = [], 0, []
    while place + 12 <= len(data):
        kind, length = struct.unpack_from("<II", data, place)
        if kind == 1:
            names.append(interface_name(data, place + 16, place + length - 4))
        elif kind == 6:
            interface, high, low, kept = struct.unpack_from("<IIII", data, place + 8)
            found.append((interface, (high << 32 | low) / 1e9, data[place + 28:place + 28 + kept]))
        place += length
    for interface, at, frame in found:
        if "client" not in names or names[interface] == "client":
            yield at, frame


def interface_name(data, place, end):
    """Option 2 of an interface description block."""
    while place + 4 <= end:
        code, length = struct.unpack_from("<HH", data, place)
        if code == 2:
            return data[place + 4:place + 4 + length].decode()
        if code == 0:
            break
        place += 4 + (length + 3) // 4 * 4
    return ""
