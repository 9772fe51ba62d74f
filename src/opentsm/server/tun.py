"""The server's TUN device: made (or used, if it exists), addressed and routed.

Linux only. The device disappears with the process unless somebody made it persistent before
(``ip tuntap add``), which is also how a server without CAP_NET_ADMIN can have one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from opentsm.errors import PlatformError
from opentsm.userplane.tun import DEVICE, bring_up, ip, open_queue


def open_tun(name: str, queues: int) -> list[int]:
    """Open a TUN device with as many queues as there are workers.

    Returns:
        One descriptor per queue, for the user plane to own.

    Raises:
        PlatformError: it cannot be opened; the message says what to do.
    """
    opened: list[int] = []
    try:
        for _ in range(queues):
            opened.append(open_queue(name, multi_queue=True))
    except OSError as error:
        for fd in opened:
            os.close(fd)
        if error.errno == errno.EINVAL and not opened:  # it exists, made for one queue
            return [_one_queue(name)]
        raise PlatformError(_explain(error, name)) from error
    return opened


def _one_queue(name: str) -> int:
    try:
        return open_queue(name)
    except OSError as error:
        raise PlatformError(_explain(error, name)) from error


def _explain(error: OSError, name: str) -> str:
    what = f"cannot open TUN device {name}"
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return (
                f"{what}: this needs CAP_NET_ADMIN; run as root, or make the device before "
                f'(`ip tuntap add {name} mode tun multi_queue user USER`), or use core = "userspace"'
            )
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"{what}: {DEVICE} is missing; `modprobe tun`, in a container give it that device"
        case errno.EBUSY:
            return f"{what}: another program has it open; is a server running already?"
        case _:
            return f"{what}: {error.strerror}"


def configure(
    name: str,
    *,
    addresses: Sequence[IPv4Interface | IPv6Interface],
    routes: Iterable[IPv4Network | IPv6Network],
    mtu: int,
) -> None:
    """Give the device its addresses, MTU and routes, and bring it up. Blocks for some milliseconds.

    Args:
        addresses: the server's inner addresses; their prefixes become routes by themselves.
        routes: more prefixes of clients.
        mtu: largest inner packet in bytes.

    Raises:
        PlatformError: it cannot be done; the message has the command that failed.
    """
    bring_up(name, mtu=mtu, addresses=addresses)
    for route in routes:
        ip(f"-{route.version}", "route", "replace", str(route), "dev", name)
