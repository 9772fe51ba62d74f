"""An inner UDP port as an ordinary ``asyncio.DatagramTransport``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from opentsm.client.binding import Binding
from opentsm.errors import TunnelClosedError
from opentsm.types import Flow, Path, PathMode, SocketAddress

FULL_QUEUE: Final = "drop_stream_queue_full"
"""The drop that says: the stream does not take more at present."""

RESUME_POLL: Final = 0.02
"""Seconds between looks at a full stream queue: one packet of speech."""

RESUME_BELOW: Final = 32 * 1024
"""Bytes left in the stream's queue at which writing goes on: an eighth of what it may hold."""


class TunnelDatagramTransport(asyncio.DatagramTransport):
    """A datagram transport inside the tunnel. What asyncio documents holds; beyond it:

    ``set_mode``, ``mode`` and ``path`` are the transport switch; ``drops`` counts datagrams that did not
    leave. A transport whose address the tunnel has lost calls ``error_received`` and then ``connection_lost``
    with a TunnelClosedError that says why. ``get_extra_info("received_path")``
    is the path of the datagram that ``datagram_received`` is called with.

    Args:
        queue_bytes: how much waits on the stream now.
    """

    def __init__(
        self,
        protocol: asyncio.DatagramProtocol,
        remote: SocketAddress | None,
        queue_bytes: Callable[[], int],
    ) -> None:
        super().__init__()
        self._info: dict[str, Any] = {"peername": remote}
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._remote = remote
        self._queue_bytes = queue_bytes
        self._binding: Binding | None = None
        self._closing = False
        self._resume: asyncio.TimerHandle | None = None

    def start(self, binding: Binding) -> None:
        """Begin: the socket is bound."""
        self._binding = binding
        self._info["sockname"] = (str(binding.address), binding.port)
        self._loop.call_soon(self._protocol.connection_made, self)

    # -- the switch -------------------------------------------------------------------------------------

    @property
    def bound(self) -> Binding:
        if self._binding is None:
            raise TunnelClosedError("the transport is not bound")
        return self._binding

    @property
    def flow(self) -> Flow | None:
        return None if self._binding is None else self._binding.flow

    @property
    def mode(self) -> PathMode:
        return self.bound.mode

    @property
    def path(self) -> Path:
        """The path its packets take now."""
        return self.bound.path

    @property
    def drops(self) -> dict[str, int]:
        return dict(self.bound.drops)

    def set_mode(self, mode: PathMode) -> None:
        """Turn the switch; see ``Tunnel.set_mode``."""
        self.bound.set_mode(mode)

    # -- asyncio ----------------------------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        if self._closing or self._binding is None:
            return
        if self._remote is not None and addr not in (None, self._remote):
            raise ValueError(f"Invalid address: must be None or {self._remote}")
        to = addr if addr is not None else self._remote
        if to is None:
            raise ValueError("the transport has no remote address: sendto needs one")
        try:
            drop = self._binding.send(bytes(data), (to[0], to[1]))
        except (OSError, TunnelClosedError) as error:
            self._call(self._protocol.error_received, error)
            return
        if drop == FULL_QUEUE and self._resume is None:
            self._resume = self._loop.call_later(RESUME_POLL, self._try_resume)
            self._call(self._protocol.pause_writing)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``sockname`` and ``peername``: inner addresses."""
        return self._info.get(name, default)

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.DatagramProtocol):
            raise TypeError("a datagram transport needs a DatagramProtocol")
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Bytes that wait on the stream, of all sockets."""
        return self._queue_bytes()

    # -- the binding's owner ----------------------------------------------------------------------------

    def received(self, data: bytes, source: SocketAddress, path: int) -> None:
        if not self._closing and self._remote in (None, source):
            self._info["received_path"] = path
            self._protocol.datagram_received(data, source)

    def lost(self, error: TunnelClosedError) -> None:
        if not self._closing:
            self._call(self._protocol.error_received, error)
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        if self._resume is not None:
            self._resume.cancel()
        if self._binding is not None:
            self._binding.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def _try_resume(self) -> None:
        if self._queue_bytes() > RESUME_BELOW:
            self._resume = self._loop.call_later(RESUME_POLL, self._try_resume)
        else:
            self._resume = None
            self._call(self._protocol.resume_writing)

    def _call(self, method: Callable[..., None], *arguments: object) -> None:
        """A protocol's mistake is reported as asyncio does, and stops here."""
        try:
            method(*arguments)
        except Exception as error:
            context = {"message": "Exception in datagram protocol", "exception": error, "transport": self}
            self._loop.call_exception_handler(context)
