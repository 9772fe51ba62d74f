"""The authenticator that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from opentsm.config.model import Authentication, AuthMethod
from opentsm.engine.admission import AttemptLimiter
from opentsm.errors import ConfigError

from .certificates import ClientCertificate
from .chain import Anonymous, Chain, Limited, admit
from .model import Authenticator
from .passwords import Admit, PasswordFile
from .tokens import TokenFile


def make_authenticator(
    settings: Authentication,
    *,
    limiter: AttemptLimiter,
    clock: Callable[[], float],
    plugins: Sequence[Authenticator] = (),
) -> Limited:
    """Build what an interface's clients are checked by: the methods in order, plug-ins, then anonymous.

    Args:
        settings: the configuration's ``authentication``.
        limiter: counts failures by source; one for all interfaces, so that a guesser cannot change doors.
        clock: monotonic seconds.
        plugins: more ways, asked after the configured methods (see ``load_authenticator``).

    Raises:
        ConfigError: a file that a method needs is not named, or cannot be used.
    """
    links = [_make(method, settings, lambda c: admit(limiter, clock, c)) for method in settings.methods]
    links += plugins
    if settings.anonymous:
        links.append(Anonymous())
    return Limited(Chain(links), limiter, clock)


def _make(method: AuthMethod, settings: Authentication, check: Admit) -> Authenticator:
    match method:
        case AuthMethod.CERTIFICATE:
            return ClientCertificate()
        case AuthMethod.PASSWORD:
            return PasswordFile(_needed(settings.password_file, "password"), admit=check)
        case AuthMethod.TOKEN:
            return TokenFile(_needed(settings.token_file, "token"))


def _needed(path: Path | None, method: str) -> Path:
    if path is None:
        raise ConfigError(
            f"the method {method!r} needs a file of accounts",
            hint=f"set {method}-file, or take {method!r} out of methods",
        )
    return path
