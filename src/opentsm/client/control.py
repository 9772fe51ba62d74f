"""Asking a running ``opentsm up`` or ``opentsm run``: what it carries, and where media shall go.

It listens on an abstract Unix socket (unix(7)), whose name needs no file and ends with the process, and which
exists per network namespace, as the device does. One JSON object a line, each way, as on the server's admin
socket. Answered are root and the account it runs under.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

import structlog

from opentsm.client.tun import TunDevice
from opentsm.client.tunnel import Tunnel
from opentsm.errors import PlatformError
from opentsm.tasks import cancel
from opentsm.types import PathMode

PREFIX: Final = "opentsm/client"

MAX_LINE: Final = 4096
"""Bytes of a request; the longest has under 100."""

MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer: all the flows a session may have, several times over."""

MAX_CLIENTS: Final = 8
"""Who asks at once: a person, a script, a panel."""

PATIENCE: Final = 10.0
"""Seconds for one request, on either side; it takes milliseconds."""

_UCRED: Final = struct.Struct("3i")
_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A process that can be asked."""

    device: str
    pid: int

    @property
    def address(self) -> str:
        """The abstract socket's, as ``connect`` wants it."""
        return f"\0{PREFIX}/{self.device}/{self.pid}"


# -- the asked ------------------------------------------------------------------------------------------


class Control:
    """Answers for one tunnel behind a device."""

    def __init__(self, name: str, tunnel: Tunnel, device: TunDevice) -> None:
        self._name = name
        self._tunnel = tunnel
        self._device = device
        self._clients: set[asyncio.Task[None]] = set()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out one request."""
        try:
            request = json.loads(line)
            command = request["command"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": "a request is one JSON object on one line, with a command"}
        if command == "media":
            try:
                mode = PathMode[str(request.get("mode")).upper()]
            except KeyError:
                known = ", ".join(mode.name.lower() for mode in PathMode)
                return {"ok": False, "error": f"media goes to one of {known}"}
            _log.info("media is sent elsewhere", mode=mode.name.lower())
            self._device.set_mode(mode)
        elif command != "status":
            return {"ok": False, "error": f"there is no command {command!r}; known: media, status"}
        return {"ok": True, "result": self.status()}

    def status(self) -> dict[str, Any]:
        """What it carries now."""
        device, tunnel = self._device, self._tunnel
        flows = [
            {
                "port": row.port,
                "ipv6": row.ipv6,
                "path": path.name.lower(),
                "sent": {"stream": row.tx_stream, "datagram": row.tx_datagram},
                "received": {"stream": row.rx_stream, "datagram": row.rx_datagram},
            }
            for row, path in device.rows()
        ]
        sip = tunnel.configuration.lease.sip_server
        return {
            "device": self._name,
            "pid": os.getpid(),
            "server": str(tunnel.server),
            "state": tunnel.state,
            "sip_server": None if sip is None else f"{sip[0]}:{sip[1]}",
            "addresses": [str(address) for address in tunnel.inner_addresses],
            "media": device.mode.name.lower(),
            "ddt": tunnel.ddt_state,
            "calls": device.calls,
            "flows": flows,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        peer: socket.socket = writer.get_extra_info("socket")
        if task is None or len(self._clients) >= MAX_CLIENTS or not _may_ask(peer):
            writer.close()
            return
        self._clients.add(task)
        try:
            async with asyncio.timeout(PATIENCE):
                while line := await reader.readline():
                    writer.write(json.dumps(self.answer(line)).encode() + b"\n")
                    await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            _log.debug("a question was not finished", reason=repr(error))
        except asyncio.CancelledError:
            pass  # the tunnel ends; asyncio would report a cancelled handler as an error
        finally:
            self._clients.discard(task)
            writer.close()

    async def close(self) -> None:
        """End what is connected."""
        await cancel(*self._clients)


@asynccontextmanager
async def answering(name: str, tunnel: Tunnel, device: TunDevice) -> AsyncIterator[None]:
    """Answer questions about this tunnel meanwhile. Where that cannot be, a warning, and all else works."""
    control = Control(name, tunnel, device)
    address = Running(name, os.getpid()).address
    try:
        server = await asyncio.start_unix_server(control.serve, address, limit=MAX_LINE)
    except OSError as error:
        _log.warning("`opentsm media` cannot reach this process", reason=error.strerror)
        yield
        return
    try:
        yield
    finally:
        server.close()
        await control.close()


def _may_ask(peer: socket.socket) -> bool:
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(data)
    return uid in (0, os.geteuid())


# -- who asks -------------------------------------------------------------------------------------------


def running() -> list[Running]:
    """Who can be asked in this network namespace."""
    found = []
    for line in FilePath("/proc/thread-self/net/unix").read_text().splitlines():
        name = line.rpartition(" ")[2]
        words = name.removeprefix("@").removeprefix(f"{PREFIX}/").split("/")
        if name.startswith(f"@{PREFIX}/") and len(words) == 2 and words[1].isdecimal():
            found.append(Running(words[0], int(words[1])))
    return sorted(set(found), key=lambda one: (one.device, one.pid))


def pick(candidates: list[Running], device: str | None, pid: int | None) -> Running:
    """The one that is meant.

    Raises:
        PlatformError: there is none, or more than one.
    """
    fitting = [one for one in candidates if device in (None, one.device) and pid in (None, one.pid)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        shown = ", ".join(f"{one.device} (--pid {one.pid})" for one in fitting)
        raise PlatformError(f"several are running here: {shown}; say which with --name or --pid")
    raise PlatformError("no `opentsm up` or `opentsm run` like that is running in this network namespace")


def ask(whom: Running, command: str, **arguments: Any) -> dict[str, Any]:
    """Ask a running tunnel.

    Raises:
        PlatformError: it does not answer, or says no.
    """
    line = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(whom.address)
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                answer = answers.readline(MAX_ANSWER)
    except OSError as error:
        raise PlatformError(f"cannot ask process {whom.pid}: {error.strerror or error}") from error
    if not answer.endswith(b"\n"):
        raise PlatformError(f"process {whom.pid} hung up: it answers its own account and root only")
    reply = json.loads(answer)
    if not reply["ok"]:
        raise PlatformError(str(reply["error"]))
    result: dict[str, Any] = reply["result"]
    return result
