"""Passwords that were right a while ago: who comes back is not made to wait for argon2 again.

A check costs a fifth of a second of CPU where the machine is busy, which is more than four round trips of a
good network, and ten thousand clients that come back after an outage cost it ten thousand times. What is
kept is no password but a keyed digest (BLAKE2b, RFC 7693) of stored hash and password, under a key of this
process, and only in memory. Another stored hash is another digest, so an account that was changed or removed
is not remembered.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MOST: Final = 65_536
"""Accounts remembered, a hundred bytes each; the one that came longest ago is forgotten first."""

LIFETIME: Final = 3600.0
"""Seconds from the last full check: a client that is back within the hour was known a moment ago."""


class Remembered:
    """Names with digests of what was right for them. Any thread may use it.

    Args:
        clock: seconds, growing.
    """

    def __init__(self, clock: Callable[[], float], *, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, name: str, secret: str, password: bytes) -> bool:
        """Whether this password was right for this stored hash within LIFETIME."""
        digest = self._digest(secret, password)
        with self._lock:
            known, until = self._known.get(name, (b"", 0.0))
        return secrets.compare_digest(known, digest) and self._clock() < until

    def was_right(self, name: str, secret: str, password: bytes) -> None:
        """A full check has been passed."""
        digest = self._digest(secret, password)
        with self._lock:
            self._known[name] = (digest, self._clock() + LIFETIME)
            self._known.move_to_end(name)
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def _digest(self, secret: str, password: bytes) -> bytes:
        kept = secret.encode()
        text = len(kept).to_bytes(4, "big") + kept + password
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()
