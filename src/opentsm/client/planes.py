"""One user plane per event loop, begun with its first tunnel and ended with its last."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final
from weakref import WeakKeyDictionary

from opentsm.userplane.plane import Plane

CLIENT_WORKERS: Final = 1
"""Packet threads of the shared plane: one forwards far more than one client's calls."""

_shared: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, SharedPlane]] = WeakKeyDictionary()

_sessions: Final = itertools.count(1 << 62)
"""Ids of client sessions, far from those a server gives: both may live in one user plane."""


class SharedPlane:
    """A plane and how many tunnels use it."""

    def __init__(self) -> None:
        self.plane = Plane(workers=CLIENT_WORKERS)
        self.users = 0


def new_session_id() -> int:
    """An id for ``session_open``, unique in this process."""
    return next(_sessions)


def borrow() -> Plane:
    """The running loop's plane, begun if there is none. To be given back once."""
    loop = asyncio.get_running_loop()
    shared = _shared.get(loop)
    if shared is None:
        shared = _shared[loop] = SharedPlane()
        shared.plane.start()
    shared.users += 1
    return shared.plane


async def give_back() -> None:
    """A tunnel of the running loop needs its plane no longer; the last one ends it."""
    loop = asyncio.get_running_loop()
    shared = _shared[loop]
    shared.users -= 1
    if shared.users == 0:
        del _shared[loop]
        await shared.plane.close()
