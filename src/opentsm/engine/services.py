"""Assigned services: what an interface offers, and what one client gets of it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final

from opentsm.types import Code, Service

DEFAULT_SERVICES: Final = frozenset({Service.SIP})
"""What an interface offers unless told otherwise. DDT is off: it opens a second path through the
customer's firewall, which is for the operator to decide."""

_BY_LABEL: Final = {service.label.lower(): service for service in Service}


def parse_services(text: str | Iterable[str]) -> frozenset[Service]:
    """Read a list of service names, or one string of them separated by commas, in any case.

    Raises:
        ValueError: a name is unknown; the message lists the nearest or all known names.
    """
    names = text.split(",") if isinstance(text, str) else text
    return frozenset(_service(name.strip()) for name in names if name.strip())


def format_services(services: Iterable[Service]) -> str:
    """The names in number order, as ``parse_services`` reads them."""
    return ", ".join(service.label for service in sorted(services))


def negotiate(wanted: Iterable[int], assigned: Collection[Service]) -> tuple[Service, ...]:
    """Services a session has: those the client wants and the interface offers, in number order.

    Numbers that this version does not know are passed over: a newer client must get its tunnel.
    """
    numbers = set(wanted)
    return tuple(sorted(service for service in assigned if int(service) in numbers))


def judge(service: int, assigned: Collection[Service]) -> Code:
    """The answer to a Service Request for this service number; in no case does the tunnel suffer.

    ``assigned`` is what the interface offered when the session was made: a reload holds for newly
    established tunnels only.
    """
    if service not in _NUMBERS:
        return Code.UNKNOWN_SERVICE
    return Code.SUCCESS if service in assigned else Code.SERVICE_UNAVAILABLE


_NUMBERS: Final = frozenset(int(service) for service in Service)


def _service(name: str) -> Service:
    service = _BY_LABEL.get(name.lower())
    if service is None:
        near = difflib.get_close_matches(name.lower(), _BY_LABEL, n=1)
        known = format_services(Service)
        hint = f"did you mean {_BY_LABEL[near[0]].label}?" if near else f"known: {known}"
        raise ValueError(f"no service is called {name!r}; {hint}")
    return service
