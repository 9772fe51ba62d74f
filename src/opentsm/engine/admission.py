"""How often one source may fail to authenticate.

A token bucket per source address: it holds ``AUTH_ATTEMPTS_PER_MINUTE`` tokens and refills at that
rate; each failure takes one. Sources that never failed are not stored. IPv6 sources count by /64,
since one subscriber usually has that many addresses to try from (RFC 6177).

Ask ``check`` right before the proof is verified, that is inside whatever bounds the number of
verifications at once, and report each outcome: then parallel attempts cannot outrun the bucket by
more than that number.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from opentsm.limits import AUTH_ATTEMPTS_PER_MINUTE, AUTH_TRACKED_SOURCES
from opentsm.types import IpAddress

_SUBSCRIBER_BITS = 64


@dataclass(frozen=True, slots=True)
class LimiterStatistics:
    """``tracked`` sources now; the rest are counts since the start."""

    tracked: int
    refused: int
    failures: int
    successes: int
    forgotten: int


class AttemptLimiter:
    """Failure limiter with bounded memory.

    Args:
        attempts: failures in a row a source may make before it has to wait.
        per_seconds: time in which a full bucket refills.
        tracked: most sources remembered; the one that failed longest ago is forgotten first.
    """

    def __init__(
        self,
        *,
        attempts: int = AUTH_ATTEMPTS_PER_MINUTE,
        per_seconds: float = 60.0,
        tracked: int = AUTH_TRACKED_SOURCES,
    ) -> None:
        self._attempts = float(attempts)
        self._rate = attempts / per_seconds
        self._tracked = tracked
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()
        self._refused = self._failures = self._successes = self._forgotten = 0

    def check(self, source: IpAddress | str, now: float) -> float | None:
        """None if the source may try now, else the seconds it has to wait."""
        if not self._buckets:  # nobody has failed lately: as on most days
            return None
        bucket = self._buckets.get(_key(source))
        tokens = self._attempts if bucket is None else self._tokens(bucket, now)
        if tokens >= 1.0:
            return None
        self._refused += 1
        return (1.0 - tokens) / self._rate

    def failed(self, source: IpAddress | str, now: float) -> None:
        """An attempt of this source failed.

        Attempts in flight together can take the bucket below zero, but never below one emptied
        bucket, so that no source is locked out for longer than two refills.
        """
        key = _key(source)
        bucket = self._buckets.pop(key, None)
        tokens = self._attempts if bucket is None else self._tokens(bucket, now)
        self._buckets[key] = _Bucket(max(tokens - 1.0, -self._attempts), now)
        self._failures += 1
        if len(self._buckets) > self._tracked:
            self._buckets.popitem(last=False)
            self._forgotten += 1

    def succeeded(self, source: IpAddress | str, now: float) -> None:
        """An attempt succeeded. It forgives no earlier failure: with one good account in hand a
        guesser could otherwise guess for ever. A bucket that is full again is dropped."""
        self._successes += 1
        if not self._buckets:
            return
        key = _key(source)
        bucket = self._buckets.get(key)
        if bucket is not None and self._tokens(bucket, now) >= self._attempts:
            del self._buckets[key]

    def statistics(self) -> LimiterStatistics:
        return LimiterStatistics(
            len(self._buckets), self._refused, self._failures, self._successes, self._forgotten
        )

    def _tokens(self, bucket: _Bucket, now: float) -> float:
        return min(self._attempts, bucket.tokens + (now - bucket.at) * self._rate)


@dataclass(frozen=True, slots=True)
class _Bucket:
    tokens: float
    at: float


def _key(source: IpAddress | str) -> int:
    """One number per source: an IPv4 address, or an IPv6 /64 shifted clear of all IPv4 numbers.

    An IPv4-mapped IPv6 address (what a dual-stack socket reports) is the IPv4 address it maps.
    """
    address = ip_address(source.partition("%")[0]) if isinstance(source, str) else source
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return int(address)
    return (int(address) >> _SUBSCRIBER_BITS) + (1 << _SUBSCRIBER_BITS)
