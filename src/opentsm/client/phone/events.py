"""What the user agent tells the phone."""

from __future__ import annotations

from dataclasses import dataclass

from opentsm.client.phone.sdp import Media


@dataclass(frozen=True, slots=True)
class Registered:
    """The registrar knows where we are, for so many seconds."""

    expires: float


@dataclass(frozen=True, slots=True)
class RegistrationFailed:
    """It does not; ``retry``: seconds until the next try, None: there will be none.

    ``code`` is SIP's, 0: the phone itself gave up.
    """

    code: int
    reason: str
    retry: float | None


@dataclass(frozen=True, slots=True)
class Unregistered:
    """The registrar has forgotten us, as we asked."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """Somebody calls. To be answered with ``accept`` or ``reject``."""

    call: str
    caller: str


@dataclass(frozen=True, slots=True)
class Ringing:
    """The far end has been found (180), or something on the way to it speaks (183)."""

    call: str
    code: int


@dataclass(frozen=True, slots=True)
class Established:
    """The call is up: where media goes, and in which formats."""

    call: str
    remote: Media


@dataclass(frozen=True, slots=True)
class Changed:
    """The far end has changed its media, or puts us on hold, or takes us back."""

    call: str
    remote: Media


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over.

    Attributes:
        code: SIP's; 200 after a normal end, 0: the phone itself gave up. by: ``local``, ``remote``.
    """

    call: str
    code: int
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Somebody's answer to our OPTIONS; 408: there was none."""

    call: str
    code: int


Event = (
    Registered
    | RegistrationFailed
    | Unregistered
    | Incoming
    | Ringing
    | Established
    | Changed
    | Ended
    | Answered
)
