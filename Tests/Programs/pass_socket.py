"""Passes a UDP socket that is in use to another process (SCM_RIGHTS): pass_socket.py shimmed|plain.

The receiver is started with this process's environment, or without LD_PRELOAD. Prints what either side gets.
"""
import os
import socket
import subprocess
import sys

COUNT = 200


def receiver():
    channel = socket.socket(fileno=int(sys.argv[2]))
    _, (fd,), _, _ = socket.recv_fds(channel, 10, 1)
    shared = socket.socket(fileno=fd)
    shared.settimeout(5)
    channel.send(b"has it")
    numbers = [int(shared.recv(100)) for _ in range(COUNT)]
    channel.send(b"in order" if numbers == list(range(COUNT)) else repr(numbers).encode()[:200])
    # The other side has closed its descriptor by now.
    assert channel.recv(100) == b"closed"
    channel.send(shared.recv(100))


def main():
    shared = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    shared.bind(("127.0.0.1", 0))
    name = shared.getsockname()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(10):
        sender.sendto(b"in use", name)
        shared.recv(100)
    for number in range(3):
        sender.sendto(b"queued %d" % number, name)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ)
    if sys.argv[1] == "plain":
        environment.pop("LD_PRELOAD", None)
    child = subprocess.Popen(
        [sys.executable, __file__, "receiver", str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    # What is queued would be the receiver's as well: it is taken before.
    print([shared.recv(100).decode() for _ in range(2)])
    # One stays in the queue, and is the first that is found.
    socket.send_fds(ours, [b"socket"], [shared.fileno()])
    print(shared.recv(100).decode(), ours.recv(100).decode())
    for number in range(COUNT):
        sender.sendto(b"%d" % number, name)
    print(ours.recv(1000).decode())
    shared.close()
    sender.sendto(b"after the close", name)
    ours.send(b"closed")
    print(ours.recv(1000).decode())
    print("exit status", child.wait())


receiver() if sys.argv[1] == "receiver" else main()
