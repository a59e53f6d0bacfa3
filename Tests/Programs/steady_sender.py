"""Sends a numbered datagram to ADDRESS PORT and waits for its echo, without end; a lost one is sent again.

Prints a line with the number of echoes after each: steady_sender.py ADDRESS PORT [connected]
"""

import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(0.2)
    peer = (sys.argv[1], int(sys.argv[2]))
    connected = sys.argv[3:] == ["connected"]
    if connected:
        sock.bind(("127.0.0.1", 0))
        sock.connect(peer)
    number = 0
    while True:
        try:
            if connected:
                sock.send(str(number).encode())
            else:
                sock.sendto(str(number).encode(), peer)
            if sock.recv(2048) == str(number).encode():
                number += 1
                print(number, flush=True)
        except (TimeoutError, ConnectionRefusedError):
            pass
