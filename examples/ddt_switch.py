"""A test call that is moved to the datagram tunnel in mid-call, and back. Nothing is lost on the way.

python ddt_switch.py tls://host:443 ca.pem [user password]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import opentsm
from opentsm import PathMode
from opentsm.client.testcall import TestCall, echo_address


def tell(notification: opentsm.notifications.Notification, call_name: Any) -> None:
    print(f"[{call_name}] {notification.kind}")


async def main(server: str, ca: str, username: str | None = None, password: str | None = None) -> None:
    async with opentsm.connect(server, ca=ca, username=username, password=password) as tunnel:
        tunnel.on_notification(tell, "call 1")  # "call 1" is the opaque value: it comes back with each one
        sock = tunnel.socket()
        sock.bind()
        call = TestCall(sock, echo_address(tunnel))
        talking = asyncio.ensure_future(call.run(seconds=3))

        await asyncio.sleep(1)
        sock.setsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_TRANSPORT, PathMode.DATAGRAM)
        await tunnel.wait_ddt_enabled(sock)  # until then the media stays on the stream
        await asyncio.sleep(1)
        sock.setsockopt(opentsm.SOL_TSM, opentsm.SO_TSM_TRANSPORT, PathMode.STREAM)

        await talking
        for path, leg in call.legs.items():
            print(f"{path.name.lower()}: {leg.sent} sent, {leg.received} echoed, {leg.lost} lost")
        print(f"{call.duplicates} duplicated")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
