"""System calls that Python 3.11 lacks: namespaces, mounts, capabilities that survive exec. Linux only."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

CAP_NET_ADMIN: Final = 12

_PR_SET_PDEATHSIG: Final = 1
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAPABILITY_WORDS: Final = struct.Struct("=6I")
"""effective, permitted, inheritable of capabilities 0 to 31; the same of 32 to 63 (capget(2))."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2)).

    Raises:
        OSError: the kernel does not allow it.
    """
    _check(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2).

    Raises:
        OSError: the kernel's own.
    """
    done = _libc().mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(done, f"mount {target}")


def die_with_parent(signal_number: int) -> None:
    """Be sent this signal when the parent ends (prctl(2), PR_SET_PDEATHSIG); survives exec."""
    _check(_libc().prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


def pass_on_capability(number: int) -> None:
    """Let programs that this process executes have a capability it has itself (capabilities(7), ambient).

    Raises:
        OSError: it does not have it.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    words = ctypes.create_string_buffer(_CAPABILITY_WORDS.size)
    _check(_libc().capget(header, words), "capget")
    values = list(_CAPABILITY_WORDS.unpack(words.raw))
    values[2 + 3 * (number // 32)] |= 1 << (number % 32)
    _check(_libc().capset(header, _CAPABILITY_WORDS.pack(*values)), "capset")
    _check(_libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), "prctl")


def keep_capabilities() -> None:
    """What ``pass_on_capability`` passed on ends with this process."""
    _check(_libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
