"""How a stream's socket is tuned before the user plane has it. Accepted sockets have it from their listener.

TCP_NODELAY and the small unsent low-water mark are the user plane's (rust/src/worker/conn.rs).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
"""What a process without privileges may choose from (tcp(7))."""

USER_TIMEOUT_MS: Final = 20_000
"""Milliseconds for which sent bytes may stay unacknowledged before the kernel gives the connection up (RFC
5482). The kernel's own patience is a quarter of an hour; a call has none. Like REQUEST_TIMEOUT_STREAM."""

KEEPALIVE_IDLE: Final = 60
"""Seconds without a byte before the kernel probes: the tunnel's own probes come earlier where they are on."""

KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_PROBES: Final = 3
"""Three probes, ten seconds apart: a dead peer's socket is gone a minute and a half after its last word."""


def tune_stream(sock: socket.socket, congestion_control: str | None = None) -> str:
    """Set a stream's options before it connects or listens.

    Args:
        congestion_control: the kernel's name of it, or None for the kernel's default.

    Returns:
        why the congestion control could not be had, in a sentence; empty: nothing was refused.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return "" if congestion_control is None else _choose(sock, congestion_control)


def _choose(sock: socket.socket, name: str) -> str:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except FileNotFoundError:
        return f"congestion control {name}: this kernel does not have it (`modprobe tcp_{name}`, as root)"
    except PermissionError:
        allowed = ALLOWED.read_text().strip() if ALLOWED.exists() else ""
        return (
            f"congestion control {name}: not allowed without privileges; allowed here: {allowed}. An "
            f"administrator may add it: sysctl -w net.ipv4.tcp_allowed_congestion_control='{allowed} {name}'"
        )
    except OSError as error:
        return f"congestion control {name}: {error.strerror}"
    return ""
