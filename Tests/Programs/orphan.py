"""A socket ends with the forked child that held its last descriptor. Says its port, and goes on sending there for 20 s."""
import os
import socket
import time

shared = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
shared.bind(("127.0.0.1", 0))
name = shared.getsockname()
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(b"in use", name)
print(shared.recv(100).decode())

hold, release = os.pipe()
child = os.fork()
if child == 0:
    os.close(release)
    os.read(hold, 1)
    os._exit(0)
shared.close()
os.close(release)
os.waitpid(child, 0)
print("port", name[1], flush=True)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    sender.sendto(b"arrived", name)
    time.sleep(0.02)
