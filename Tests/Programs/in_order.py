"""A socket of this program that is sent to, and not read, while the daemon goes and comes back. Says whether all arrived in order.

A line on standard input says that it has happened.
"""
import select
import socket
import sys

receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("127.0.0.1", 0))
receiver.settimeout(5)
sent = 0
received = []


def send():
    global sent
    for sent in range(sent + 1, sent + 101):
        sender.sendto(b"%d" % sent, receiver.getsockname())
    print("sent", sent, flush=True)


def receive(count):
    for _ in range(count):
        received.append(int(receiver.recv(100)))


send()
input()  # the daemon is gone
send()
input()  # another one is there
receive(150)
# Sockets come back by calls.
while not select.select([sys.stdin], [], [], 0.02)[0]:
    receiver.recv(100, socket.MSG_PEEK)
input()
send()
receive(150)
print("in order" if received == list(range(1, 301)) else received, flush=True)
