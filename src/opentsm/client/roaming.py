"""Noticing that this machine is somewhere else: another address, another way out, or an hour later.

``judge`` is the decision, and pure. ``Roaming`` asks it when the kernel reports a change, looks at the clocks
for a suspension, and tells the connection.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from opentsm.client import netwatch
from opentsm.types import SocketAddress

SETTLE: Final = 0.01
"""Seconds after the kernel's first word before we look: an address and its routes are several messages."""

SLEEP_LOOK: Final = 2.0
"""Seconds between two looks at the clocks: a machine that wakes is noticed that soon, and one that does not
sleep is hardly disturbed."""

SLEPT: Final = 1.0
"""Seconds of suspension that count: shorter ones no NAT and no server has noticed."""

_log: Final = logging.getLogger(__name__)


class Standing(enum.Enum):
    """Where this machine is, as seen from the stream connection it has."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    UPROOTED = "uprooted"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class View:
    """What was found when looking.

    Args:
        local: the stream connection's own address, or None without one.
        holds: this machine still has that address.
        source: the address it would reach the server from now; None: no way there.
        inner: addresses inside the tunnel; a way through the tunnel is none to its server.
    """

    local: str | None
    holds: bool
    source: str | None
    inner: Collection[str] = ()


def judge(view: View, *, was_nowhere: bool) -> Standing:
    """What follows from a view.

    HERE: nothing. ELSEWHERE: a new connection is worth a try beside the one there is; also where the address
    is the same again after there was no way at all, as the NAT in front may have been replaced. UPROOTED: the
    connection's own address is gone; only a new one helps. NOWHERE: nothing can be done before the next
    change.
    """
    if view.source is None or view.source in view.inner:
        return Standing.NOWHERE
    if view.local is not None and not view.holds:
        return Standing.UPROOTED
    if was_nowhere or view.source != view.local:
        return Standing.ELSEWHERE
    return Standing.HERE


class Roamer(Protocol):
    """The part of ``Connection`` that is used."""

    @property
    def outer(self) -> tuple[SocketAddress, SocketAddress] | None:
        """Local and remote address of the stream connection that is in use or was last."""

    @property
    def inner(self) -> Collection[str]: ...
    def network_changed(self, *, lost: bool = False) -> None: ...
    def moved(self, source: str | None) -> None:
        """Tell the application: this machine reaches the server from this address now."""


class Roaming:
    """Watches for one connection.

    Args:
        roamer: whom to tell.
        asleep: total seconds of suspension so far.
    """

    def __init__(self, roamer: Roamer, *, asleep: Callable[[], float] = netwatch.time_asleep) -> None:
        self._roamer = roamer
        self._asleep = asleep
        self._slept = asleep()
        self._source: str | None = None
        self._was_nowhere = False
        self._timer: asyncio.TimerHandle | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._watch: netwatch.NetworkWatch | None = None

    def start(self) -> None:
        """Begin, with the first stream connection. Without netlink only silence tells."""
        outer = self._roamer.outer
        self._source = outer[0][0] if outer else None
        try:
            self._watch = netwatch.NetworkWatch(self._on_change)
        except (OSError, AttributeError) as error:
            _log.warning("changes of the network are noticed late: %s", error)
        self._schedule()

    def stop(self) -> None:
        """End. May be called again."""
        for timer in (self._timer, self._clock):
            if timer is not None:
                timer.cancel()
        self._timer = self._clock = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _schedule(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(SLEEP_LOOK, self._on_clock)

    def _on_clock(self) -> None:
        self._schedule()
        self._look_at_clocks()

    def _look_at_clocks(self) -> bool:
        slept, self._slept = self._slept, self._asleep()
        if self._slept - slept < SLEPT:
            return False
        _log.info("awake after %.0f s", self._slept - slept)
        self._roamer.network_changed()
        return True

    def _on_change(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self.look)

    def look(self) -> None:
        """See where this machine is now, and act on it."""
        self._timer = None
        outer = self._roamer.outer
        if outer is None or self._look_at_clocks():
            return
        (local, _), remote = outer
        view = View(local, netwatch.is_here(local), netwatch.source_towards(remote), self._roamer.inner)
        standing = judge(view, was_nowhere=self._was_nowhere)
        source = None if standing is Standing.NOWHERE else view.source
        if source == self._source and not self._was_nowhere:
            return  # a change that is none of ours, or one that was acted on
        self._was_nowhere = standing is Standing.NOWHERE
        self._source = source
        _log.info("the network has changed: %s, from %s to %s", standing.value, local, source)
        self._roamer.moved(source)
        if standing in (Standing.ELSEWHERE, Standing.UPROOTED):
            self._roamer.network_changed(lost=standing is Standing.UPROOTED)
