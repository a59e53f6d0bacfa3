#!/usr/bin/env python3
"""What UDP sockets do, as a transcript: run on the kernel and under the shim, the two must not differ.

Every case makes its own sockets on 127.0.0.1 and prints what a program can see: return values, errno names, addresses
by role, flags, control messages, readiness. Nothing that may vary between two runs on the kernel is printed.
"""
import ctypes
import ctypes.util
import errno
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

LOCAL = "127.0.0.1"


def say(*words):
    print(*words, flush=True)


def attempt(call, *arguments):
    """The result of a call, or the name of its errno."""
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def udp(bound=True, timeout=5.0):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(timeout)
    if bound:
        s.bind((LOCAL, 0))
    return s


def pair():
    return udp(), udp()


def role(address, **known):
    """The address by the role that the socket with that name plays."""
    for name, s in known.items():
        if s.getsockname() == address:
            return name
    return address


def settle(s, wanted=select.POLLIN):
    """Waits until a datagram is there (delivery need not be instant on either path)."""
    p = select.poll()
    p.register(s, wanted)
    return p.poll(5000) != []


def case_echo():
    a, b = pair()
    say(a.sendto(b"hello", b.getsockname()))
    data, sender = b.recvfrom(100)
    say(data, role(sender, a=a))
    say(b.sendto(b"", sender), a.recvfrom(10)[0])


def case_sizes():
    a, b = pair()
    for size in (0, 1, 63, 64, 65, 1472, 1473, 9000, 65506, 65507):
        payload = bytes(i * 7 & 255 for i in range(size))
        say(size, a.sendto(payload, b.getsockname()), b.recvfrom(70000)[0] == payload)
    say(attempt(a.sendto, b"x" * 65508, b.getsockname()))


def case_truncation():
    a, b = pair()
    a.sendto(b"0123456789", b.getsockname())
    data, _, flags, sender = b.recvmsg(4)
    say(data, flags & socket.MSG_TRUNC != 0, role(sender, a=a))
    a.sendto(b"0123456789", b.getsockname())
    buffer = bytearray(4)
    say(b.recv_into(buffer, 4, socket.MSG_TRUNC), bytes(buffer))


def case_peek():
    a, b = pair()
    a.sendto(b"first", b.getsockname())
    a.sendto(b"second", b.getsockname())
    say(b.recv(100, socket.MSG_PEEK), b.recv(2, socket.MSG_PEEK), b.recv(100), b.recv(100))


def case_nothing_there():
    a = udp()
    a.setblocking(False)
    say(attempt(a.recv, 10), attempt(a.recvfrom, 10), attempt(a.recvmsg, 10))
    b = udp()
    b.settimeout(None)
    say(attempt(b.recv, 10, socket.MSG_DONTWAIT))


def case_receive_timeout():
    a = udp(timeout=None)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50000))
    start = time.monotonic()
    say(attempt(a.recv, 10), 0.04 < time.monotonic() - start < 2)


def case_connected():
    a, b, c = udp(), udp(), udp()
    say(attempt(a.send, b"x"))
    a.connect(b.getsockname())
    say(a.getpeername() == b.getsockname(), a.send(b"to b"), b.recvfrom(10)[0])
    c.sendto(b"from c", a.getsockname())
    b.sendto(b"from b", a.getsockname())
    say(a.recv(100))
    a.setblocking(False)
    say(attempt(a.recv, 100))
    # Connected, and still sending elsewhere.
    say(a.sendto(b"to c", c.getsockname()), c.recvfrom(10)[0])
    a.connect(c.getsockname())
    say(a.getpeername() == c.getsockname(), a.send(b"again"), c.recv(10))


def case_disconnect():
    a, b, c = pair()[0], udp(), udp()
    a.connect(b.getsockname())
    say(a.send(b"1"), b.recv(5))
    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    say(libc.connect(a.fileno(), unspecified, 16))
    say(attempt(a.getpeername), attempt(a.send, b"2"))
    # Dissolving the association may have dropped the address (not the port): bound explicitly, it stays.
    say(a.getsockname()[0])
    c.sendto(b"open again", a.getsockname())
    say(a.recv(100))


def case_arrives_at_once():
    """On one host, what was sent is there when the send returns: seen by every look that does not wait."""
    a, b = pair()
    b.setblocking(False)
    e = select.epoll()
    e.register(b, select.EPOLLIN)
    p = select.poll()
    p.register(b, select.POLLIN)
    missed = [0, 0, 0, 0]
    for i in range(200):
        if i % 50 == 0:
            time.sleep(0.02)
        looks = (lambda: attempt(b.recv, 10, socket.MSG_PEEK) == b"x", lambda: e.poll(0) != [], lambda: p.poll(0) != [],
                 lambda: select.select([b], [], [], 0)[0] != [])
        a.sendto(b"x", b.getsockname())
        missed[i % 4] += not looks[i % 4]()
        settle(b)
        b.recv(10)
    say(missed)


def case_refused():
    a, gone = pair()
    name = gone.getsockname()
    gone.close()
    a.connect(name)
    say(a.send(b"x"))
    say(attempt(a.recv, 10))
    say(a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def case_vectors():
    a, b = pair()
    say(a.sendmsg([b"one ", b"", b"two ", b"three"], [], 0, b.getsockname()))
    buffers = [bytearray(2), bytearray(5), bytearray(100)]
    count, _, flags, _ = b.recvmsg_into(buffers)
    say(count, [bytes(x) for x in buffers[:2]], bytes(buffers[2][: count - 7]), flags)


def case_packet_info():
    a = udp()
    b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    b.settimeout(5)
    b.bind(("0.0.0.0", 0))
    b.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    b.setsockopt(socket.IPPROTO_IP, 12, 1)
    b.setsockopt(socket.IPPROTO_IP, 13, 1)
    a.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
    a.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    a.sendto(b"x", (LOCAL, b.getsockname()[1]))
    data, control, flags, _ = b.recvmsg(10, 512)
    for level, kind, value in control:
        say(level, kind, value.hex())
    data, control, flags, _ = (a.sendto(b"y", (LOCAL, b.getsockname()[1])), *b.recvmsg(10, 20)[1:4])
    say(flags & socket.MSG_CTRUNC != 0, [(level, kind, len(value)) for level, kind, value in control])
    # And as a source address.
    info = struct.pack("I4s4s", 0, socket.inet_aton("127.0.0.1"), b"\0" * 4)
    b.sendmsg([b"z"], [(socket.IPPROTO_IP, 8, info)], 0, a.getsockname())
    say(a.recvfrom(10) == (b"z", (LOCAL, b.getsockname()[1])))


def case_mapped():
    a = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    a.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    a.settimeout(5)
    a.bind(("::", 0))
    b = udp()
    b.sendto(b"four", (LOCAL, a.getsockname()[1]))
    data, sender = a.recvfrom(10)
    say(data, sender[0], sender[1] == b.getsockname()[1], sender[2:])
    say(a.sendto(b"six", sender), b.recvfrom(10) == (b"six", (LOCAL, a.getsockname()[1])))
    c = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    c.connect(("::ffff:127.0.0.1", b.getsockname()[1]))
    say(c.getpeername()[0], c.send(b"connected"), b.recv(20))


def case_poll():
    a, b = pair()
    p = select.poll()
    p.register(b, select.POLLIN)
    p.register(a, select.POLLOUT)
    say([(role_of(fd, a=a, b=b), bits) for fd, bits in p.poll(0)])
    p.unregister(a)
    say(p.poll(20))
    a.sendto(b"x", b.getsockname())
    say([(role_of(fd, a=a, b=b), bits) for fd, bits in p.poll(5000)])
    say([(role_of(fd, a=a, b=b), bits) for fd, bits in p.poll(0)])
    b.recv(10)
    say(p.poll(0))


def role_of(fd, **known):
    for name, s in known.items():
        if s.fileno() == fd:
            return name
    return fd


def case_select():
    a, b = pair()
    r, w = os.pipe()
    say([len(x) for x in select.select([b, r], [], [], 0.02)])
    os.write(w, b"1")
    a.sendto(b"x", b.getsockname())
    settle(b)
    seen = set()
    for _ in range(20):
        seen |= {role_of(getattr(x, "fileno", lambda: x)(), b=b, pipe=os.fdopen(os.dup(r))) if x is b else "pipe"
                 for x in select.select([b, r], [], [], 5)[0]}
    say(sorted(seen))
    say(len(select.select([], [a], [], 5)[1]))
    os.close(r)
    os.close(w)


def case_epoll_level():
    a, b = pair()
    e = select.epoll()
    e.register(b, select.EPOLLIN)
    say(e.poll(0))
    a.sendto(b"1", b.getsockname())
    a.sendto(b"2", b.getsockname())
    say([bits for _, bits in e.poll(5)], [bits for _, bits in e.poll(5)])
    settle(b)
    b.recv(10)
    say([bits for _, bits in e.poll(5)])
    b.recv(10)
    say(e.poll(0), e.poll(0.02))
    e.unregister(b)
    a.sendto(b"3", b.getsockname())
    settle(b)
    say(e.poll(0))
    say(attempt(e.unregister, b), attempt(e.modify, b, select.EPOLLIN))


def case_epoll_reports_once():
    """A socket that is ready stands in one event, however the call learnt of it."""
    a, b, c = udp(), udp(), udp()
    e = select.epoll()
    e.register(b, select.EPOLLIN)
    e.register(c, select.EPOLLIN)
    for pause in (0, 0.03):
        for target in (b, c, b, c):
            t = threading.Timer(pause, lambda: a.sendto(b"x", target.getsockname()))
            t.start()
            say([(role_of(fd, b=b, c=c), bits) for fd, bits in e.poll(5)])
            t.join()
            target.recv(10)


def case_epoll_edge():
    a, b = pair()
    e = select.epoll()
    a.sendto(b"before", b.getsockname())
    settle(b)
    e.register(b, select.EPOLLIN | select.EPOLLET)
    say([bits for _, bits in e.poll(5)])
    say(e.poll(0.02))
    a.sendto(b"more", b.getsockname())
    say([bits for _, bits in e.poll(5)])
    say(e.poll(0.02))
    say(b.recv(10), b.recv(10), e.poll(0.02))


def case_epoll_oneshot():
    a, b = pair()
    e = select.epoll()
    e.register(b, select.EPOLLIN | select.EPOLLONESHOT)
    a.sendto(b"1", b.getsockname())
    say([bits for _, bits in e.poll(5)])
    a.sendto(b"2", b.getsockname())
    settle(b)
    say(e.poll(0.02))
    e.modify(b, select.EPOLLIN | select.EPOLLONESHOT)
    say([bits for _, bits in e.poll(5)])


def case_epoll_out():
    a, b = pair()
    e = select.epoll()
    e.register(a, select.EPOLLOUT | select.EPOLLIN)
    say([bits for _, bits in e.poll(5)])
    b.sendto(b"x", a.getsockname())
    settle(a)
    union = 0
    for _ in range(20):
        for _, bits in e.poll(5):
            union |= bits
    say(union)


def case_nested_epoll():
    a, b = pair()
    inner, outer = select.epoll(), select.epoll()
    inner.register(b, select.EPOLLIN)
    outer.register(inner, select.EPOLLIN)
    say(outer.poll(0))
    for round in range(3):
        a.sendto(b"x", b.getsockname())
        say([bits for _, bits in outer.poll(5)], [bits for _, bits in inner.poll(5)], b.recv(10))
        inner.poll(0)
        say(outer.poll(0.02))


def case_wakes_another_thread():
    a, b = pair()
    for wait in (0.0, 0.05):
        got = []
        t = threading.Thread(target=lambda: got.append(b.recv(10)))
        t.start()
        time.sleep(wait)
        a.sendto(b"wake", b.getsockname())
        t.join(5)
        say(got)


def case_signal_interrupts():
    b = udp(timeout=None)

    class Stop(Exception):
        pass

    def handler(*_):
        raise Stop

    signal.signal(signal.SIGALRM, handler)
    for delay in (0.00002, 0.03):
        try:
            # Again and again: the first may come before the call.
            signal.setitimer(signal.ITIMER_REAL, delay, 0.05)
            b.recv(10)
            say("received?")
        except Stop:
            signal.setitimer(signal.ITIMER_REAL, 0)
            say("interrupted")


def case_fionread():
    import fcntl
    import termios
    a, b = pair()
    a.sendto(b"12345", b.getsockname())
    settle(b)
    value = bytearray(4)
    fcntl.ioctl(b, termios.FIONREAD, value)
    say(struct.unpack("i", value))


def case_dup():
    a, b = pair()
    c = b.dup()
    b.close()
    name = c.getsockname()
    a.sendto(b"through the dup", name)
    say(c.recv(100))
    fd = os.dup(c.fileno())
    c.close()
    a.sendto(b"and its dup", name)
    s = socket.socket(fileno=fd)
    s.settimeout(5)
    say(s.recv(100))


def case_read_write():
    a, b = pair()
    a.connect(b.getsockname())
    b.connect(a.getsockname())
    say(os.write(a.fileno(), b"by write"), os.read(b.fileno(), 100))
    say(os.writev(b.fileno(), [b"by ", b"writev"]))
    x, y = bytearray(3), bytearray(20)
    say(os.readv(a.fileno(), [x, y]), bytes(x), bytes(y[:6]))


def case_fork():
    a, b = pair()
    name = b.getsockname()
    a.sendto(b"before", name)
    pid = os.fork()
    if pid == 0:
        data = b.recv(10)
        a.sendto(b"child saw " + data, name)
        os._exit(0)
    os.waitpid(pid, 0)
    say(b.recv(100))
    a.sendto(b"after", name)
    say(b.recv(100))


def case_child_programs():
    """Programs started with an environment of the program's own making see it, but for what the shim adds of itself."""
    import subprocess
    show = [sys.executable, "-c", "import os; print(sorted(k for k in os.environ if k not in "
            "('LD_PRELOAD', 'MACHNET_SOCKET', 'LC_CTYPE', 'MACHNET_LOG')))"]
    for environment in ({}, {"A": "1"}, {"A": "1", "LD_PRELOAD": ""}):
        say(subprocess.run(show, env=environment, capture_output=True, text=True).stdout.strip())
    a, b = pair()
    child = subprocess.Popen(
        [sys.executable, "-c", "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
         "s.sendto(b'from a child', ('127.0.0.1', int(sys.argv[1])))", str(b.getsockname()[1])], env={})
    say(b.recv(100), child.wait())


def case_many_messages():
    """sendmmsg and recvmmsg, which Python does not have."""
    libc = ctypes.CDLL(None, use_errno=True)

    class IOVec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    class MsgHdr(ctypes.Structure):
        _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(IOVec)),
                    ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                    ("flags", ctypes.c_int)]

    class MMsgHdr(ctypes.Structure):
        _fields_ = [("header", MsgHdr), ("length", ctypes.c_uint)]

    a, b = pair()
    a.connect(b.getsockname())
    buffers = [ctypes.create_string_buffer(b"message %d" % i, 9) for i in range(5)]
    vectors = [IOVec(ctypes.addressof(x), 9) for x in buffers]
    messages = (MMsgHdr * 5)(*[MMsgHdr(MsgHdr(iov=ctypes.pointer(v), iovlen=1)) for v in vectors])
    say(libc.sendmmsg(a.fileno(), messages, 5, 0), [m.length for m in messages])
    room = [ctypes.create_string_buffer(32) for _ in range(8)]
    names = [ctypes.create_string_buffer(32) for _ in range(8)]
    vectors = [IOVec(ctypes.addressof(x), 32) for x in room]
    messages = (MMsgHdr * 8)(*[
        MMsgHdr(MsgHdr(name=ctypes.addressof(n), namelen=32, iov=ctypes.pointer(v), iovlen=1, flags=77))
        for n, v in zip(names, vectors)])
    got = 0
    while got < 5:
        settle(b)
        got += libc.recvmmsg(b.fileno(), ctypes.byref(messages, got * ctypes.sizeof(MMsgHdr)), 8 - got,
                             0x10000 | socket.MSG_DONTWAIT, None)
    say(got, [(m.length, m.header.namelen, m.header.flags) for m in messages[:5]], [x.value for x in room[:5]])
    say(libc.recvmmsg(b.fileno(), messages, 8, socket.MSG_DONTWAIT, None), errno.errorcode[ctypes.get_errno()])


def case_options_survive():
    a = udp()
    say(a.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM,
        a.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), a.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN),
        a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), attempt(a.getsockopt, socket.SOL_SOCKET, 9999),
        attempt(a.setsockopt, socket.SOL_SOCKET, 9999, 1))


def case_bind_conflicts():
    a = udp()
    b = udp(bound=False)
    say(attempt(b.bind, a.getsockname()), attempt(a.bind, (LOCAL, 0)))
    say(attempt(b.bind, ("203.0.113.7", 0)))


def case_reuseport():
    a = udp(bound=False)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    a.bind((LOCAL, 0))
    b = udp(bound=False)
    b.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    b.bind(a.getsockname())
    a.setblocking(False)
    b.setblocking(False)
    senders = [udp() for _ in range(64)]
    for s in senders:
        s.sendto(b"x", a.getsockname())
    got = [0, 0]
    deadline = time.monotonic() + 5
    while sum(got) < 64 and time.monotonic() < deadline:
        for i, s in enumerate((a, b)):
            if attempt(s.recv, 10) == b"x":
                got[i] += 1
    say(sum(got), min(got) > 0)


def case_shutdown():
    a, b = pair()
    a.connect(b.getsockname())
    say(attempt(a.shutdown, socket.SHUT_WR), attempt(a.send, b"x"))
    b.sendto(b"still open to read", a.getsockname())
    say(a.recv(100))
    c, d = pair()
    c.connect(d.getsockname())
    c.settimeout(None)
    say(attempt(c.shutdown, socket.SHUT_RD), attempt(c.recv, 10, socket.MSG_DONTWAIT), c.recv(10))


def case_order():
    a, b = pair()
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    total = 0
    for burst in range(50):
        for i in range(20):
            a.sendto(struct.pack("I", total + i), b.getsockname())
        for i in range(20):
            if struct.unpack("I", b.recv(10))[0] != total + i:
                say("out of order at", total + i)
        total += 20
    say(total)


def main():
    cases = {name[5:]: call for name, call in globals().items() if name.startswith("case_")}
    for name in sys.argv[1:] or cases:
        say(f"== {name}")
        cases[name]()


main()
