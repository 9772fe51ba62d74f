"""How many files this process may have open: each stream tunnel is one of them."""

from __future__ import annotations

import os
import resource
from typing import Final

RESERVED: Final = 64
"""Descriptors that tunnels leave free; the same number as in rust/src/limits.rs."""

RESERVED_PART: Final = 8
"""Where few may be open, not more than this part of them; the same number as in rust/src/limits.rs."""

MOST: Final = 1 << 20
"""Asked for where there is no limit: the kernel's default of fs.nr_open, the most a process may have."""


def limit() -> int:
    """Files this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Ask for as many as this process may ask for; returns how many it may have open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else hard
    if soft not in (resource.RLIM_INFINITY, wanted):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return limit()
    return limit()


def room() -> int:
    """How many stream tunnels could be added to what is open now, without those that are reserved."""
    most = limit()
    in_use = len(os.listdir("/proc/self/fd"))
    return max(0, most - in_use - min(RESERVED, most // RESERVED_PART))
