"""The admin socket's server: a Unix socket only its owner may open."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from opentsm.admin.backend import Backend
from opentsm.admin.protocol import MAX_LINE, answer
from opentsm.errors import PlatformError
from opentsm.tasks import cancel

MAX_CLIENTS: Final = 16
"""Admin connections at once: some people, a dashboard and a scraper."""

IDLE: Final = 300.0
"""Seconds an admin connection may be silent."""

_log: Final = structlog.get_logger("opentsm.admin")


class AdminSocket:
    """Answers requests on a Unix socket.

    Args:
        path: where it is made, with mode 0600.
        backend: who answers.
    """

    def __init__(self, path: Path, backend: Backend) -> None:
        self._path = path
        self._backend = backend
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to listen. A socket that a dead server left behind is replaced.

        Raises:
            PlatformError: another server has it, or it cannot be made.
        """
        try:
            listening = await asyncio.to_thread(_listen, self._path)
        except OSError as error:
            raise PlatformError(
                f"cannot make the admin socket {self._path}: {error.strerror}; "
                'set admin-socket in [server] to a place this account may write to, or to "" for none'
            ) from error
        self._inode = await asyncio.to_thread(lambda: self._path.stat().st_ino)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_LINE)

    async def close(self) -> None:
        """Stop listening, end what is connected, remove the socket if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        await cancel(*self._clients)
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, ValueError, TimeoutError) as error:
            _log.debug("admin connection ended", reason=repr(error))
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would report a cancelled handler as an error
        except Exception as error:
            _log.error("admin request failed", exc_info=error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE):
                line = await reader.readline()  # ValueError: longer than MAX_LINE
            if not line:
                return
            writer.write(await answer(self._backend, line))
            async with asyncio.timeout(IDLE):
                await writer.drain()


def _listen(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        _remove_dead(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Mode before name: nobody else may connect, not even between bind and chmod.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.setblocking(False)
        listening.listen(MAX_CLIENTS)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise PlatformError(f"another server answers on {path}; stop it, or set another admin-socket")
