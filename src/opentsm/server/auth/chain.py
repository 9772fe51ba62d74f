"""Authenticators made of others: several in order, with attempts counted; and the one that asks nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

import structlog

from opentsm.engine.admission import AttemptLimiter
from opentsm.types import Code

from .model import NOT_OFFERED, AuthenticationFailed, Authenticator, Credentials, Identity, denied

_log: Final = structlog.get_logger(__name__)


@runtime_checkable
class Closable(Protocol):
    """An authenticator that holds threads or connections."""

    def close(self) -> None:
        """Let go of them."""
        ...


class Anonymous:
    """Lets in who shows nothing.

    Who shows a password is not anonymous: a mistyped one must fail, not quietly become a stranger's session.
    """

    method: Final = "anonymous"

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``."""
        if credentials.password:
            raise denied(NOT_OFFERED)
        return Identity(name="anonymous", method=self.method)


class Chain:
    """Tries authenticators in order; the first that knows the client decides.

    A refusal lets the next one try. Anything but an ordinary refusal (too busy, told to wait) ends the
    chain, so that load never opens a weaker way in. An authenticator that breaks counts as a refusal.

    Args:
        links: the authenticators; none at all refuses everybody.
    """

    def __init__(self, links: Sequence[Authenticator]) -> None:
        self._links = tuple(links)

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``. Fails with the first reason that says more than ``not-offered``."""
        reasons: list[str] = []
        for link in self._links:
            try:
                return await link.authenticate(credentials)
            except AuthenticationFailed as failure:
                if failure.code is not Code.UNAUTHORIZED:
                    raise
                reasons.append(failure.reason)
            except Exception as error:
                # A plug-in's bug must neither let anybody in nor end the server.
                _log.error("authenticator broke", authenticator=type(link).__name__, exc_info=error)
                reasons.append("authenticator-error")
        raise denied(next((reason for reason in reasons if reason != NOT_OFFERED), NOT_OFFERED))

    def close(self) -> None:
        """Close the links that hold anything."""
        for link in self._links:
            if isinstance(link, Closable):
                link.close()


class Limited:
    """Counts failures by source address and turns a source away that has had too many.

    Args:
        inner: who decides.
        limiter: the counting.
        clock: monotonic seconds.
    """

    def __init__(self, inner: Authenticator, limiter: AttemptLimiter, clock: Callable[[], float]) -> None:
        self._inner = inner
        self._limiter = limiter
        self._clock = clock

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``; ``rate-limited`` with the time to wait for a source that failed too often.

        Being turned away is no failure of its own: a patient client gets in when its time has come.
        """
        admit(self._limiter, self._clock, credentials)
        source = credentials.source
        try:
            identity = await self._inner.authenticate(credentials)
        except AuthenticationFailed as failure:
            if source is not None and failure.code is Code.UNAUTHORIZED:
                self._limiter.failed(source[0], self._clock())
            raise
        if source is not None:
            self._limiter.succeeded(source[0], self._clock())
        return identity

    def close(self) -> None:
        """Close the inner one if it holds anything."""
        if isinstance(self._inner, Closable):
            self._inner.close()


def admit(limiter: AttemptLimiter, clock: Callable[[], float], credentials: Credentials) -> None:
    """Let an attempt through to an expensive check, or not.

    Raises:
        AuthenticationFailed: ``rate-limited``; this source has failed too often.
    """
    if credentials.source is None:
        return
    wait = limiter.check(credentials.source[0], clock())
    if wait is not None:
        raise AuthenticationFailed(Code.RATE_LIMITED, "too-many-attempts", retry_after=wait)
