"""UDP echo with blocking sockets.

    blocking_echo.py server ADDRESS PORT
    blocking_echo.py client ADDRESS PORT COUNT SIZE,SIZE,... [ATTEMPTS SECONDS]

The client sends COUNT datagrams of the sizes in turn, each until its very bytes come back (at most ATTEMPTS times,
10 by default, SECONDS apart, 1 by default), and prints `ok COUNT`. The echo programs in the other languages do the same.
"""

import socket
import sys


def payload(number, size):
    head = number.to_bytes(4, "big")
    return (head + bytes((number + i) % 251 for i in range(max(0, size - 4))))[:size]


def serve(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            data, peer = sock.recvfrom(65535)
            sock.sendto(data, peer)


def ask(address, port, count, sizes, attempts=10, seconds=1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        for number in range(count):
            sent = payload(number, sizes[number % len(sizes)])
            for _ in range(attempts):
                sock.sendto(sent, (address, port))
                try:
                    while True:
                        data, peer = sock.recvfrom(65535)
                        if data == sent and peer == (address, port):
                            break
                    break
                except TimeoutError:
                    continue
            else:
                sys.exit(f"no echo of datagram {number}, {len(sent)} bytes")
    print(f"ok {count}")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(size) for size in sys.argv[5].split(",")],
            *(int(word) for word in sys.argv[6:8]))
