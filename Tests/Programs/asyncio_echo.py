"""UDP echo with asyncio's datagram endpoints; used as blocking_echo.py."""

import asyncio
import sys

from blocking_echo import payload


class Server(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.transport.sendto(data, peer)


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()

    def datagram_received(self, data, peer):
        self.received.put_nowait(data)

    async def echo_of(self, wanted):
        while await self.received.get() != wanted:
            pass


async def serve(address, port):
    await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=(address, port))
    await asyncio.Event().wait()


async def ask(address, port, count, sizes):
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(Client, remote_addr=(address, port))
    for number in range(count):
        sent = payload(number, sizes[number % len(sizes)])
        for _ in range(10):
            transport.sendto(sent)
            try:
                await asyncio.wait_for(client.echo_of(sent), 1.0)
                break
            except asyncio.TimeoutError:
                continue
        else:
            sys.exit(f"no echo of datagram {number}, {len(sent)} bytes")
    transport.close()
    print(f"ok {count}")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(serve(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(size) for size in sys.argv[5].split(",")]))
