"""Curves for the report: sockperf over a range of sizes, of sockets, of loads; and the distribution of its latencies."""

import math
import os
import re

from lab import Failure
from workloads import SockperfPingPong, SockperfThroughput, number


class Size(SockperfThroughput):
    """Throughput with datagrams of x bytes."""

    def __init__(self, x):
        self.message_bytes = x


class Sockets(SockperfThroughput):
    """Throughput over x sockets, each with its own port, that a client's thread sends to in turn."""

    def __init__(self, x):
        self.count = x
        self.first = SockperfThroughput.port
        # Bound in the order of the file: when the last one is, all are.
        self.port = self.first + x - 1

    def prepare(self, lab, address):
        self.file = os.path.join(lab.directory, "sockets")
        with open(self.file, "w") as file:
            file.writelines(f"{address}:{port}\n" for port in range(self.first, self.port + 1))

    def server(self, address):
        return ["sockperf", "server", "-f", self.file, "-F", "e"]

    def client(self, address, seconds):
        return ["sockperf", "throughput", "-f", self.file, "-F", "e", "-m", str(self.message_bytes), "-t", str(seconds)]


class Load(SockperfPingPong):
    """Latency while x datagrams a second are sent, some of which are to be answered."""

    metrics = [("p50 RTT/2", "us", "lower"), ("p99 RTT/2", "us", "lower"), ("sent", "datagrams/s", "higher"), ("unanswered", "%", "lower")]

    def __init__(self, x):
        self.rate = x

    def client(self, address, seconds):
        # Some ten thousand answers a second at most: what is measured is the way there under load, not two loads.
        return ["sockperf", "under-load", "-i", address, "-p", str(self.port), "-m", str(self.message_bytes), "-t", str(seconds),
                "--mps", str(self.rate), "--reply-every", str(max(1, self.rate // 10_000))]

    def measure(self, client, server, seconds):
        sent, took = (number(pattern, client, "sockperf") for pattern in (r"SentMessages=(\d+)", r"\[Total Run\] RunTime=([\d.]+)"))
        values = {"sent": sent / took}
        observed = float((re.search(r"Total (\d+) observations", client) or [0, 0])[1])
        # Where nearly nothing is answered there is no latency to speak of.
        if observed >= 100:
            for quantile, pattern in ((50, r"percentile 50\.000 = +([\d.]+)"), (99, r"percentile 99\.000 = +([\d.]+)")):
                values[f"p{quantile} RTT/2"] = number(pattern, client, "sockperf")
            dropped = number(r"dropped messages = (\d+)", client, "sockperf")
            values["unanswered"] = 100 * dropped / (dropped + observed)
        return values, number(r"Total (\d+) messages received", server, "sockperf server")


class Curve:
    """What is drawn: a figure of series, each [(x, y)], over the points of one range."""

    def __init__(self, title, workload, points, x_label, figures, x_metric=None):
        self.title, self.workload, self.points, self.x_label = title, workload, points, x_label
        # (title, y label, [(metric, how its series is called, factor of x and value)])
        self.figures, self.x_metric = figures, x_metric

    def thinned(self, most):
        """At most so many points, the first and the last among them."""
        if len(self.points) <= most:
            return self.points
        if most == 1:
            return self.points[:1]
        return [self.points[round(i * (len(self.points) - 1) / (most - 1))] for i in range(most)]


def plain(x, y):
    return y


CURVES = {
    "sockperf-pp": [
        Curve("latency under load", Load, [1_000, 10_000, 50_000, 100_000, 200_000, 400_000], "datagrams sent per second, 64 B",
              [("latency under load", "RTT/2, us", [("p50 RTT/2", "p50", plain), ("p99 RTT/2", "p99", plain)]),
               ("unanswered under load", "% of the questions", [("unanswered", "", plain)])], x_metric="sent"),
    ],
    "sockperf-tp": [
        Curve("throughput against size", Size, [64, 256, 1024, 1472, 4096, 16384, 60000], "bytes of a datagram",
              [("datagrams against size", "delivered per second", [("delivered", "", plain)]),
               ("throughput against size", "delivered, Mbit/s", [("delivered", "", lambda x, y: x * y * 8 / 1e6)])]),
        Curve("throughput against sockets", Sockets, [1, 4, 16, 64, 256], "sockets, one thread on each side, 64 B",
              [("throughput against number of sockets", "delivered per second", [("delivered", "", plain)])]),
    ],
}


def latencies(path):
    """Of a --full-log of sockperf, in us."""
    found = []
    with open(path, errors="replace") as file:
        for line in file:
            cells = line.split(", ")
            if len(cells) == 4 and cells[0].isdigit():
                found.append(float(cells[3]))
    if not found:
        raise Failure(f"sockperf wrote no latencies to {path}")
    return found


def distribution(values):
    """(share of the values that are at most y, y), from p1 to p99.99 as far as there are values for it, evenly in nines."""
    ordered = sorted(values)
    # A quantile needs ten values beyond it to mean something.
    last = min(0.9999, 1 - 10 / len(ordered))
    nines = [-math.log10(1 - 0.01) + i / 60 for i in range(4 * 60 + 1)]
    shares = [1 - 10 ** -n for n in nines if 1 - 10 ** -n < last] + ([last] if last > 0.01 else [])
    return [(share, ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]) for share in shares]
