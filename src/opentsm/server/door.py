"""The authenticator in use, and the one before it until its last check is done."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import structlog

from opentsm.config.model import Authentication
from opentsm.engine.admission import AttemptLimiter
from opentsm.errors import ConfigError
from opentsm.server.auth import (
    AuthenticationFailed,
    Credentials,
    Identity,
    load_authenticator,
    make_authenticator,
)
from opentsm.server.auth.chain import Limited
from opentsm.types import Code

_log: Final = structlog.get_logger("opentsm.server")


class Door:
    """Who may come in. A reload changes the lock; checks that have begun end by the old one.

    Attributes:
        refusals: authentications refused, by reason.
        limiter: counts failures by source, across reloads.
    """

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.limiter = AttemptLimiter()
        self._settings: Authentication | None = None
        self._lock: _Lock | None = None

    def prepare(self, settings: Authentication) -> Limited | None:
        """The authenticator for these settings; None if they are the ones in use.

        Raises:
            ConfigError: a file or a plug-in cannot be used.
        """
        if settings == self._settings:
            return None
        plugins = [load_authenticator(name, settings.options_of(name)) for name in settings.plugins]
        return make_authenticator(settings, limiter=self.limiter, clock=time.monotonic, plugins=plugins)

    def use(self, settings: Authentication, authenticator: Limited | None) -> None:
        """Check new clients by this one from now on (None: go on as before)."""
        if authenticator is None:
            return
        old, self._lock, self._settings = self._lock, _Lock(authenticator), settings
        if old is not None:
            old.retire()

    def load(self, settings: Authentication) -> None:
        """``prepare`` and ``use`` in one."""
        self.use(settings, self.prepare(settings))

    async def authenticate(self, credentials: Credentials) -> Identity:
        """Say who this is.

        Raises:
            AuthenticationFailed: it is nobody we let in.
        """
        if self._lock is None:
            raise ConfigError("no authentication is configured")
        try:
            return await self._lock.authenticate(credentials)
        except AuthenticationFailed as failure:
            self.refusals[failure.reason] += 1
            raise
        except Exception as error:
            self.refusals["authenticator-error"] += 1
            _log.error("authentication broke", exc_info=error)
            raise AuthenticationFailed(Code.INTERNAL_ERROR, "authenticator-error") from error

    def close(self) -> None:
        """Let go of threads and connections."""
        if self._lock is not None:
            self._lock.retire()


class _Lock:
    """An authenticator and how many checks it is busy with."""

    def __init__(self, authenticator: Limited) -> None:
        self._authenticator = authenticator
        self._busy = 0
        self._retired = False

    async def authenticate(self, credentials: Credentials) -> Identity:
        self._busy += 1
        try:
            return await self._authenticator.authenticate(credentials)
        finally:
            self._busy -= 1
            self._close_if_done()

    def retire(self) -> None:
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and self._busy == 0:
            self._authenticator.close()
