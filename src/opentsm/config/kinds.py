"""Kinds of values a setting can have: how each is read, described and written in the XML schema."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Final, TypeVar

from opentsm.config.units import parse_count, parse_duration, parse_rate, parse_switch, show
from opentsm.engine.pools import AddressRange
from opentsm.engine.services import parse_services
from opentsm.types import IpAddress, Service

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""Names of objects: they stand in logs, metrics and command lines, so no spaces or quotes."""

IpInterface = IPv4Interface | IPv6Interface

_SIP_PORT: Final = 5060
_MAX_PORT: Final = 65535
_FIRST_MEDIA_PORT: Final = 1024
_PORTS_PER_STREAM: Final = 4
_PORT_RANGE: Final = (
    f"FIRST-LAST within {_FIRST_MEDIA_PORT}-{_MAX_PORT}, at least {_PORTS_PER_STREAM} ports, as 20000-39999"
)
_E = TypeVar("_E", bound=enum.Enum)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Attributes:
        label: its name in the reference. allowed: what it may be, in words.
        parse: reads a raw value; ValueError says what would be right.
        xsd: name of its simple type in the XML schema. values: the only texts allowed, if listed.
        many: a list, written as one or as text with commas. refers_to: kind of object it names.
    """

    label: str
    allowed: str
    parse: Callable[[object], object]
    xsd: str = "text"
    values: tuple[str, ...] = ()
    many: bool = False
    refers_to: str | None = None


def duration(lowest: float, highest: float, *, or_zero: bool = True) -> Kind:
    """Seconds between two bounds, or 0 for "off"."""

    def parse(raw: object) -> float:
        seconds = parse_duration(raw)
        if not (lowest <= seconds <= highest or (or_zero and seconds == 0)):
            raise ValueError(f"{show(raw)} is out of range: {allowed}")
        return seconds

    allowed = ("0 (off) or " if or_zero else "") + f"{lowest:g} s to {highest:g} s"
    return Kind("duration", allowed, parse, "duration")


def rate(highest: int, shown: str) -> Kind:
    """Bytes per second up to a bound; 0 = unlimited."""

    def parse(raw: object) -> int:
        value = parse_rate(raw)
        if value > highest:
            raise ValueError(f"{show(raw)} is out of range: {allowed}")
        return value

    allowed = f"0 (unlimited) to {shown}"
    return Kind("rate", allowed, parse, "rate")


def count(lowest: int, highest: int) -> Kind:
    def parse(raw: object) -> int:
        number = parse_count(raw)
        if not lowest <= number <= highest:
            raise ValueError(f"{number if abs(number) < 1e18 else 'it'} is out of range: {allowed}")
        return number

    allowed = f"{lowest} to {highest}"
    return Kind("number", allowed, parse, "count")


def count_of(numbers: Sequence[int]) -> Kind:
    def parse(raw: object) -> int:
        number = parse_count(raw)
        if number not in numbers:
            raise ValueError(f"{show(raw)} is not one of {allowed}")
        return number

    allowed = ", ".join(str(number) for number in numbers)
    return Kind("number", allowed, parse, "count")


def switch(on: str = "on", off: str = "off") -> Kind:
    return Kind("switch", f"{on} or {off}", parse_switch, "switch")


def text(allowed: str, pattern: str, *, or_empty: bool = False) -> Kind:
    """Text that matches a pattern; with ``or_empty`` an empty text means None."""

    def parse(raw: object) -> str | None:
        value = _text(raw)
        if or_empty and not value:
            return None
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{show(raw)} is not {allowed}")
        return value

    return Kind("text", allowed, parse)


def path(*, or_empty: bool = False) -> Kind:
    """A file name, not yet resolved; with ``or_empty`` an empty text means None."""

    def parse(raw: object) -> Path | None:
        value = _text(raw)
        if or_empty and not value:
            return None
        if not value or "\0" in value:
            raise ValueError("a file name is missing")
        return Path(value)

    return Kind("path", "a file, relative to this one" + (', or "" for none' if or_empty else ""), parse)


def choice(values: type[_E]) -> Kind:
    return Kind("choice", " or ".join(_values(values)), _chooser(values), "choice", _values(values))


def word(names: Iterable[str]) -> Kind:
    """One of some words that stay text."""
    known = tuple(names)

    def parse(raw: object) -> str:
        if (value := _text(raw).lower()) in known:
            return value
        raise ValueError(f"{show(raw)} is not one of {', '.join(known)}")

    return Kind("choice", " or ".join(known), parse, "choice", known)


def port(*, zero_means: str) -> Kind:
    return replace(count(0, _MAX_PORT), allowed=f"1 to {_MAX_PORT}; 0: {zero_means}")


def reference(kind: str) -> Kind:
    return Kind("name", f"name of a `{kind}`", _name, "name", refers_to=kind)


def references(kind: str) -> Kind:
    return many(replace(reference(kind), allowed=f"names of `{kind}` objects"))


def many(kind: Kind) -> Kind:
    """A list of such values, in order, none twice."""

    def parse(raw: object) -> tuple[object, ...]:
        found: dict[object, None] = {}
        for item in items(raw):
            if (value := kind.parse(item)) in found:
                raise ValueError(f"{show(item)} is listed twice")
            found[value] = None
        return tuple(found)

    return replace(kind, label=f"list of {kind.label}", parse=parse, many=True)


def services() -> Kind:
    def parse(raw: object) -> frozenset[Service]:
        return parse_services(_text(item) for item in items(raw))

    known = ", ".join(service.label for service in Service)
    return Kind("list of services", f"any of {known}", parse, many=True)


_HOST_PORT: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?", re.ASCII)


def _parse_sip_server(raw: object) -> tuple[IpAddress, int]:
    value = _text(raw)
    found = _HOST_PORT.fullmatch(value)
    if found is None:
        return ip_address(value), _SIP_PORT
    number = int(found[3] or _SIP_PORT)
    if not 0 < number <= _MAX_PORT:
        raise ValueError(f"{show(raw)} has no valid port; write for example 10.64.0.1:5060 or [fd00::1]:5060")
    return ip_address(found[1] or found[2]), number


def items(raw: object) -> list[object]:
    """A list as TOML has it, or one text with commas."""
    if isinstance(raw, list):
        return list(raw)
    if isinstance(raw, str):
        return [item.strip() for item in raw.split(",") if item.strip()]
    raise ValueError(f'{show(raw)} is not a list; write ["a", "b"] or "a, b"')


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{show(raw)} is not a text" + ("; give one value" if isinstance(raw, list) else ""))
    return raw.strip()


def _name(raw: object) -> str:
    value = _text(raw)
    if not NAME.fullmatch(value):
        raise ValueError(f"{show(raw)} is not a name; use letters, digits, '-', '_' and '.'")
    return value


def _plugin_name(text: str) -> str:
    if "." in text:
        raise ValueError(f"{show(text)} has a dot; in plugin-options it separates plug-in and key")
    return str(_name(text))


def _values(values: type[enum.Enum]) -> tuple[str, ...]:
    return tuple(str(member.value) for member in values)


def _chooser(values: type[_E]) -> Callable[[object], _E]:
    known = {str(member.value): member for member in values}

    def parse(raw: object) -> _E:
        found = known.get(_text(raw).lower())
        if found is None:
            raise ValueError(f"{show(raw)} is not one of {', '.join(known)}")
        return found

    return parse


def _inner_interface(text: str) -> IpInterface:
    if "/" not in text or "%" in text:
        raise ValueError(
            f"{show(text)} is not an address with a prefix length; write for example 10.64.0.1/16"
        )
    return ip_interface(text)


def _of_text(parse: Callable[[str], object]) -> Callable[[object], object]:
    return lambda raw: parse(_text(raw))


def _parse_port_range(raw: object) -> tuple[int, int]:
    first, dash, last = _text(raw).partition("-")
    try:
        low, high = parse_count(first.strip()), parse_count(last.strip())
    except ValueError:
        low, high = 0, 0
    if not dash or not _FIRST_MEDIA_PORT <= low <= high <= _MAX_PORT or high - low + 1 < _PORTS_PER_STREAM:
        raise ValueError(f"{show(raw)} is no range of ports: {_PORT_RANGE}")
    return low, high


PLUGIN: Final = Kind("name", "a name without dots", _of_text(_plugin_name), "name")
ADDRESS: Final = Kind("address", "an IPv4 or IPv6 address", _of_text(ip_address))
INTERFACE_ADDRESS: Final = Kind(
    "address with prefix", "an address and its prefix length, as 10.64.0.1/16", _of_text(_inner_interface)
)
NETWORK: Final = Kind("prefix", "a prefix, as 10.0.0.0/8, or one address", _of_text(ip_network))
RANGE: Final = Kind(
    "address range",
    "a prefix, an address, or FIRST-LAST; of a prefix the network and broadcast addresses are left out",
    _of_text(AddressRange.parse),
)
PORT_RANGE: Final = Kind("port range", _PORT_RANGE, _parse_port_range)
SIP_SERVER: Final = Kind("address with port", "as 10.64.0.1:5060 or [fd00:64::1]:5060", _parse_sip_server)
