"""A tunnel for programs that know nothing of it: the life of ``opentsm up`` and of ``opentsm run``.

Both are one tunnel behind one TUN device. They differ in whose network is changed: this machine's (``host``),
or that of a namespace made for one program (``keeper``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from opentsm.client.address import parse_servers
from opentsm.client.control import answering
from opentsm.client.host import HostNetwork, HostOptions, outer_addresses
from opentsm.client.hostmedia import MediaOptions
from opentsm.client.keeper import Keeper
from opentsm.client.notifications import (
    NetworkChanged,
    Notification,
    TunnelLost,
    TunnelResumed,
    TunnelUp,
)
from opentsm.client.proxy import parse_proxy
from opentsm.client.tun import TunDevice, open_device
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import PlatformError, TunnelClosedError
from opentsm.protocol.actions import Configuration
from opentsm.tasks import cancel, spawn
from opentsm.types import IpAddress

FOLLOW_EVERY: Final = 2.0
"""Seconds between looks at this machine's routes while the tunnel is lost: as quick as its own attempts."""

Stage = Callable[[Tunnel, TunDevice], None]
"""Told once that everything is up."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reach:
    """How the server is reached.

    Args:
        servers: addresses, as for ``connect``.
        options: further arguments of ``connect``; ``proxy`` as text.
        media: where media goes that is found on the device, and what the user says of it.
    """

    servers: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    media: MediaOptions = field(default_factory=MediaOptions)


async def up(reach: Reach, options: HostOptions, stage: Stage) -> None:
    """Tunnel for the whole machine, until cancelled; then all is as it was before.

    Raises:
        PlatformError: not root, no TUN device, a network in the way.
        TunnelError: there is no tunnel, or no longer.
    """
    check_root(os.geteuid())
    outer = await look_up_outer(reach)
    device = TunDevice(open_device(options.name), reach.media)
    with contextlib.closing(device):
        network = HostNetwork(options, outer)
        try:
            async with connect(reach.servers, **reach.options, tun=device) as tunnel:
                await asyncio.to_thread(network.apply, tunnel.configuration)
                async with (
                    _following(tunnel, network.apply, network.follow),
                    answering(options.name, tunnel, device),
                ):
                    stage(tunnel, device)
                    raise TunnelClosedError(f"the tunnel is closed: {await tunnel.wait_closed()}")
        finally:
            # Also when cancelled: a thread that has begun is waited for.
            await asyncio.shield(asyncio.to_thread(network.undo))


async def run(reach: Reach, keeper: Keeper, *, dns: bool) -> int:
    """Run the keeper's program in its namespace until it ends; its exit code.

    A tunnel that is lost for good ends the program, for it has no other way out.

    Raises:
        PlatformError: the namespace cannot be set up.
        TunnelError: there is no tunnel to begin with.
    """
    device = TunDevice(keeper.tun, reach.media)
    with contextlib.closing(device):
        async with connect(reach.servers, **reach.options, tun=device) as tunnel:

            def apply(configuration: Configuration) -> None:
                keeper.configure(configuration, dns=dns)

            await asyncio.to_thread(apply, tunnel.configuration)
            async with _following(tunnel, apply, None), answering(keeper.name, tunnel, device):
                return await _program(tunnel, keeper)


async def _program(tunnel: Tunnel, keeper: Keeper) -> int:
    """Start the program and pass signals on to it. Ctrl-C is its affair: the terminal sends it there, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = await asyncio.to_thread(keeper.execute)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _send, pid, number)
    watching = spawn("tunnel end", _end_with_tunnel(tunnel, pid))
    try:
        return await asyncio.to_thread(keeper.wait)
    finally:
        await cancel(watching)


async def _end_with_tunnel(tunnel: Tunnel, pid: int) -> None:
    reason = await tunnel.wait_closed()
    _log.error("the tunnel is closed, and the program has no other way out: it ends", reason=reason)
    _send(pid, signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# -- what both need ---------------------------------------------------------------------------------------


def check_root(effective: int) -> None:
    """Only root may change this machine's network.

    Raises:
        PlatformError: says what else there is.
    """
    if effective != 0:
        raise PlatformError(
            "a tunnel for the whole machine needs root: put `sudo` before the command. "
            "Without root, one program can have it: `opentsm run URL -- PROGRAM`"
        )


async def look_up_outer(reach: Reach) -> tuple[IpAddress, ...]:
    """Addresses of the servers, and of the proxy, from outside; names that are not known have none."""
    loop = asyncio.get_running_loop()
    hosts = [server.host for server in parse_servers(list(reach.servers))]
    if (proxy := reach.options.get("proxy")) is not None:
        hosts.append(parse_proxy(proxy).host)
    found: list[str] = []
    for host in hosts:
        with contextlib.suppress(OSError):
            found += [str(row[4][0]) for row in await loop.getaddrinfo(host, None)]
    return outer_addresses(found)


@asynccontextmanager
async def _following(
    tunnel: Tunnel,
    apply: Callable[[Configuration], None],
    lost: Callable[[], None] | None,
) -> AsyncIterator[None]:
    """Have the network follow the tunnel: another address after a refused resume, another way outside."""
    news: asyncio.Queue[Notification] = asyncio.Queue()
    kinds = (TunnelUp, TunnelLost, TunnelResumed, NetworkChanged)
    listening = tunnel.on_notification(lambda one, _: news.put_nowait(one), kinds=kinds)
    task = spawn("network follows the tunnel", _follow(tunnel, news, apply, lost))
    try:
        yield
    finally:
        listening.cancel()
        await cancel(task)


async def _follow(
    tunnel: Tunnel,
    news: asyncio.Queue[Notification],
    apply: Callable[[Configuration], None],
    lost: Callable[[], None] | None,
) -> None:
    away = False
    while True:
        try:
            async with asyncio.timeout(FOLLOW_EVERY if away and lost is not None else None):
                event = await news.get()
        except TimeoutError:
            if lost is not None:
                await _do(lost)
            continue
        if isinstance(event, NetworkChanged):
            # The tunnel's own packets need their way outside before a new connection can be tried.
            if lost is not None:
                await _do(lost)
            continue
        away = isinstance(event, TunnelLost)
        if isinstance(event, TunnelUp):
            shown = ", ".join(map(str, event.configuration.lease.addresses))
            _log.info("the tunnel is up", addresses=shown, new_address=event.address_changed)
            await _do(lambda configuration=event.configuration: apply(configuration))  # type: ignore[misc]
        elif isinstance(event, TunnelLost):
            _log.warning("the tunnel is lost; coming back", reason=event.reason)
        else:
            _log.info("the tunnel is back", addresses=", ".join(map(str, tunnel.inner_addresses)))


async def _do(work: Callable[[], None]) -> None:
    """What fails now may work with the next change; the tunnel goes on."""
    try:
        await asyncio.to_thread(work)
    except PlatformError as error:
        _log.error("the network could not be changed", error=str(error))


async def until_signal(work: Any, numbers: Sequence[int]) -> None:
    """Do the work until it ends, or until one of these signals comes; then it is cancelled and waited for."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    task = spawn("work", work, on_failure=lambda *_: None)  # it is awaited here
    waiting = spawn("signal", stop.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await cancel(task)
        else:
            await task
    finally:
        await cancel(task, waiting)
        for number in numbers:
            loop.remove_signal_handler(number)
