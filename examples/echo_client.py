"""A datagram through the tunnel to the server's echo, and back.

python echo_client.py tls://host:443 ca.pem [user password]
"""

from __future__ import annotations

import asyncio
import sys

import opentsm
from opentsm.client.testcall import echo_address


async def main(server: str, ca: str, username: str | None = None, password: str | None = None) -> None:
    async with opentsm.connect(server, ca=ca, username=username, password=password) as tunnel:
        print(f"inner address {tunnel.inner_address}, seen as {tunnel.observed_address}")
        async with tunnel.socket() as sock:
            await sock.sendto(b"hello", echo_address(tunnel))
            data, source = await sock.recvfrom()
            print(f"{data.decode()!r} came back from {source[0]} port {source[1]}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
