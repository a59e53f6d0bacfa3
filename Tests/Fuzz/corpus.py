#!/usr/bin/env python3
"""Writes the fuzzer's first inputs into a directory: packets by name, in the format of Fuzz.swift.

    Tests/Fuzz/corpus.py DIRECTORY
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

INPUTS = {
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

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in INPUTS.items():
        (directory / name).write_bytes(content)
