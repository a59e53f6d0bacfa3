"""Passes a UDP socket that is in use to another process (SCM_RIGHTS), by a Unix socket at PATH.

  pass_socket.py receiver PATH | sender PATH

Prints what either side gets.
"""
import os
import socket
import sys

COUNT = 200


def receiver(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # It is there when it can be connected to.
    listener.bind(path + ".new")
    listener.listen(1)
    os.rename(path + ".new", path)
    channel, _ = listener.accept()
    _, (fd,), _, _ = socket.recv_fds(channel, 10, 1)
    shared = socket.socket(fileno=fd)
    shared.settimeout(5)
    channel.send(b"has it")
    # On the kernel what is queued would be ours as well.
    assert channel.recv(100) == b"go on"
    numbers = [int(shared.recv(100)) for _ in range(COUNT)]
    channel.send(b"in order" if numbers == list(range(COUNT)) else repr(numbers).encode()[:200])
    # The other side has closed its descriptor by now.
    assert channel.recv(100) == b"closed"
    channel.send(shared.recv(100))


def sender(path):
    shared = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    shared.bind(("127.0.0.1", 0))
    name = shared.getsockname()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(10):
        sender.sendto(b"in use", name)
        shared.recv(100)
    for number in range(3):
        sender.sendto(b"queued %d" % number, name)

    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(path)
    # One is left when the socket goes.
    print([shared.recv(100).decode() for _ in range(2)])
    socket.send_fds(channel, [b"socket"], [shared.fileno()])
    print(shared.recv(100).decode(), channel.recv(100).decode())
    channel.send(b"go on")
    for number in range(COUNT):
        sender.sendto(b"%d" % number, name)
    print(channel.recv(1000).decode())
    shared.close()
    sender.sendto(b"after the close", name)
    channel.send(b"closed")
    print(channel.recv(1000).decode())


{"receiver": receiver, "sender": sender}[sys.argv[1]](sys.argv[2])
