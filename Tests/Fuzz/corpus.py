#!/usr/bin/env python3
"""Writes the fuzzer's first inputs into a directory, by name, in the format of Fuzz.swift, ChannelFuzz.swift or ControlFuzz.swift.

    Tests/Fuzz/corpus.py packets|channel|control DIRECTORY
"""

import pathlib
import struct
import sys

A, B = 0x0A000001, 0x0A000002
SYN, SYN_ACK, DATA, RESET = 1, 2, 3, 4
NUMBERED, ACK_NOW, ECHO, DUPLICATE, CONFIRM, UNKNOWN_TAG = 1, 2, 4, 8, 16, 32
PACKET, FRAME, CHANGED, TIME, MESSAGE, CARRY, IN_SESSION, LOSE = range(8)
TO_A = 8


def step(kind, *parts):
    return bytes([kind]) + b"".join(parts)


def sized(content):
    return struct.pack(">H", len(content)) + content


def packet(kind, flags=0, sack=(), tag=0, rest=b"", version=1):
    """MachnetPacket; number and acknowledgement are 0, timestamp 1, echo 2, window 256."""
    head = struct.pack(">BBBBQIIIIHH", version << 4 | kind, flags, len(sack), 0, tag, 0, 0, 1, 2, 256, 0)
    return head + b"".join(struct.pack(">Q", word) for word in sack) + rest


def chunk(content=b"", message=0, total=None, offset=0, kind=0, ports=(1, 2)):
    return struct.pack(">IIIHHHBB", message, len(content) if total is None else total, offset, kind << 14 | len(content),
                       *ports, 64, 0) + content


def ip(protocol, content, flags=0, header=b""):
    head = struct.pack(">BBHHHBBHII", 0x45 + len(header) // 4, 0, 20 + len(header) + len(content), 1, flags, 64, protocol, 0, A, B)
    return head + header + content


def frame(kind, content):
    return struct.pack(">6s6sH", b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", kind) + content


def udp(content, ports=(62000, 62001), length=None):
    return struct.pack(">HHHH", *ports, 8 + len(content) if length is None else length, 0) + content


def in_session(content, number=0, acknowledgement=0):
    return step(IN_SESSION, struct.pack(">bb", number, acknowledgement), sized(content))


message = lambda size: step(MESSAGE, struct.pack(">H", size))
time = lambda units: step(TIME, struct.pack(">H", units))
changed = lambda *edits: step(CHANGED, bytes([len(edits)]), *(bytes(edit) for edit in edits))
opened = message(64) + step(CARRY) + message(64) + step(CARRY)
offer = struct.pack(">QIBBHQ", 5, 0xFFFFFFF0, 0, 1, 1420, 0)
answer = struct.pack(">QQQIHHBBH", 9, 10, 5, 0xFFFFFFF0, 62000, 62001, 1, 0, 1420)
confirmation = struct.pack(">QQQIIHHBBH", 9, 10, 5, 1, 2, 62000, 62001, 1, 0, 1420)

PACKETS = {
    "syn": step(PACKET, sized(packet(SYN, tag=3, rest=offer))) + step(CARRY),
    "syn-of-no-engines": step(PACKET, sized(packet(SYN, tag=3, rest=offer[:13] + b"\0" + offer[14:]))),
    "syn-ack-unasked": step(PACKET, sized(packet(SYN_ACK, ECHO, tag=3, rest=answer))),
    "syn-ack-in-session": opened + in_session(packet(SYN_ACK, ECHO, rest=answer)),
    "confirmation-forged": step(PACKET, sized(packet(DATA, CONFIRM | ACK_NOW, tag=9, rest=confirmation))),
    "handshake-changed": message(64) + changed((40, 0)) + step(CARRY) + time(40) + changed() + step(CARRY),
    "tag-unknown": step(PACKET, sized(packet(DATA, NUMBERED, tag=77, rest=chunk(b"hello")))) + step(CARRY),
    "reset-unknown-tag": opened + step(PACKET, sized(packet(RESET, UNKNOWN_TAG, tag=77))),
    "reset-right": opened + in_session(packet(RESET)) + step(CARRY),
    "version-2": step(PACKET, sized(packet(DATA, version=2))),
    "type-15": step(PACKET, sized(packet(15))),
    "head-cut": step(PACKET, sized(packet(DATA)[:31])),
    "sack-cut": step(PACKET, sized(packet(DATA, sack=(1, 2, 3, 4))[:-1])),
    "sack-5-words": step(PACKET, sized(packet(DATA, sack=(1, 2, 3, 4, 5)))),
    "message-whole": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 64))),
    "message-empty": opened + in_session(packet(DATA, NUMBERED, rest=chunk())),
    "messages-two": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"a" * 9) + chunk(b"b" * 30, message=1))),
    "message-in-pieces": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=2840)))
    + in_session(packet(DATA, NUMBERED, rest=chunk(b"y" * 1420, total=2840, offset=1420))),
    "piece-again": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=2840))) * 2,
    "piece-misplaced": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 100, total=2840, offset=7))),
    "piece-of-another-total": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=2840)))
    + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=4260, offset=1420))),
    "message-of-4-gigabytes": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=0xFFFFFFFF))),
    "message-of-8-megabytes": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 1420, total=8 << 20))),
    "chunk-cut": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 64)[:-1])),
    "chunk-beyond-its-message": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x" * 64, total=63))),
    "words": opened + in_session(packet(DATA, NUMBERED, rest=b"".join(chunk(kind=kind, message=kind) for kind in (1, 2, 3)))),
    "number-ahead": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x")), number=5) + step(CARRY),
    "number-old": opened + in_session(packet(DATA, NUMBERED, rest=chunk(b"x")), number=-5) + step(CARRY),
    "acknowledgement-of-nothing": opened + message(64) + in_session(packet(DATA), acknowledgement=100),
    "sack-of-nothing": opened + message(64) + in_session(packet(DATA, sack=(2**64 - 1,) * 4)),
    "sack-real": opened + step(MESSAGE + TO_A, b"\x20\0") + step(LOSE + TO_A) + step(CARRY) + time(200) + step(CARRY),
    "lost-and-repaired": opened + message(9000) + step(LOSE) * 3 + step(CARRY) + time(80) + step(CARRY) + time(800) + step(CARRY),
    "dead-peer": opened + message(3000) + (step(LOSE) * 4 + time(60000)) * 6,
    "duplicate-echoed": opened + message(64) + in_session(packet(DATA, DUPLICATE | ECHO)),
    "ping": opened + in_session(packet(DATA, NUMBERED | ACK_NOW)) + step(CARRY),
    "both-open": message(64) + step(MESSAGE + TO_A, b"\0\x40") + step(CARRY) * 2,
    "frame-of-a-session": opened + step(FRAME, sized(frame(0x0800, ip(17, udp(packet(DATA, NUMBERED)))))),
    "frame-short": step(FRAME, sized(frame(0x0800, b"")[:13])),
    "arp-request": step(FRAME, sized(frame(0x0806, struct.pack(">HHBBH6sI6sI", 1, 0x0800, 6, 4, 1, b"\2" * 6, A, b"", B)))),
    "ip-options": step(FRAME, sized(frame(0x0800, ip(17, udp(b"x"), header=b"\1" * 8)))),
    "ip-fragment": step(FRAME, sized(frame(0x0800, ip(17, udp(b"x" * 64), flags=0x2001)))),
    "ip-length-lies": step(FRAME, sized(frame(0x0800, ip(17, udp(b"x"))[:-4]))),
    "udp-length-lies": step(FRAME, sized(frame(0x0800, ip(17, udp(b"x", length=7))))),
    "icmp-echo": step(FRAME, sized(frame(0x0800, ip(1, struct.pack(">BBHI", 8, 0, 0, 1) + b"x" * 56)))),
    "icmp-unreachable": message(1) + step(FRAME + TO_A, sized(frame(0x0800, ip(1, struct.pack(">BBHI", 3, 3, 0, 0) + ip(17, udp(b"")))))),
}


# What a program writes into its channel (ChannelFuzz.swift).
WRITE, WORD, RACE, SEND, RECEIVE, PASS, OTHERS, CONTROL = range(8)
LOCAL_SOCKET, LOOPBACK, NOBODY, SESSION, SOURCE, WHOLE = 1, 2, 3, 4, 8, 16
STATE, ERROR, RX_WAIT, TX_WAIT, LIMIT, TOGETHER = 0, 1, 5, 6, 7, 8
TX_TAIL, TX_HEAD, RX_TAIL, RX_HEAD, CHARGE_TAKEN, READY, CHANNEL_SIZE, CAPTURE_TAIL, CAPTURE_HEAD = 10, 11, 12, 13, 14, 32, 38, 50, 51
LENGTH, KIND_FLAGS, PORTS, SEGMENT, PREFIX, MAPPED, REMOTE = 16, 17, 18, 19, 24, 26, 27

of = lambda socket, steps: bytes([steps[0] | socket << 4]) + steps[1:]
word = lambda number, value, kind=WORD: step(kind, struct.pack(">BI", number, value & 0xFFFFFFFF))
more = lambda number, value, kind=WORD: word(number | 128, value, kind)
race = lambda number, value: word(number, value, RACE)
send = lambda how, length, segment=0: step(SEND, struct.pack(">BHH", how, length, segment))
passes = lambda units=75: step(PASS, bytes([units]))
others = lambda there=3000, back=3000: step(OTHERS, struct.pack(">HH", there, back))
control = lambda what: step(CONTROL, bytes([what]))
half_sent = send(SESSION, 60000) + passes(1)

CHANNEL = {
    "datagrams": b"".join(send(how, 100) + passes() for how in range(32)) + step(RECEIVE),
    "datagrams-of-the-largest-size": send(SESSION, 65507) + send(0, 65507) + send(LOCAL_SOCKET, 65507) + passes(255),
    "segments": send(0, 9000, 1000) + send(LOCAL_SOCKET, 9000, 1000) + send(SESSION, 9000, 1000) + passes(),
    "segments-together": of(1, word(TOGETHER, 1)) + send(LOOPBACK, 9000, 1000) + passes() + step(RECEIVE),
    "tail-not-a-multiple": more(TX_TAIL, 3) + word(READY, 15) + passes(),
    "tail-beyond-the-ring": more(TX_TAIL, 1 << 20) + word(READY, 15) + passes(),
    "tail-back": send(0, 100) + passes() + more(TX_TAIL, -64) + word(READY, 15) + passes(),
    "tail-of-nothing": more(TX_TAIL, 4096) + word(READY, 15) + passes(),
    "head-of-the-engine": send(0, 100) + more(TX_HEAD, 1 << 16) + passes() + send(0, 100) + passes(),
    "receive-indices": of(1, more(RX_TAIL, 7)) + of(1, more(RX_HEAD, -64)) + send(LOOPBACK, 100) + passes(),
    "receive-head-ahead": of(1, word(RX_HEAD, 1 << 30)) + send(LOOPBACK, 100) * 40 + passes(),
    "length-of-4-gigabytes": send(0, 100) + word(LENGTH, 0xFFFFFFFF) + passes(),
    "length-of-65508": send(0, 65507) + word(LENGTH, 65508) + passes(),
    "kind-unknown": send(0, 100) + word(KIND_FLAGS, 77) + passes(),
    "pad-in-the-middle": send(0, 100) * 2 + word(KIND_FLAGS, 2) + passes(),
    "port-0": send(SESSION, 100) + word(PORTS, 0) + passes(),
    "not-mapped": send(SESSION, 100) + word(MAPPED, 1) + passes(),
    "multicast": send(SESSION, 100) + word(REMOTE, 0x010000E0) + passes(),
    "unreachable-host": send(SESSION | NOBODY, 100) + passes(255) + send(NOBODY, 100) + passes(255),
    "every-flag": send(SESSION, 3000) + word(KIND_FLAGS, 0xFFFF0001) + passes(),
    "half-sent-shorter": half_sent + word(LENGTH, 100) + others() + passes(),
    "half-sent-empty": half_sent + word(LENGTH, 0) + others() + passes(),
    "half-sent-longer": half_sent + word(LENGTH, 65000) + others() + passes(),
    "half-sent-in-segments": half_sent + word(SEGMENT, 1000) + others() + passes(),
    "half-sent-elsewhere": half_sent + word(REMOTE, 0x6300000A) + others() + passes(),
    "half-sent-nowhere": half_sent + word(REMOTE, 0x010000E0) + others() + passes(),
    "half-sent-to-port-0": half_sent + word(PORTS, 0) + others() + passes(),
    "half-sent-without-a-session": half_sent + word(KIND_FLAGS, 1) + others() + passes(),
    "half-sent-damaged": half_sent + word(KIND_FLAGS, 77) + others() + passes(),
    "half-sent-closed": half_sent + control(0) + others() + passes(),
    "half-sent-length-races": half_sent + race(LENGTH, 100) + others() + passes(),
    "segments-change-their-size": send(SESSION, 60000, 20000) + passes(1) + word(SEGMENT, 9000) + passes() + word(SEGMENT, 0) + passes(),
    "tail-races": send(0, 1000) * 8 + word(READY, 15) + race(TX_TAIL, 1 << 20),
    "length-races": send(LOCAL_SOCKET, 60000) + race(LENGTH, 0xFFFF) + send(0, 1000) + race(LENGTH, 40),
    "kind-races": send(0, 1000) * 8 + race(KIND_FLAGS, 2),
    "address-races": send(SESSION, 9000) * 4 + race(REMOTE, 0x0100007F),
    "receive-head-races": send(LOCAL_SOCKET | SOURCE, 100) * 20 + of(1, race(RX_HEAD, 1 << 20)),
    "waits": word(RX_WAIT, 1) + word(TX_WAIT, 1) + send(LOOPBACK, 1) + passes() + word(RX_WAIT, 99) + word(TX_WAIT, 2) + passes(),
    "receive-limit": of(1, word(LIMIT, 1)) + send(LOOPBACK, 100) * 3 + of(1, more(CHARGE_TAKEN, -5)) + send(LOOPBACK, 100) + passes(),
    "state-of-the-daemon": word(STATE, 2) + word(ERROR, 99) + send(0, 100) + passes() + control(0) + control(1) + send(0, 1) + passes(),
    "ready-bits-of-nobody": word(READY, 0xFFFFFFFF) + of(1, word(READY + 3, 0xFFFFFFFF)) + passes() + of(2, control(0)) + word(READY, 15) + passes(),
    "head-of-the-channel": word(CHANNEL_SIZE, 0) + word(36, 0) + word(40, 9999) + send(0, 100) + passes() + control(0) + control(1),
    "full-sender": send(LOOPBACK, 60000) * 4 + passes() + of(2, send(LOOPBACK, 60000)) * 4 + passes(255) + step(RECEIVE) + passes(),
    "connected": control(2) + send(0, 100) + passes() + control(3) + send(LOOPBACK, 1) + passes(),
    "attached-again": half_sent + control(9) + others() + send(SESSION, 100) + passes(),
    "capture": control(4) + send(LOOPBACK, 3000) + send(0, 3000) + passes() + word(CAPTURE_TAIL, 64) + word(CAPTURE_HEAD, 0xFFFFFFFF)
    + send(LOOPBACK, 3000) * 4 + passes() + control(5) + send(LOOPBACK, 1) + passes(),
    "everything-zero": step(WRITE, b"\0\x10\0\xff" + bytes(255)) + word(READY, 15) + passes(),
    "everything-one": step(WRITE, b"\0\x10\0\xff" + b"\xff" * 255) + word(READY, 15) + send(0, 10) + passes(),
}

# What a program writes on the control socket (ControlFuzz.swift).
RAW, REQUEST, CONNECT, SOCKET, SCRIBBLE, FLOOD = range(6)
HELLO, MEMORY, OPEN, PEER, CLOSE, STATUS, RELOAD, CAPTURE_ALL = range(1, 9)
UNBOUND, TCP, IPV6, UNIX, PIPE, EVENT, FILE, ITSELF = range(4, 12)
OPEN_PEER, KEEPING, KNOWN, LEAVING = 1, 4, 8, 16
TOKEN, SNAP, RESERVED, DEADLINE, PROGRAM = 24, 50, 52, 56, 64


def request(kind, flags=0, endpoint=0, whose=0, peer=(0, 0), descriptors=(), changes=()):
    return step(REQUEST, bytes([kind, flags, endpoint, whose]), struct.pack(">IH", *peer), bytes([len(descriptors), *descriptors]),
                bytes([len(changes)]), *(bytes(change) for change in changes))


raw = lambda content, descriptors=(): step(RAW, sized(content), bytes([len(descriptors), *descriptors]))
scribble = lambda offset, content: step(SCRIBBLE, struct.pack(">I", offset)[1:], bytes([len(content)]), content)
attached = request(HELLO) + request(MEMORY)
opened_one = attached + request(OPEN, descriptors=[0])

CLIENTS = {
    "nothing": raw(b""),
    "one-byte": raw(b"M"),
    "cut": raw(b"TENM\2\0\1\0" + bytes(119)),
    "too-long": raw(b"TENM\2\0\1\0" + bytes(121)),
    "much-too-long": raw(b"TENM\2\0\1\0" + bytes(3000)),
    "another-magic": request(HELLO, changes=[(0, 0)]),
    "another-version": request(HELLO, changes=[(4, 1)]),
    "reserved": request(HELLO, changes=[(RESERVED, 1)]),
    "program-without-end": request(HELLO, changes=[(PROGRAM + place, 65) for place in range(64)]),
    "program-with-controls": request(HELLO, changes=[(PROGRAM, 27), (PROGRAM + 1, 0xFF)]),
    "every-kind": b"".join(request(kind) + step(CONNECT) for kind in range(12)),
    "every-kind-with-a-descriptor": b"".join(request(kind, descriptors=[0]) + step(CONNECT) for kind in range(12)),
    "open": opened_one,
    "open-twice": opened_one + request(OPEN, descriptors=[0]),
    "open-all": attached + b"".join(request(OPEN, descriptors=[socket]) for socket in range(4)),
    "open-nothing": attached + request(OPEN),
    "open-two": attached + request(OPEN, descriptors=[0, 1]),
    "open-many": attached + request(OPEN, descriptors=[0, 1, 2, 3]),
    "open-others": b"".join(attached + request(OPEN, descriptors=[kind]) for kind in (UNBOUND, TCP, IPV6, UNIX)),
    "open-no-sockets": b"".join(attached + request(OPEN, descriptors=[kind]) for kind in (PIPE, EVENT, FILE, ITSELF)),
    "open-flags": b"".join(attached + request(OPEN, flags, descriptors=[0]) for flags in (OPEN_PEER, 2, KNOWN, 64, 255)),
    "open-peer-not-mapped": attached + request(OPEN, OPEN_PEER, peer=(0x7F000001, 9), descriptors=[0], changes=[(32, 1)]),
    "open-too-late": attached + request(OPEN, descriptors=[0], changes=[(DEADLINE, 1)]),
    "open-of-another-connection": opened_one + of(1, request(HELLO)) + of(1, request(OPEN, whose=3, descriptors=[1])),
    "open-by-token": attached + of(1, request(OPEN, whose=3, descriptors=[1])) + of(1, step(CONNECT)),
    "open-without-token": attached + of(1, request(OPEN, whose=3, descriptors=[1], changes=[(TOKEN, 1)])),
    "open-nobodys-channel": request(OPEN, whose=9, descriptors=[0]),
    "join": opened_one + of(1, attached) + of(1, request(OPEN, descriptors=[0])) + step(CONNECT) + of(1, request(CLOSE)),
    "connect": opened_one + request(PEER, OPEN_PEER, peer=(0x7F000001, 9), descriptors=[0]) + request(PEER, descriptors=[0]),
    "connect-another-socket": opened_one + request(PEER, OPEN_PEER, peer=(0x7F000001, 9), descriptors=[1]),
    "connect-beyond": opened_one + request(PEER, endpoint=255, descriptors=[0], changes=[(19, 255)]),
    "close": opened_one + request(CLOSE) * 2,
    "close-beyond": opened_one + request(CLOSE, changes=[(19, 255)]),
    "close-flags": opened_one + request(CLOSE, 64),
    "close-keeping": opened_one + request(CLOSE, KEEPING) + request(OPEN, descriptors=[0]) + request(CLOSE) + request(CLOSE),
    "close-leaving": opened_one + request(CLOSE, KEEPING | LEAVING) + of(1, attached) + of(1, request(OPEN, descriptors=[0])),
    "close-of-another-connection": opened_one + of(1, request(CLOSE, whose=3)),
    "socket-closed-first": opened_one + step(SOCKET, b"\0") + request(CLOSE),
    "channels": request(HELLO) + request(MEMORY) * 20,
    "statuses": request(STATUS) * 5 + step(CONNECT),
    "reload": request(RELOAD),
    "capture": request(CAPTURE_ALL, changes=[(SNAP, 96)]) + of(1, request(CAPTURE_ALL, changes=[(SNAP, 96)])) + step(CONNECT),
    "capture-of-nothing": request(CAPTURE_ALL),
    "capture-of-a-port": request(CAPTURE_ALL, peer=(0x7F000001, 9), changes=[(SNAP, 255), (SNAP + 1, 255)]),
    "flood-of-hellos": step(FLOOD, bytes([255, HELLO])),
    "flood-of-statuses": step(FLOOD, bytes([255, STATUS])) + request(HELLO),
    "flood-of-channels": step(FLOOD, bytes([40, MEMORY])),
    "flood-of-closes": opened_one + step(FLOOD, bytes([255, CLOSE])),
    "references": opened_one + scribble(4096 + 256 + 4, b"\xff\xff\xff\xff") + request(CLOSE) + of(1, attached)
    + of(1, request(OPEN, descriptors=[0])),
    "token-changed": opened_one + scribble(44, b"\1\2\3\4") + of(1, request(OPEN, whose=3, descriptors=[1])),
    "head-changed": opened_one + scribble(0, b"\xff" * 64) + request(OPEN, descriptors=[1]) + request(CLOSE),
    "rings-unread": opened_one + scribble(0x61080, b"\x40") + scribble(0x61100, b"\xff" * 255) + request(CLOSE, KEEPING | LEAVING)
    + step(CONNECT),
    "blocks-changed": opened_one + scribble(4096, b"\xff" * 255) + request(PEER, descriptors=[0]) + request(CLOSE) + request(STATUS),
}

TARGETS = {"packets": PACKETS, "channel": CHANNEL, "control": CLIENTS}

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in TARGETS[sys.argv[1]].items():
        (directory / name).write_bytes(content)
