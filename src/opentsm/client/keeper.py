"""``opentsm run``: a network namespace whose only way out is the tunnel, and the process that keeps it.

    opentsm run ──────────────┬── SDK, user plane; outer sockets in the machine's own network
      │  channel (JSON,       │
      │  one descriptor)      └── the TUN device's descriptor, which works from anywhere
    keeper ── in the new namespaces: makes the device, sets addresses and routes
      │
    PROGRAM ── in the same namespaces, with the caller's ids and no capability

The keeper is forked before any thread exists, because a user namespace can only be entered by a process of
one thread. It stays for as long as the program runs, since an address may change.

Without root the namespaces belong to a new user namespace in which the caller keeps his own ids. As root
there is no user namespace, and the program gets the ids of whoever called sudo.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import pwd
import select
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Final, NoReturn

from opentsm.client import system
from opentsm.client.host import RESOLV_CONF, resolv_conf
from opentsm.client.tun import DEFAULT_MTU, DEFAULT_NAME, open_device
from opentsm.errors import OpenTsmError, PlatformError
from opentsm.protocol.actions import Configuration
from opentsm.userplane.tun import bring_up, ip, silence

MAX_MESSAGE: Final = 64 * 1024
"""Bytes of one message between the two processes: addresses and texts of errors."""

CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127
"""Exit codes of a program that cannot be started, as the shell's."""

SIGNAL_BASE: Final = 128
"""A program that a signal ended has this plus the signal's number as its exit code, as in the shell."""

_OUTSIDE_RESOLVERS: Final = ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd")
"""Name services that answer on sockets in the file system, from outside: hidden, or names would be looked up
past the tunnel."""

_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""Settings that forbid user namespaces: file, the forbidding value, the command that allows them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose ids the program gets.

    Attributes:
        name: of the account, where it has one.
        home: its home directory, or None to leave the environment as it is.
    """

    uid: int
    gid: int
    name: str = ""
    home: str | None = None


def caller(environment: Mapping[str, str]) -> Caller:
    """Who has called: under sudo the user before it."""
    uid, gid = os.getuid(), os.getgid()
    asked = environment.get("SUDO_UID", ""), environment.get("SUDO_GID", "")
    if uid != 0 or not all(word.isdecimal() for word in asked) or asked[0] == "0":
        return Caller(uid, gid)
    uid, gid = int(asked[0]), int(asked[1])
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return Caller(uid, gid)
    return Caller(uid, gid, account.pw_name, account.pw_dir)


# -- the parent's side ------------------------------------------------------------------------------------


class Keeper:
    """The keeper, as its parent sees it. Calls block; make them from a thread.

    Args:
        channel: to the process. pid: its id. tun: the device's descriptor, the caller's to use and close.
        name: of the device.
    """

    def __init__(self, channel: socket.socket, pid: int, tun: int, name: str = DEFAULT_NAME) -> None:
        self.name = name
        self.pid = pid
        self.tun = tun
        self._channel = channel

    @classmethod
    def start(cls, argv: Sequence[str], *, name: str = DEFAULT_NAME) -> Keeper:
        """Fork the keeper and wait for its device. Must be called while the process has one thread.

        Args:
            argv: the program it will run. name: of the device inside.

        Raises:
            PlatformError: no namespaces or no device; says what to do.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _keep(theirs, argv, name)
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, MAX_MESSAGE, 1)
        try:
            _read(data)
        except PlatformError:
            ours.close()
            os.waitpid(pid, 0)
            raise
        return cls(ours, pid, fds[0], name)

    def configure(self, configuration: Configuration, *, dns: bool) -> None:
        """Give the namespace the tunnel's addresses, a default route, and (``dns``) its name servers.

        Raises:
            PlatformError: that cannot be done.
        """
        lease = configuration.lease
        self._ask(
            do="configure",
            addresses=[str(address) for address in lease.addresses],
            mtu=configuration.inner_mtu or DEFAULT_MTU,
            names=[str(server) for server in lease.dns_servers] if dns else [],
        )

    def execute(self) -> int:
        """Start the program; its process id.

        Raises:
            PlatformError: it could not be forked.
        """
        return int(self._ask(do="execute")["pid"])

    def wait(self) -> int:
        """Wait for the end of the program; its exit code, as the shell would have it."""
        _, status = os.waitpid(self.pid, 0)
        return _exit_code(status)

    def close(self) -> None:
        """Let go. A keeper without a program ends; one with a program ends with it."""
        self._channel.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            self._channel.send(json.dumps(request).encode())
            return _read(self._channel.recv(MAX_MESSAGE))
        except OSError as error:
            raise PlatformError(f"the process that keeps the namespace is gone: {error}") from error


def _read(data: bytes) -> dict[str, Any]:
    """An answer of the keeper."""
    if not data:
        raise PlatformError("the process that keeps the namespace has ended")
    answer: dict[str, Any] = json.loads(data)
    if "error" in answer:
        raise PlatformError(answer["error"])
    return answer


# -- the keeper's side ------------------------------------------------------------------------------------


def _keep(channel: socket.socket, argv: Sequence[str], name: str) -> NoReturn:
    """The whole life of the forked process. It never returns to the code it was forked from."""
    code = 1
    try:
        system.die_with_parent(signal.SIGKILL)
        # Ctrl-C is the program's affair; it reaches it at the terminal, as this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        who = caller(os.environ)
        try:
            _enter()
            system.die_with_parent(signal.SIGKILL)  # new capabilities forget it
            fd = open_device(name)
        except (OpenTsmError, OSError) as error:
            _answer(channel, error=str(error))
        else:
            socket.send_fds(channel, [b"{}"], [fd])
            os.close(fd)
            code = _serve(channel, argv, name, who)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _answer(channel, error=f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _serve(channel: socket.socket, argv: Sequence[str], name: str, who: Caller) -> int:
    """Answer the parent until the program has ended; the exit code."""
    program = 0
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    names = _Names()
    while True:
        readable, _, _ = select.select([channel, ended], [], [])
        if ended in readable:
            ended.recv(256)
            if program and (code := _reap(program)) is not None:
                return code
        if channel in readable:
            data = channel.recv(MAX_MESSAGE)
            if not data:  # the parent let go; it waits for the program, if there is one
                return _last(program)
            request = json.loads(data)
            try:
                if request["do"] == "execute":
                    program = _start(argv, who)
                else:
                    _configure(name, request, names)
            except (OpenTsmError, OSError) as error:
                _answer(channel, error=str(error))
            else:
                _answer(channel, pid=program)


def _reap(program: int) -> int | None:
    pid, status = os.waitpid(program, os.WNOHANG)
    return _exit_code(status) if pid else None


def _last(program: int) -> int:
    return _exit_code(os.waitpid(program, 0)[1]) if program else 0


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNAL_BASE - code


def _answer(channel: socket.socket, **words: Any) -> None:
    channel.send(json.dumps(words).encode()[:MAX_MESSAGE])


# -- namespaces -------------------------------------------------------------------------------------------


def _enter() -> None:
    """Into a network and a mount namespace of our own; as root directly, else inside a user namespace."""
    wanted = system.CLONE_NEWNET | system.CLONE_NEWNS
    if os.geteuid() == 0:
        try:
            system.unshare(wanted)
        except OSError as error:
            if error.errno != errno.EPERM:  # root of a container may not; a user namespace may be open to it
                raise
        else:
            _finish()
            return
    uid, gid = os.geteuid(), os.getegid()
    try:
        system.unshare(wanted | system.CLONE_NEWUSER)
        # Groups can only be mapped by who has given up setgroups(2): user_namespaces(7).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        system.pass_on_capability(system.CAP_NET_ADMIN)
        _finish()
    except OSError as error:
        raise PlatformError(
            f"no network namespace for the program: {error.strerror}; {_obstacle()}"
        ) from error


def _finish() -> None:
    """Mounts stay here; loopback is up; ping needs no privilege."""
    system.mount("none", "/", "", system.MS_REC | system.MS_PRIVATE)
    ip("link", "set", "dev", "lo", "up")
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{os.getegid()} {os.getegid()}")


def _obstacle() -> str:
    for file, forbidding, remedy in _SWITCHES:
        with contextlib.suppress(OSError):
            if Path(file).read_text().strip() == forbidding:
                return f"the kernel setting {file} is {forbidding}; as root: {remedy}"
    return "this kernel or container does not allow it without root; run it with sudo"


def _configure(name: str, request: dict[str, Any], names: _Names) -> None:
    addresses = [ip_address(text) for text in request["addresses"]]
    ip("address", "flush", "dev", name)
    silence(name)
    bring_up(name, mtu=request["mtu"], addresses=[ip_interface(address) for address in addresses])
    for version in sorted({address.version for address in addresses}):
        ip(f"-{version}", "route", "replace", "default", "dev", name)
    names.use(request["names"])


class _Names:
    """The namespace's name servers: no resolver outside, and a resolv.conf of its own."""

    def __init__(self) -> None:
        self._hidden = False
        self._file: Path | None = None

    def use(self, servers: Sequence[str]) -> None:
        if not self._hidden:
            self._hidden = True
            where = RESOLV_CONF.resolve()
            text = where.read_bytes() if where.exists() else b""
            for directory in _OUTSIDE_RESOLVERS:
                if os.path.isdir(directory) and not os.path.islink(directory):
                    system.mount("opentsm", directory, "tmpfs", 0, "mode=0755")
            if not where.exists() and where.parent.is_dir():  # it was in a directory that is hidden now
                with contextlib.suppress(OSError):
                    where.write_bytes(text)
        if servers:
            self._write(resolv_conf([ip_address(server) for server in servers]))

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write_text(text)
            return
        handle, source = tempfile.mkstemp(prefix="opentsm-resolv-")
        try:
            os.fchmod(handle, 0o644)
            os.write(handle, text.encode())
            where = RESOLV_CONF.resolve()
            system.mount(source, str(where), "", system.MS_BIND)
        except OSError as error:
            raise PlatformError(
                f"no name servers for the program: {error.strerror}; --no-dns goes without"
            ) from error
        finally:
            os.close(handle)
            os.unlink(source)  # the mount keeps it
        self._file = where


# -- the program --------------------------------------------------------------------------------------------


def _start(argv: Sequence[str], who: Caller) -> int:
    """Fork and execute the program; its process id."""
    pid = os.fork()
    if pid == 0:
        code = CANNOT_EXECUTE
        try:
            _become(argv, who)
        except FileNotFoundError:
            code = NOT_FOUND
            _say(f"opentsm: {argv[0]}: no such program")
        except OSError as error:
            _say(f"opentsm: {argv[0]}: {error.strerror}")
        finally:
            os._exit(code)
    return pid


def _become(argv: Sequence[str], who: Caller) -> NoReturn:
    """Give up what the keeper could, and be the program."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    system.die_with_parent(signal.SIGTERM)
    environment = dict(os.environ)
    if os.geteuid() == 0 and who.uid != 0:
        os.setgroups(_groups(who))
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        system.die_with_parent(signal.SIGTERM)  # a change of ids forgets it
        if who.home is not None:
            environment |= {"HOME": who.home, "USER": who.name, "LOGNAME": who.name}
    system.keep_capabilities()
    os.execvpe(argv[0], list(argv), environment)


def _groups(who: Caller) -> list[int]:
    if not who.name:
        return [who.gid]
    return [who.gid, *(group.gr_gid for group in grp.getgrall() if who.name in group.gr_mem)]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
