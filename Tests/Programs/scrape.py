"""Scrapes /metrics once, holds the answer to the text format of Prometheus, and prints each sample.

    scrape.py ADDRESS:PORT | PATH [limits]

With `limits`, the server's limits are tried instead: a request that never ends, one that is too large, other paths
and methods, too many clients.
"""
import re
import socket
import sys

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABELS = r'\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"(?:,(?!\})|(?=\})))*\}'
SAMPLE = re.compile(rf"({NAME})({LABELS})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")


def connect():
    where = sys.argv[1]
    if where.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(where)
    else:
        host, _, port = where.rpartition(":")
        client = socket.create_connection((host.strip("[]"), int(port)))
    client.settimeout(30)
    return client


def read(client):
    data = b""
    try:
        while chunk := client.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data.decode()


def ask(request):
    client = connect()
    client.sendall(request)
    return read(client)


def check(text):
    """Every rule of the format that a scraper insists on."""
    kind, seen, series = {}, None, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = re.fullmatch(rf"# HELP ({NAME}) (.+)", line)[1]
            assert name not in kind, f"{name} twice"
        elif line.startswith("# TYPE "):
            _, _, seen, kind_ = line.split(" ")
            assert seen == name and kind_ in ("gauge", "counter"), line
            kind[seen] = kind_
            assert (kind_ == "counter") == seen.endswith("_total"), f"{seen} is a {kind_}"
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, f"not a sample: {line!r}"
            assert sample[1] == seen, f"{sample[1]} under {seen}"
            assert (sample[1], sample[2]) not in series, f"{line} twice"
            series.add((sample[1], sample[2]))
            print(line)


if len(sys.argv) == 2:
    head, _, body = ask(b"GET /metrics HTTP/1.1\r\nHost: machnet\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), head
    assert "text/plain; version=0.0.4" in head, head
    assert f"Content-Length: {len(body.encode())}" in head, head
    check(body)
else:
    silent = connect()
    assert ask(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n").startswith("HTTP/1.1 404 ")
    assert ask(b"POST /metrics HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n").startswith("HTTP/1.1 405 ")
    head, _, body = ask(b"HEAD /metrics HTTP/1.1\r\nHost: m\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ") and not body
    assert ask(b"nonsense\r\n\r\n").startswith("HTTP/1.1 400 ")
    # More than any kernel's socket buffers hold: it is closed, or this goes on for ever.
    endless = connect()
    try:
        endless.sendall(b"GET /")
        for _ in range(64 << 10):
            endless.sendall(b"x" * 1024)
        raise AssertionError("a request without an end is taken")
    except (BrokenPipeError, ConnectionResetError):
        pass
    # Those inside stay, the next ones are shown out.
    inside = [connect() for _ in range(15)]
    outside = [connect() for _ in range(4)]
    assert all(read(client) == "" for client in outside)
    for client in inside:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: m\r\n\r\n")
    assert all(read(client).startswith("HTTP/1.1 200 ") for client in inside)
    assert read(silent) == "", "a client that says nothing may stay"
    print("ok")
