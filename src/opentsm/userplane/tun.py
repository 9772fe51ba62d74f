"""What server and client share about TUN devices: opening a queue, and the program ``ip`` (iproute2).

Linux only. A device lives as long as a descriptor of one of its queues, and takes its addresses and routes
with it when it goes, unless somebody made it persistent before (``ip tuntap add``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Final

from opentsm.errors import PlatformError

DEVICE: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_VNET_HDR: Final = 0x4000
"""A header in front of each packet, by which several packets can be written as one (Linux 6.2)."""
_IFREQ: Final = struct.Struct("16sH22x")

COMMAND_TIMEOUT: Final = 10.0
"""Seconds one `ip` command may take; it is done in milliseconds unless the machine is in trouble."""

TX_QUEUE: Final = 10_000
"""Packets the kernel may hold for us: half a second of 400 calls. It fills only while our thread waits for a
processor, and then a late packet is worth more than a lost one."""


class IpCommandError(PlatformError):
    """`ip` did not do it.

    Args:
        command: as one would type it.
        words: what it printed.
    """

    def __init__(self, command: str, words: str) -> None:
        self.command = command
        self.words = words
        hint = "; this needs CAP_NET_ADMIN" if "not permitted" in words else ""
        super().__init__(f"`{command}` failed: {words}{hint}")


def open_queue(name: str, *, multi_queue: bool = False) -> int:
    """Open one queue of a TUN device, making the device if there is none.

    Returns:
        Its descriptor, non-blocking and closed on exec. Each packet has a ``virtio_net_hdr`` in front, as the
        user plane writes and reads it.

    Raises:
        OSError: the kernel's own; EPERM without CAP_NET_ADMIN, EBUSY when another program has it.
    """
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def bring_up(name: str, *, mtu: int, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    """Give a device its MTU and addresses, and bring it up. Blocks for some milliseconds.

    Args:
        mtu: largest inner packet in bytes.
        addresses: their prefixes become routes by themselves.

    Raises:
        PlatformError: it cannot be done; the message has the command that failed.
    """
    ip("link", "set", "dev", name, "mtu", str(mtu), "txqueuelen", str(TX_QUEUE), "up")
    for own in addresses:
        # No duplicate address detection on a device with nobody else: it would delay the address.
        extra = ["nodad"] if own.version == 6 else []
        ip("address", "replace", str(own), "dev", name, *extra)


def silence(name: str) -> None:
    """Keep the kernel from giving the device a link-local address, with which it would ask for routers.

    No tunnel has any. Where there is no IPv6 there is nothing to keep it from.
    """
    with contextlib.suppress(IpCommandError):
        ip("link", "set", "dev", name, "addrgenmode", "none")


def ip(*arguments: str) -> str:
    """Run `ip` and return what it printed.

    Raises:
        PlatformError: there is no such program, or it takes for ever.
        IpCommandError: it failed.
    """
    program = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise PlatformError("the program `ip` is missing (Debian: apt-get install iproute2)")
    command = f"ip {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise PlatformError(f"`{command}` did not end within {COMMAND_TIMEOUT:g} s") from None
    if done.returncode:
        raise IpCommandError(command, done.stderr.strip())
    return done.stdout
