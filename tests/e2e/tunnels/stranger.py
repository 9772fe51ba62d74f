"""Somebody who is up to no good: raw bytes, and a user plane driven by hand."""

from __future__ import annotations

import asyncio
import random
import socket

from opentsm.lab.waiting import until
from opentsm.types import SocketAddress, Tsid
from opentsm.userplane._core import ControlMessage, StreamReady, TunnelClosed
from opentsm.userplane.plane import Plane, TunnelEvent
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import ConfigurationRequest, ConfigurationResponse, Message


class RawStream:
    """One TLS (or plain) stream whose every byte the test chooses."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.tunnel = 0
        self.binding = b""
        self.messages: list[Message] = []
        self.closed = ""

    async def open(self, server: SocketAddress, *, tls: bool = True) -> None:
        profile = self.plane.core.client_tls(verify=False) if tls else None
        outer = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET)
        outer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(outer, server)
        self.tunnel = self.plane.core.attach_stream(
            outer.detach(), tls_profile=profile, server_name="server.test"
        )
        self.plane.watch_tunnel(self.tunnel, self._on_event)
        await until(lambda: self.binding or self.closed, what="TLS to be up")

    def _on_event(self, event: TunnelEvent) -> None:
        if isinstance(event, StreamReady):
            self.binding = event.resume_binding
        elif isinstance(event, ControlMessage):
            self.messages.append(decode_untrusted(event.data))
        elif isinstance(event, TunnelClosed):
            self.closed = event.reason

    def send(self, data: bytes) -> None:
        self.plane.core.send_control(self.tunnel, data)

    async def configure(self, user: str, password: str) -> ConfigurationResponse:
        """Set a tunnel up as an honest client does."""
        request = ConfigurationRequest(
            tsid=Tsid(2**64 - 1), sequence=1, username=user, password=password.encode()
        )
        self.send(encode(request))
        await until(lambda: self.messages, what="a Configuration Response")
        answer = self.messages[0]
        assert isinstance(answer, ConfigurationResponse)
        return answer


def garbage(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def throw_at_tcp(server: SocketAddress, data: bytes) -> bytes:
    """Send bytes without any TLS; what came back until the server closed."""
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def throw_at_udp(server: SocketAddress, datagrams: list[bytes]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outer:
        for datagram in datagrams:
            outer.sendto(datagram, server)
