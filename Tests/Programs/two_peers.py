"""One socket, two peers: two_peers.py ADDRESS:PORT ADDRESS:PORT COUNT

Sends COUNT datagrams to each in turn from one unconnected socket, waits for each echo with poll, and prints `ok COUNT`.
"""

import select
import socket
import sys

peers = [(text.split(":")[0], int(text.split(":")[1])) for text in sys.argv[1:3]]
count = int(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    for number in range(count):
        for peer in peers:
            sent = f"{number} to {peer[1]}".encode()
            for _ in range(10):
                sock.sendto(sent, peer)
                if poll.poll(1000) and sock.recvfrom(2048) == (sent, peer):
                    break
            else:
                sys.exit(f"no echo of {number} from {peer}")
    print(f"ok {count}", flush=True)
    sys.stdin.read()  # stays, so that its socket can be looked at
