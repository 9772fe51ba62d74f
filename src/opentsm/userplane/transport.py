"""One inner TCP connection as an ordinary ``asyncio.Transport``."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from opentsm.errors import TunnelClosedError
from opentsm.types import SocketAddress
from opentsm.userplane._core import (
    TcpClosed,
    TcpEof,
    TcpReceived,
    TcpWritable,
    UserPlane,
)

HIGH_WATER: Final = 64 * 1024
"""Bytes that wait in Python, beyond those in the user plane, at which the protocol is asked to pause; it is
asyncio's own figure."""

ORDERLY: Final = "closed"
"""The reason of a connection that both ends have closed."""

_ERRORS: Final = {
    "refused": errno.ECONNREFUSED,
    "reset": errno.ECONNRESET,
    "timeout": errno.ETIMEDOUT,
    "idle": errno.ETIMEDOUT,
    "address-in-use": errno.EADDRINUSE,
    "too-many": errno.EMFILE,
    "unreachable": errno.EADDRNOTAVAIL,
}


def error_of(reason: str) -> Exception | None:
    """What a connection's end is to Python: None, an OSError's subclass, or TunnelClosedError."""
    if reason == ORDERLY:
        return None
    number = _ERRORS.get(reason)
    if number is None:
        return TunnelClosedError(f"the tunnel under the connection is gone: {reason}")
    return OSError(number, os.strerror(number))


class InnerTransport(asyncio.Transport):
    """A connection inside a tunnel. What asyncio documents for stream transports holds.

    ``get_extra_info`` knows ``sockname`` and ``peername``: inner address and port.

    Args:
        core: the user plane.
        connection: its id there.
        protocol: whose it is. sockname, peername: both ends.
        forget: called once, when no more events are wanted.
    """

    def __init__(
        self,
        core: UserPlane,
        connection: int,
        protocol: asyncio.BaseProtocol,
        *,
        sockname: SocketAddress,
        peername: SocketAddress,
        forget: Callable[[InnerTransport], None],
    ) -> None:
        super().__init__({"sockname": sockname, "peername": peername})
        self.connection = connection
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._forget = forget
        self._unread: deque[bytes | None] = deque()  # None: the peer sends no more
        self._unsent = bytearray()
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._reading = True
        self._writing_paused = False
        self._eof_wished = False
        self._closing = False
        self._lost = False
        self._end: str | None = None

    def __repr__(self) -> str:
        ends = f"{self.get_extra_info('sockname')} to {self.get_extra_info('peername')}"
        return f"<InnerTransport {ends}{' closing' if self._closing else ''}>"

    def start(self) -> None:
        """Tell the protocol that it is connected."""
        self._protocol.connection_made(self)

    # -- reading ------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """No ``data_received`` for now; the peer stops when the window is full."""
        self._reading = False

    def resume_reading(self) -> None:
        if self._reading or self._closing:
            return
        self._reading = True
        if self._unread or self._end is not None:
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        while self._unread and self.is_reading():
            data = self._unread.popleft()
            if data is None:
                self._deliver_eof()
            else:
                self._deliver_data(data)
        if self._end is not None and (self._closing or not self._unread):
            self._be_lost(error_of(self._end))

    def _deliver_data(self, data: bytes) -> None:
        try:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                _fill(self._protocol, data)
            elif isinstance(self._protocol, asyncio.Protocol):
                self._protocol.data_received(data)
        except Exception as error:
            self._fail(error, "data_received")
            return
        self._core.tcp_consumed(self.connection, len(data))

    def _deliver_eof(self) -> None:
        keep_open: bool | None = None
        try:
            if isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol):
                keep_open = self._protocol.eof_received()
        except Exception as error:
            self._fail(error, "eof_received")
            return
        if not keep_open:
            self.close()

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or queue what there is no room for.

        Raises:
            RuntimeError: after ``write_eof``. TypeError: not bytes.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        if self._eof_wished:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or self._lost or not data:
            return
        raw = bytes(data)
        self._unsent += raw if self._unsent else raw[self._hand_over(raw) :]
        if len(self._unsent) > self._high and not self._writing_paused:
            self._writing_paused = True
            self._call(self._protocol.pause_writing)

    def _hand_over(self, data: bytes) -> int:
        try:
            return self._core.tcp_send(self.connection, data)
        except KeyError:
            # It is over and the event that says so is on its way: nobody is left to send this to.
            return len(data)

    def _flush(self) -> None:
        if self._unsent:
            del self._unsent[: self._hand_over(bytes(self._unsent))]
        if self._writing_paused and len(self._unsent) <= self._low:
            self._writing_paused = False
            self._call(self._protocol.resume_writing)
        if self._unsent:
            return
        if self._closing:
            self._part()
        elif self._eof_wished:
            self._core.tcp_shutdown(self.connection)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """No more will be written; the peer learns it after what is queued."""
        if self._closing or self._eof_wished:
            return
        self._eof_wished = True
        if not self._unsent:
            self._core.tcp_shutdown(self.connection)

    def get_write_buffer_size(self) -> int:
        """Bytes that the user plane has not taken yet."""
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio has it: ``low`` is a quarter of ``high`` unless given."""
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    # -- the end ------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Send what is queued, then close. ``connection_lost`` follows when all has been handed over."""
        if self._closing or self._lost:
            return
        self._closing = True
        if not self._unsent:
            self._part()

    def abort(self) -> None:
        """Close at once; the peer sees a reset."""
        if self._lost:
            return
        self._closing = True
        self._core.tcp_abort(self.connection)
        self._be_lost(None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def _part(self) -> None:
        """All is handed over: the user plane says goodbye to the peer by itself."""
        self._core.tcp_close(self.connection)
        self._be_lost(None)

    def _be_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._unread.clear()
        self._unsent.clear()
        self._forget(self)
        self._loop.call_soon(self._protocol.connection_lost, error)

    # -- events -------------------------------------------------------------------------------------------

    def handle(self, event: TcpReceived | TcpEof | TcpWritable | TcpClosed) -> None:
        """Something has happened to the connection."""
        if self._lost:
            return
        match event:
            case TcpReceived():
                if self._closing:
                    self._core.tcp_consumed(self.connection, len(event.data))
                    return
                self._unread.append(event.data)
            case TcpEof():
                self._unread.append(None)
            case TcpWritable():
                self._flush()
                return
            case TcpClosed():
                self._end = event.reason
                if event.reason != ORDERLY:
                    self._unread_matters_no_more()
        self._deliver()

    def _unread_matters_no_more(self) -> None:
        """What came before a reset still goes to who reads; who has paused learns of the reset first."""
        if not self._reading:
            self._unread.clear()

    def _fail(self, error: Exception, where: str) -> None:
        """A protocol's mistake: reported as asyncio does, and the end of its connection."""
        message = f"Fatal error: protocol.{where}() call failed."
        self._report(error, message)
        self._core.tcp_abort(self.connection)
        self._be_lost(error)

    def _call(self, method: Callable[[], None]) -> None:
        try:
            method()
        except Exception as error:
            self._report(error, f"protocol.{method.__name__}() failed")

    def _report(self, error: Exception, message: str) -> None:
        context: dict[str, Any] = {
            "message": message,
            "exception": error,
            "transport": self,
            "protocol": self._protocol,
        }
        self._loop.call_exception_handler(context)


def _fill(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Into the protocol's own buffers, as many as it takes."""
    rest = memoryview(data)
    while rest:
        buffer = memoryview(protocol.get_buffer(len(rest)))
        if not len(buffer):
            raise RuntimeError("get_buffer() returned an empty buffer")
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]
