"""The calls. Numbers in, numbers out; ``runtime`` does the work."""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from socket import AF_UNSPEC, SOCK_DGRAM, SOL_SOCKET
from typing import Any, Final

from opentsm.client.sockets import (
    SO_TSM_CODING,
    SO_TSM_PATH,
    SO_TSM_REDUNDANCY,
    SO_TSM_TRANSPORT,
    SOL_TSM,
    InnerSocket,
)
from opentsm.client.stream_sockets import InnerStreamSocket
from opentsm.errors import OpenTsmError
from opentsm.tsc.notify import KINDS, TscCallback
from opentsm.tsc.runtime import AnySocket, Runtime, TscConfig
from opentsm.types import PathMode, SocketAddress
from opentsm.userplane.tcp import BACKLOG

TSC_SO_DDT: Final = 1
"""Option: 1 puts the socket on the dynamic datagram tunnel, 0 back on the stream tunnel."""

TSC_SO_TRANSPORT: Final = 2
"""Option: the whole switch; 0 stream, 1 datagram, 2 auto."""

TSC_SO_PATH: Final = 3
"""Option, to be read only: the path in force; 0 stream, 1 datagram."""

TSC_SO_REDUNDANCY: Final = 4
"""Option: media of the socket's whole tunnel on several streams; 0 off, 0x12 to 0x14 fan-out over 2 to
4, 0x22 to 0x24 load-balance over 2 to 4."""

TSC_SO_CODING: Final = 5
"""Option: redundancy on the DDT of the socket's whole tunnel: 0 to 2 earlier frames with each, 15 by measured
loss; plus 0x10 for FEC, plus 0x20 for header compression (0x3F: all of it, as it helps)."""

_LEVELS: Final = (SOL_SOCKET, SOL_TSM)
_lock: Final = threading.Lock()
_runtime: list[Runtime] = []


def tsc_init() -> int:
    """Start the library; 0. Other calls do so by themselves."""
    _the_runtime()
    return 0


def tsc_shutdown() -> int:
    """Delete every tunnel and end the library's threads; 0. It may be started again."""
    with _lock:
        runtime = _runtime.pop() if _runtime else None
    if runtime is not None:
        runtime.stop()
    return 0


# -- tunnels ----------------------------------------------------------------------------------------------


def tsc_new_tunnel(servers: str | Sequence[str], **options: Any) -> int:
    """Make a tunnel; its handle, a positive number.

    Args:
        servers: one address or several, tried in order, as for ``opentsm.connect``.
        options: ``username``, ``password``, ``ca``, ...: all those of ``opentsm.connect``.

    Raises:
        ConfigError, ConnectError, RefusedError: as ``opentsm.connect``.
    """
    runtime = _the_runtime()
    return runtime.run(runtime.open_tunnel(servers, options))


def tsc_delete_tunnel(handle: int) -> int:
    """Release the tunnel and close its sockets; 0, or 1 if there is none of that handle."""
    runtime = _the_runtime()
    return 0 if runtime.run(runtime.close_tunnel(handle)) else 1


def tsc_get_config(handle: int) -> TscConfig | None:
    """What the server configured; None if there is no such tunnel."""
    runtime = _the_runtime()
    return runtime.run(runtime.config(handle))


# -- sockets ----------------------------------------------------------------------------------------------


def tsc_socket(handle: int, family: int = AF_UNSPEC, type: int = SOCK_DGRAM) -> int:
    """A UDP socket inside the tunnel, or (SOCK_STREAM) a TCP one; its descriptor, or -1."""
    runtime = _the_runtime()
    return _number(runtime, runtime.open_socket(handle, family, type))


def tsc_bind(fd: int, address: SocketAddress) -> int:
    """Bind to an inner address (``""``: the tunnel's) and port (0: a free one); 0, or -1.

    With the DDT option set, this is what sends the Service Request to the server.
    """
    return _zero(fd, lambda inner: inner.bind(address))


def tsc_connect(fd: int, address: SocketAddress) -> int:
    """Set the far end; a TCP socket connects to it, and the call waits for that. 0, or -1."""

    async def connect(inner: AnySocket) -> int:
        if isinstance(inner, InnerSocket):
            inner.connect(address)
        else:
            await inner.connect(address)
        return 0

    return _with(fd, connect)


def tsc_listen(fd: int, backlog: int = BACKLOG) -> int:
    """Have a TCP socket accept connections where ``tsc_bind`` said; 0, or -1."""
    return _zero(fd, lambda inner: _stream(inner).listen(backlog))


def tsc_accept(fd: int, timeout: float | None = None) -> tuple[int, SocketAddress] | None:
    """The next connection of a listening TCP socket: its descriptor, and who made it.

    Args:
        timeout: seconds to wait; None: for ever.

    Returns:
        None when none came in time, or none will come.
    """
    runtime = _the_runtime()
    entry = runtime.sockets.get(fd)
    if entry is None:
        return None
    handle, listening = entry.handle, entry.inner

    async def accept() -> tuple[int, SocketAddress]:
        async with asyncio.timeout(timeout):
            made, peer = await _stream(listening).accept()
        return runtime.add_socket(handle, made), peer

    try:
        return runtime.run(accept())
    except (OpenTsmError, OSError):
        return None


def tsc_send(fd: int, data: bytes) -> int:
    """Send to the far end; the length sent, or -1. TCP: everything, waiting while the far end is behind."""

    async def send(inner: AnySocket) -> int:
        return await (inner.sendto(data) if isinstance(inner, InnerSocket) else inner.send(data))

    return _with(fd, send)


def tsc_recv(fd: int, size: int = 65535, timeout: float | None = None) -> bytes | None:
    """The next bytes (TCP: empty when the far end sends no more), or the next datagram, cut to ``size``.

    Args:
        timeout: seconds to wait; None: for ever.

    Returns:
        None when nothing came in time, or nothing will come.
    """
    runtime = _the_runtime()
    entry = runtime.sockets.get(fd)
    if entry is None:
        return None
    inner = entry.inner
    try:
        if isinstance(inner, InnerSocket):
            return runtime.run(_receive(inner, timeout))[0][:size]
        return runtime.run(_read(inner, size, timeout))
    except (OpenTsmError, OSError):
        return None


def tsc_getsockname(fd: int) -> SocketAddress | None:
    """The socket's inner address and port; None for a descriptor that is not open."""
    entry = _the_runtime().sockets.get(fd)
    return None if entry is None else entry.inner.getsockname()


def tsc_sendto(fd: int, data: bytes, address: SocketAddress | None = None) -> int:
    """Send one datagram; its length, or -1."""

    async def send(inner: AnySocket) -> int:
        return await _datagram(inner).sendto(data, address)

    return _with(fd, send)


def tsc_recvfrom(
    fd: int, size: int = 65535, timeout: float | None = None
) -> tuple[bytes, SocketAddress] | None:
    """The next datagram (cut to ``size``) and where it came from.

    Args:
        timeout: seconds to wait; None: for ever; 0: not at all.

    Returns:
        None when none came in time, or none will come (the socket is closed).
    """
    runtime = _the_runtime()
    entry = runtime.sockets.get(fd)
    if entry is None:
        return None
    try:
        data, source = runtime.run(_receive(_datagram(entry.inner), timeout))
    except (OpenTsmError, OSError):
        return None
    return data[:size], source


def tsc_close(fd: int) -> int:
    """Close the socket; 0, or -1."""
    runtime = _the_runtime()
    return 0 if runtime.run(runtime.close_socket(fd)) else -1


def tsc_setsockopt(fd: int, level: int, option: int, value: int) -> int:
    """Set TSC_SO_DDT, TSC_SO_TRANSPORT, TSC_SO_REDUNDANCY or TSC_SO_CODING, before or after ``tsc_bind``, as
    often as one likes.

    Returns:
        0: set, though DDT is not officially enabled before the datagram tunnel is there (notification
        ``tsc_notification_ddt``). 1: not set.
    """
    modes = {
        TSC_SO_DDT: {0: PathMode.STREAM, 1: PathMode.DATAGRAM},
        TSC_SO_TRANSPORT: dict(enumerate(PathMode)),
    }
    wide = {TSC_SO_REDUNDANCY: SO_TSM_REDUNDANCY, TSC_SO_CODING: SO_TSM_CODING}
    if level in _LEVELS and option in wide:
        return -_zero(fd, lambda inner: _datagram(inner).setsockopt(SOL_TSM, wide[option], value))
    mode = modes.get(option, {}).get(value)
    if level not in _LEVELS or mode is None:
        return 1
    return -_zero(fd, lambda inner: _datagram(inner).set_mode(mode))


def tsc_getsockopt(fd: int, level: int, option: int) -> int:
    """TSC_SO_DDT and TSC_SO_TRANSPORT: the switch; TSC_SO_PATH: the path in force; TSC_SO_REDUNDANCY and
    TSC_SO_CODING: as they were set. -1: no such thing."""
    names = {
        TSC_SO_DDT: SO_TSM_TRANSPORT,
        TSC_SO_TRANSPORT: SO_TSM_TRANSPORT,
        TSC_SO_PATH: SO_TSM_PATH,
        TSC_SO_REDUNDANCY: SO_TSM_REDUNDANCY,
        TSC_SO_CODING: SO_TSM_CODING,
    }
    if level not in _LEVELS or option not in names:
        return -1

    async def read(inner: AnySocket) -> int:
        found = _datagram(inner).getsockopt(SOL_TSM, names[option])
        return int(found != PathMode.STREAM) if option == TSC_SO_DDT else int(found)

    return _with(fd, read)


# -- notifications ------------------------------------------------------------------------------------------


def tsc_notification_enable(handle: int, kind: int, callback: TscCallback, opaque: Any = None) -> int:
    """Call ``callback(tsc_notification_data)`` for each notification of this kind, from a thread of its own.

    Args:
        kind: ``tsc_notification_ddt``, ``tsc_notification_tunnel`` or ``tsc_notification_pair_missing``.
        opaque: handed back as ``data.opaque``.

    Returns:
        the notification's number for ``tsc_notification_disable``, or 0 if it could not be enabled.
    """
    runtime = _the_runtime()
    if kind not in KINDS:
        return 0
    return max(0, _number(runtime, runtime.subscribe(handle, kind, callback, opaque)))


def tsc_notification_disable(notification: int) -> int:
    """No more calls; 0, or 1 if there is none of that number."""
    runtime = _the_runtime()
    return 0 if runtime.run(runtime.unsubscribe(notification)) else 1


# -- helpers ----------------------------------------------------------------------------------------------


def _the_runtime() -> Runtime:
    with _lock:
        if not _runtime:
            _runtime.append(Runtime())
        return _runtime[0]


def _number(runtime: Runtime, coroutine: Coroutine[Any, Any, int]) -> int:
    try:
        return runtime.run(coroutine)
    except (KeyError, OpenTsmError, OSError, RuntimeError):
        return -1


def _with(fd: int, use: Callable[[AnySocket], Coroutine[Any, Any, int]]) -> int:
    runtime = _the_runtime()
    entry = runtime.sockets.get(fd)
    if entry is None:
        return -1
    try:
        return runtime.run(use(entry.inner))
    except (OpenTsmError, OSError, ValueError):
        return -1


def _zero(fd: int, use: Callable[[AnySocket], None]) -> int:
    async def call(inner: AnySocket) -> int:
        use(inner)
        return 0

    return _with(fd, call)


def _datagram(inner: AnySocket) -> InnerSocket:
    """Only UDP sockets have this call."""
    if isinstance(inner, InnerSocket):
        return inner
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _stream(inner: AnySocket) -> InnerStreamSocket:
    """Only TCP sockets have this call."""
    if isinstance(inner, InnerStreamSocket):
        return inner
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


async def _read(inner: InnerStreamSocket, size: int, within: float | None) -> bytes:
    async with asyncio.timeout(within):
        return await inner.recv(size)


async def _receive(inner: InnerSocket, within: float | None) -> tuple[bytes, SocketAddress]:
    if within == 0:
        return inner.recvfrom_nowait()
    async with asyncio.timeout(within):
        return await inner.recvfrom()


atexit.register(tsc_shutdown)
