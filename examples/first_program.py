"""Voice-like packets to the server's echo: by the stream, then, on the same socket, by the datagram tunnel.

python first_program.py tls://127.0.0.1:4443 first-server/ca.pem
"""

import asyncio
import sys
import time

import opentsm


class Voice(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.trips: list[float] = []
        self.all_back = asyncio.Event()

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        self.trips.append(time.monotonic() - float(data))
        if len(self.trips) == 50:
            self.all_back.set()


async def talk(transport: opentsm.TunnelDatagramTransport, voice: Voice) -> None:
    voice.trips.clear()
    voice.all_back.clear()
    for _ in range(50):
        transport.sendto(f"{time.monotonic()}".encode())
        await asyncio.sleep(0.02)
    await voice.all_back.wait()
    path, median = transport.path.name.lower(), sorted(voice.trips)[25]
    print(f"50 packets there and back by the {path} tunnel, {1000 * median:.1f} ms")


async def main(server: str, ca: str) -> None:
    async with opentsm.connect(server, ca=ca, username="alice", password="secret") as tunnel:
        print(f"inside the tunnel I am {tunnel.inner_address}")
        transport, voice = await tunnel.create_datagram_endpoint(Voice, remote_addr=("10.64.0.1", 7))
        await talk(transport, voice)
        transport.set_mode(
            opentsm.PathMode.DATAGRAM
        )  # in mid-call: the address stays, and so does the socket
        await tunnel.wait_ddt_enabled(transport)
        await talk(transport, voice)


asyncio.run(main(*sys.argv[1:]))
