"""For libraries that make their own sockets: the running loop makes inner ones for inner addresses.

asyncio libraries for SIP and RTP call ``loop.create_datagram_endpoint`` themselves. While a tunnel is lent to
the loop, a local address that is the tunnel's gives an inner socket, and every other one what it always gave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar

from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.tunnel import Tunnel
from opentsm.types import PathMode

P = TypeVar("P", bound=asyncio.DatagramProtocol)


@contextmanager
def inner_endpoints(
    tunnel: Tunnel, *, mode: PathMode = PathMode.STREAM
) -> Iterator[list[TunnelDatagramTransport]]:
    """Lend the tunnel to the running event loop for as long as the ``with`` block lasts.

    Args:
        tunnel: several may be lent one inside the other; each serves its own addresses.
        mode: the transport switch that inner sockets begin with.

    Returns:
        The inner transports that were made, in their order: their switches may be turned at any time. They
        live on after the block.

    Raises:
        TypeError: this event loop cannot be lent to (asyncio's and uvloop's can).
    """
    loop = asyncio.get_running_loop()
    before = loop.create_datagram_endpoint
    made: list[TunnelDatagramTransport] = []

    async def create_datagram_endpoint(
        protocol_factory: Callable[[], P],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        **options: Any,
    ) -> tuple[Any, P]:
        if not _is_inner(tunnel, local_addr):
            return await before(protocol_factory, local_addr, remote_addr, **options)
        transport, protocol = await tunnel.create_datagram_endpoint(
            protocol_factory, local_addr, remote_addr, mode=mode
        )
        made.append(transport)
        return transport, protocol

    _replace(loop, create_datagram_endpoint)
    try:
        yield made
    finally:
        _replace(loop, before)


def _is_inner(tunnel: Tunnel, local: tuple[str, int] | None) -> bool:
    try:
        return local is not None and ip_address(local[0]) in tunnel.inner_addresses
    except ValueError:  # a name, or a wildcard
        return False


def _replace(loop: asyncio.AbstractEventLoop, function: Any) -> None:
    try:
        loop.create_datagram_endpoint = function  # type: ignore[method-assign]
    except AttributeError as error:
        raise TypeError(f"an event loop of {type(loop)} cannot be lent a tunnel") from error
