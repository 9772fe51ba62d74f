"""A TCP echo for tests: `python tcp_echo.py ADDRESS PORT`. Ends with the host it runs in."""

from __future__ import annotations

import asyncio
import sys

from opentsm.server.echo import EchoStreams


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoStreams(), sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
