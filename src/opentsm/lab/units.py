"""Settings as people type them: ``delay=40ms loss=1% rate=2mbit burst=0.5%/25%``. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Final

from opentsm.lab.impairment import GilbertElliott, Settings

_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-z%]*)")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES: Final = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2}


def parse_changes(assignments: Sequence[str]) -> dict[str, Any]:
    """``["delay=40ms", "loss=1%"]`` to keyword arguments for ``Wan.set``.

    Raises:
        ValueError: a name or value is wrong; the message has an example of a right one.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in _PARSERS:
            known = ", ".join(field.name for field in fields(Settings))
            raise ValueError(f"{assignment!r}: write NAME=VALUE, e.g. delay=40ms; names: {known}")
        changes[name] = _PARSERS[name](value.strip().lower())
    return changes


def format_settings(settings: Settings) -> str:
    """The settings that differ from a perfect wire, in the language of ``parse_changes``."""
    plain = Settings()
    words = []
    for item in fields(Settings):
        value = getattr(settings, item.name)
        if value != getattr(plain, item.name):
            words.append(f"{item.name}={_format(item.name, value)}")
    return " ".join(words) or "perfect"


def _seconds(text: str) -> float:
    return _with_unit(text, _SECONDS, "a time needs a unit: 40ms, 0.2s")


def _rate(text: str) -> float | None:
    return None if text in ("none", "off") else _with_unit(text, _BITS, "a rate needs a unit: 64kbit, 2mbit")


def _bytes(text: str) -> int:
    return round(_with_unit(text, _BYTES, "a size is a number, or e.g. 64kb"))


def _share(text: str) -> float:
    return _with_unit(text, {"%": 0.01, "": 1.0}, "a probability is 1% or 0.01")


def _with_unit(text: str, units: dict[str, float], example: str) -> float:
    match = _NUMBER.fullmatch(text)
    unit = units.get(match[2]) if match else None
    if text == "0":
        return 0.0
    if match is None or unit is None:
        raise ValueError(f"{text!r}: {example}")
    return float(match[1]) * unit


def _burst(text: str) -> GilbertElliott | None:
    """``enter/leave[/loss in the bad state]``, e.g. 0.5%/25%: a burst every 200 packets, of 4 packets."""
    if text in ("none", "off"):
        return None
    parts = [_share(part) for part in text.split("/")]
    if not 2 <= len(parts) <= 3:
        raise ValueError(f"{text!r}: burst is ENTER/LEAVE or ENTER/LEAVE/LOSS, e.g. 0.5%/25%")
    return GilbertElliott(parts[0], parts[1], loss_bad=parts[2] if len(parts) == 3 else 1.0)


def _mtu(text: str) -> int | None:
    return None if text in ("none", "off") else int(text)


def _switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r}: say yes or no")
    return text == "yes"


def _word(text: str) -> str:
    return text


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "delay": _seconds,
    "jitter": _seconds,
    "keep_order": _switch,
    "jitter_shape": _word,
    "loss": _share,
    "burst": _burst,
    "duplicate": _share,
    "reorder": _share,
    "reorder_delay": _seconds,
    "rate": _rate,
    "queue_bytes": _bytes,
    "mtu": _mtu,
    "mtu_signal": _switch,
    "udp_loss": _share,
    "udp_mtu": _mtu,
    "udp": _word,
    "tcp": _word,
    "icmp": _word,
    "shared_stream": _switch,
}


def _format(name: str, value: Any) -> str:
    if isinstance(value, GilbertElliott):
        tail = "" if value.loss_bad == 1.0 else f"/{value.loss_bad * 100:g}%"
        return f"{value.enter * 100:g}%/{value.leave * 100:g}%{tail}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _PARSERS[name] is _seconds:
        return f"{value * 1e3:g}ms"
    if _PARSERS[name] is _share:
        return f"{value * 100:g}%"
    if name == "rate":
        return f"{value / 1e3:g}kbit"
    return str(value)
