"""Entering network namespaces: threads that live inside one for the length of a call."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from opentsm.errors import PlatformError
from opentsm.lab.privileges import NETNS_DIRECTORY

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

P = ParamSpec("P")
T = TypeVar("T")


def call_inside(namespace: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in a short-lived thread that has entered the namespace.

    What it opens (sockets, TUN devices, files under /proc/sys/net) belongs to that namespace and can
    be used from anywhere afterwards: a descriptor keeps the namespace it was made in.

    Raises:
        PlatformError: the namespace is gone or may not be entered.
        Exception: whatever ``function`` raised.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _enter(namespace)
            outcome.append(function(*args, **kwargs))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=f"in-{namespace}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(namespace: str) -> None:
    """Move the calling thread; the rest of the process stays where it was."""
    path = NETNS_DIRECTORY / namespace
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PlatformError(f"no namespace {namespace}: {error.strerror}; is the lab still up?") from error
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise PlatformError(f"cannot enter {namespace}: {os.strerror(number)}; run as root")
    finally:
        os.close(descriptor)


def iproute(*arguments: str, namespace: str | None = None) -> str:
    """Run ``ip``, in a namespace if one is named, and return what it printed.

    Raises:
        PlatformError: it failed; the message has its own words.
    """
    prefix = ["ip"] if namespace is None else ["ip", "-n", namespace]
    return _run([*prefix, *arguments], None)


def iproute_batch(lines: Sequence[str], *, namespace: str | None = None) -> None:
    """Run many ``ip`` commands (each without the word ``ip``) in one process; stops at the first error."""
    if lines:
        prefix = ["ip"] if namespace is None else ["ip", "-n", namespace]
        _run([*prefix, "-batch", "-"], "\n".join(lines) + "\n")


def _run(argv: list[str], text: str | None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        what = text.strip() if text else ""
        raise PlatformError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}\n{what}".rstrip())
    return done.stdout


def sysctl(namespace: str, name: str, value: str | int | None = None) -> str:
    """Read or write one kernel setting (``net.ipv4.ip_forward``) of a namespace."""
    path = Path("/proc/sys") / name.replace(".", "/")

    def access() -> str:
        if value is not None:
            path.write_text(f"{value}\n")
        return path.read_text().strip()

    return call_inside(namespace, access)


def processes_inside(namespace: str) -> list[int]:
    """Ids of the processes that live in a namespace."""
    return [int(word) for word in iproute("netns", "pids", namespace).split()]
