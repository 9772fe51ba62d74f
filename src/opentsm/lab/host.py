"""One host of a lab: processes, sockets and captures inside its network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from socket import socket as Socket
from typing import Any, Final, ParamSpec, TypeVar

from opentsm.lab.capture import Capture
from opentsm.lab.netns import call_inside, iproute, sysctl
from opentsm.lab.plan import Interface
from opentsm.lab.wan import python_environment

P = ParamSpec("P")
T = TypeVar("T")
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

RECEIVE_BUFFER: Final = 16 << 20
"""Bytes a UDP socket of a host may queue: 20,000 small packets, so that a test may read late."""

_SO_RCVBUFFORCE: Final = 33

_RUNNER = (
    "import sys, importlib; module, _, name = sys.argv.pop(1).partition(':'); "
    "getattr(importlib.import_module(module), name)(*sys.argv[1:])"
)


class Host:
    """A host. Made by ``Lab``.

    Args:
        name: phone1, firewall1, internet, server, core, ...
        namespace: its full name for ``ip netns``.
        main: the addresses that others know it by.
    """

    def __init__(self, name: str, namespace: str, main: Interface) -> None:
        self.name = name
        self.namespace = namespace
        self.ipv4 = main.ipv4
        self.ipv6 = main.ipv6
        self._processes: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"Host({self.name!r}, {self.ipv4 or self.ipv6})"

    # -- processes ------------------------------------------------------------------------------------
    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside; it is ended with the lab at the latest.

        Args:
            argv: the program and its arguments.
            options: as for ``subprocess.Popen``.
        """
        process = subprocess.Popen(self._command(argv), **options)
        self._processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 30.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, and return its output as text.

        Raises:
            subprocess.CalledProcessError: it failed, with ``check``.
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
        """
        settings: dict[str, Any] = {"capture_output": True, **options}
        return subprocess.run(self._command(argv), check=check, timeout=timeout, text=True, **settings)

    def python(self, target: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """Start Python inside, with this process's import path.

        Args:
            target: a module to run as ``python -m`` does, or ``module:function`` to call with
                ``arguments`` as text.
        """
        start = ["-c", _RUNNER, target] if ":" in target else ["-m", target]
        options.setdefault("env", python_environment())
        return self.popen([sys.executable, *start, *arguments], **options)

    def stop_processes(self, grace: float = 5.0) -> None:
        """End what ``popen`` and ``python`` started: SIGTERM, then SIGKILL after ``grace`` seconds."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._processes.clear()

    def _command(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    # -- sockets --------------------------------------------------------------------------------------
    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread inside the namespace; what it opens stays there."""
        return call_inside(self.namespace, function, *args, **kwargs)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> Socket:
        """A socket that lives in this host and is used from here, as any other."""
        return self.call(Socket, family, kind, protocol)

    def udp(self, address: str = "", port: int = 0) -> Socket:
        """A bound UDP socket, non-blocking. ``address`` "": the host's IPv4, else its IPv6 address."""
        return self._bound(socket.SOCK_DGRAM, address, port)

    def listen(self, address: str = "", port: int = 0, *, backlog: int = 128) -> Socket:
        """A listening TCP socket, non-blocking."""
        opened = self._bound(socket.SOCK_STREAM, address, port)
        opened.listen(backlog)
        return opened

    async def connect_tcp(self, address: str, port: int) -> Socket:
        """A connected TCP socket, non-blocking; wrap it with ``asyncio.open_connection(sock=...)``.

        Raises:
            OSError: refused, unreachable, timed out.
        """
        opened = self.socket(_family(address), socket.SOCK_STREAM)
        opened.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(opened, (address, port))
        except BaseException:
            opened.close()
            raise
        return opened

    async def datagram_endpoint(
        self,
        factory: Callable[[], ProtocolT],
        *,
        local: tuple[str, int] = ("", 0),
        remote: tuple[str, int] | None = None,
    ) -> tuple[asyncio.DatagramTransport, ProtocolT]:
        """``loop.create_datagram_endpoint`` on a socket of this host.

        Args:
            factory: makes the protocol.
            local: address ("": of the family of ``remote``) and port.
            remote: connect to it, or None.
        """
        address = local[0] or (self._address_like(remote[0]) if remote else "")
        opened = self.udp(address, local[1])
        if remote is not None:
            opened.connect(remote)  # UDP: only sets the far address, never waits
        return await asyncio.get_running_loop().create_datagram_endpoint(factory, sock=opened)

    def _bound(self, kind: int, address: str, port: int) -> Socket:
        where = address or self.ipv4 or self.ipv6
        opened = self.socket(_family(where), kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            _enlarge(opened)
        try:
            opened.bind((where, port))
        except OSError:
            opened.close()
            raise
        opened.setblocking(False)
        return opened

    def _address_like(self, other: str) -> str:
        return self.ipv6 if _family(other) == socket.AF_INET6 else self.ipv4

    # -- kernel ---------------------------------------------------------------------------------------
    def capture(self, interface: str, **bounds: int) -> Capture:
        """Start capturing on an interface; use as a context manager (see ``capture.Capture``)."""
        return Capture(self.namespace, interface, **bounds)

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` inside: ``host.ip("route", "add", "10.0.0.0/8", "via", ...)``."""
        return iproute(*arguments, namespace=self.namespace)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read or write a kernel setting of this host's network."""
        return sysctl(self.namespace, name, value)


class Loopback(Host):
    """This machine's loopback interface as a host, for what has to run where no namespace can be made.

    It has processes and sockets; captures and settings of the kernel belong to namespaces.
    """

    def __init__(self) -> None:
        super().__init__("loopback", "", Interface("127.0.0.1", ""))

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    def _command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)


def _enlarge(opened: Socket) -> None:
    """A lab must not lose packets at its own ends. Without the machine's root, what the kernel allows."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
