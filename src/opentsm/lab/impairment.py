"""What a bad network does to packets, as pure decisions with a seed.

Every packet costs the same number of random draws whatever the settings and the clock are, and each
(direction, protocol class) has its own stream. So the n-th UDP packet of a direction meets the same
fate in every run with the same seed and settings, however TCP's packets fall between, and settings
changed while running do not shift what comes after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from statistics import NormalDist
from typing import Final, Literal

Fate = Literal["pass", "drop", "reject", "reject-admin"]
Direction = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, Direction]] = ("up", "down")
CLASSES: Final = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp"}

DEFAULT_QUEUE_BYTES: Final = 64_000
"""Queue before a rate limit: about 40 full packets, a small home router."""

MAX_DELAY: Final = 60.0
"""Seconds; a longer one is a slip of the unit (milliseconds for seconds)."""


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Two-state burst loss (Gilbert 1960, Elliott 1963).

    Args:
        enter: probability, per packet, to go from the good to the bad state.
        leave: probability, per packet, to come back; the mean burst is 1 / leave packets.
        loss_good: loss probability in the good state.
        loss_bad: loss probability in the bad state.
    """

    enter: float
    leave: float
    loss_good: float = 0.0
    loss_bad: float = 1.0

    def __post_init__(self) -> None:
        for name in ("enter", "leave", "loss_good", "loss_bad"):
            _check_probability(name, getattr(self, name))

    @property
    def mean_loss(self) -> float:
        """Long-run share of packets lost."""
        total = self.enter + self.leave
        bad = self.enter / total if total else 0.0
        return bad * self.loss_bad + (1 - bad) * self.loss_good


@dataclass(frozen=True, slots=True)
class Settings:
    """Impairment of one direction. All times in seconds, all probabilities 0 to 1.

    Args:
        delay: added to every packet.
        jitter: spread of the delay: "uniform" adds 0 to jitter, "normal" adds a normal deviate with this
            standard deviation (never below zero delay in all).
        keep_order: a packet never overtakes an earlier one, as in a queue; False lets jitter reorder.
        jitter_shape: see jitter.
        loss: random independent loss.
        burst: burst loss, besides ``loss``.
        duplicate: probability of a second copy.
        reorder: probability that a packet is held back by ``reorder_delay`` while later ones pass.
        reorder_delay: see reorder.
        rate: bit/s of IP packets, or None.
        queue_bytes: what may wait for the rate limit; more is dropped.
        mtu: larger packets are dropped, or None.
        mtu_signal: whether such a drop is answered by ICMP "too big"; False is a black hole.
        udp_loss: random loss of UDP alone, besides ``loss``: a policer that does not like it.
        udp_mtu: larger packets of UDP alone vanish, or None.
        udp, tcp, icmp: pass, drop (silently), reject (ICMP port unreachable) or reject-admin.
        shared_stream: all protocols draw from one stream and share one burst state, as on a real wire;
            then other protocols' packets shift what UDP meets.
    """

    delay: float = 0.0
    jitter: float = 0.0
    keep_order: bool = True
    jitter_shape: Literal["uniform", "normal"] = "uniform"
    loss: float = 0.0
    burst: GilbertElliott | None = None
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.01
    rate: float | None = None
    queue_bytes: int = DEFAULT_QUEUE_BYTES
    mtu: int | None = None
    mtu_signal: bool = True
    udp_loss: float = 0.0
    udp_mtu: int | None = None
    udp: Fate = "pass"
    tcp: Fate = "pass"
    icmp: Fate = "pass"
    shared_stream: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "udp_loss", "duplicate", "reorder"):
            _check_probability(name, getattr(self, name))
        for name in ("delay", "jitter", "reorder_delay"):
            if not 0 <= getattr(self, name) <= MAX_DELAY:
                raise ValueError(f"{name} is in seconds, 0 to {MAX_DELAY:g}, not {getattr(self, name)}")
        if self.rate is not None and not self.rate > 0:
            raise ValueError("rate is in bit/s, above 0; None for no limit")
        if self.queue_bytes < 0 or (self.mtu is not None and self.mtu < 68):
            raise ValueError("queue_bytes is at least 0, and mtu at least 68 (RFC 791)")
        for name in ("udp", "tcp", "icmp"):
            if getattr(self, name) not in ("pass", "drop", "reject", "reject-admin"):
                raise ValueError(f"{name} is pass, drop, reject or reject-admin, not {getattr(self, name)!r}")
        if self.jitter_shape not in ("uniform", "normal"):
            raise ValueError("jitter_shape is uniform or normal")


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet that is not delivered.

    Args:
        reason: name of its counter.
        answer: the ICMP error the sender gets, if any.
    """

    reason: str
    answer: Literal["port", "admin", "too-big"] | None = None


LOST: Final = Drop("loss")
LOST_IN_BURST: Final = Drop("burst-loss")
QUEUE_FULL: Final = Drop("queue-full")
TOO_BIG: Final = Drop("too-big", "too-big")
BLACK_HOLE: Final = Drop("mtu-black-hole")
_BLOCKED: Final = {("drop", kind): Drop(f"blocked-{kind}") for kind in ("udp", "tcp", "icmp")} | {
    (fate, kind): Drop(f"rejected-{kind}", "port" if fate == "reject" else "admin")
    for fate in ("reject", "reject-admin")
    for kind in ("udp", "tcp", "icmp")
}

_NORMAL: Final = NormalDist()

Decision = tuple[float, ...] | Drop
"""Times at which copies are delivered, or the reason why none is."""


@dataclass(slots=True)
class _Stream:
    """Random draws and burst state of one protocol class."""

    random: Random
    bad: bool = False


@dataclass(slots=True)
class Impairment:
    """One direction of a WAN.

    Args:
        direction: part of the seed, so that both directions differ.
        seed: any integer.
        settings: replaced at will while running.
    """

    direction: Direction
    seed: int = 1
    settings: Settings = field(default_factory=Settings)
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _wire_free: float = -math.inf
    _last_delivery: float = -math.inf

    def reseed(self, seed: int) -> None:
        """Start all decision streams again."""
        self.seed = seed
        self._streams.clear()

    def decide(self, now: float, length: int, protocol: int) -> Decision:
        """The fate of one packet.

        Args:
            now: seconds, monotonic; never smaller than in the call before.
            length: bytes of the IP packet.
            protocol: IANA number of its transport.
        """
        settings = self.settings
        kind = CLASSES.get(protocol, "other")
        stream = self._stream("all" if settings.shared_stream else kind)
        draw = stream.random.random
        u_state, u_loss, u_duplicate, u_reorder, u_jitter = draw(), draw(), draw(), draw(), draw()
        drop = self._refused(kind, length) or self._lost(kind, stream, u_state, u_loss)
        if drop is not None:
            return drop
        leaves = self._through_queue(now, length)
        if leaves is None:
            return QUEUE_FULL
        due = leaves + self._delay(u_jitter)
        if u_reorder < settings.reorder:
            due += settings.reorder_delay
        elif settings.keep_order:
            due = self._last_delivery = max(due, self._last_delivery)
        return (due, due) if u_duplicate < settings.duplicate else (due,)

    def _stream(self, name: str) -> _Stream:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = _Stream(Random(f"{self.seed}/{self.direction}/{name}"))
        return stream

    def _refused(self, kind: str, length: int) -> Drop | None:
        settings = self.settings
        if kind != "other":
            fate: Fate = getattr(settings, kind)
            if fate != "pass":
                return _BLOCKED[fate, kind]
        if settings.mtu is not None and length > settings.mtu:
            return TOO_BIG if settings.mtu_signal else BLACK_HOLE
        if kind == "udp" and settings.udp_mtu is not None and length > settings.udp_mtu:
            return BLACK_HOLE
        return None

    def _lost(self, kind: str, stream: _Stream, u_state: float, u_loss: float) -> Drop | None:
        """One draw decides loss of both kinds: u below p1 is random loss, below p1 + (1-p1)p2 burst loss."""
        settings = self.settings
        loss = settings.loss
        if kind == "udp":
            loss += (1 - loss) * settings.udp_loss
        if settings.burst is None:
            stream.bad = False
            return LOST if u_loss < loss else None
        burst = settings.burst
        stream.bad = u_state >= burst.leave if stream.bad else u_state < burst.enter
        if u_loss < loss:
            return LOST
        share = burst.loss_bad if stream.bad else burst.loss_good
        return LOST_IN_BURST if u_loss < loss + (1 - loss) * share else None

    def _through_queue(self, now: float, length: int) -> float | None:
        """When the last bit has left the bottleneck; None where the queue has no room."""
        rate = self.settings.rate
        if rate is None:
            self._wire_free = now
            return now
        start = max(now, self._wire_free)
        waiting = (start - now) * rate / 8
        if start > now and waiting + length > self.settings.queue_bytes:
            return None
        self._wire_free = start + length * 8 / rate
        return self._wire_free

    def _delay(self, u: float) -> float:
        settings = self.settings
        if not settings.jitter:
            return settings.delay
        if settings.jitter_shape == "uniform":
            return settings.delay + u * settings.jitter
        # random() can be exactly 0, where the inverse has no value.
        deviate = _NORMAL.inv_cdf(max(u, 1e-12)) * settings.jitter
        return max(0.0, settings.delay + deviate)


def predict(settings: Settings, seed: int, direction: Direction, protocol: str, count: int) -> list[bool]:
    """Which of the first ``count`` packets of a protocol are delivered. True: delivered.

    Loss alone is predicted, not what a rate limit drops: that depends on when packets come.

    Args:
        settings: as given to the WAN.
        seed: the WAN's seed.
        direction: "up" (phone to server) or "down".
        protocol: udp, tcp or icmp.
        count: number of packets since the WAN began or was reseeded.
    """
    number = {"tcp": 6, "udp": 17, "icmp": 1}[protocol]
    model = Impairment(direction, seed, settings)
    return [not isinstance(model.decide(float(index * 3600), 100, number), Drop) for index in range(count)]


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability, 0 to 1, not {value}")
