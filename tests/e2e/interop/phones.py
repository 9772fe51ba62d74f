"""A call of two phones of any make, from its first word to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.e2e.interop.baresip import Baresip
from tests.e2e.interop.linphone import Linphone
from tests.e2e.interop.world import SPEECH, score

Phone = Baresip | Linphone


def talk(caller: Phone, callee: Phone, user: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Register, call ``user``, speak, until the files that are played end, and with them the call."""
    caller.registered()
    callee.registered()
    caller.dial(user)
    caller.in_call()
    callee.in_call()
    meanwhile()
    caller.call_over()
    callee.call_over()
    caller.quit()
    callee.quit()


def judged(phones: Mapping[str, Phone], played: float = SPEECH) -> dict[str, float]:
    """PESQ of what each heard, of so many seconds that the other played."""
    return {user: round(score(phone.heard(), phone.settles, played), 2) for user, phone in phones.items()}
