"""Values with units: ``"300 s"``, ``"5 min"``, ``"128 KB/s"``, ``1400``, ``on``.

Every function takes what a file format gave and raises ``ValueError`` with a sentence that says what
would have been right.
"""

from __future__ import annotations

import math
import re
from typing import Final

_QUANTITY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z/]*)", re.ASCII)

SECONDS: Final = {"ms": 0.001, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
"""Duration units; a bare number is seconds."""

BYTES_PER_SECOND: Final = {
    "b/s": 1.0,
    "kb/s": 1024.0,
    "mb/s": 1024.0 * 1024.0,
    "kbit/s": 1000.0 / 8.0,
    "mbit/s": 1_000_000.0 / 8.0,
    "gbit/s": 1_000_000_000.0 / 8.0,
}
"""Rate units, whatever their case; a bare number is KB/s of 1024 bytes, as in the incumbent's
configuration, whose ceiling of 122070 KB/s is 1 Gbit/s."""

_SWITCH: Final = {
    "on": True,
    "enabled": True,
    "true": True,
    "yes": True,
    "off": False,
    "disabled": False,
    "false": False,
    "no": False,
}


def parse_duration(raw: object) -> float:
    """Seconds, from ``"90 s"``, ``"1.5 min"``, ``"250 ms"`` or a bare number of seconds."""
    return _quantity(raw, SECONDS, bare="s", example="300 s, 5 min")


def parse_rate(raw: object) -> int:
    """Bytes per second, from ``"128 KB/s"``, ``"2 Mbit/s"`` or a bare number of KB/s."""
    return round(_quantity(raw, BYTES_PER_SECOND, bare="kb/s", example="128 KB/s, 2 Mbit/s"))


def parse_count(raw: object) -> int:
    """A whole number, written as one or as text."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,18}", raw.strip(), re.ASCII):
        return int(raw)
    raise ValueError(f"{show(raw)} is not a whole number")


def parse_switch(raw: object) -> bool:
    """``on``/``off``, ``enabled``/``disabled``, ``yes``/``no`` or ``true``/``false``."""
    if isinstance(raw, bool):
        return raw
    known = _SWITCH.get(raw.strip().lower()) if isinstance(raw, str) else None
    if known is None:
        raise ValueError(f"{show(raw)} is not a switch; write on or off")
    return known


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` reads back exactly for whole units."""
    if seconds and seconds % 60 == 0:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds == int(seconds) else f"{seconds:.3f} s"


def show(raw: object) -> str:
    """A value as it can stand in a message: quoted, and never long."""
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _quantity(raw: object, units: dict[str, float], *, bare: str, example: str) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        number, unit = float(raw) if abs(raw) < 1e18 else math.inf, bare
    else:
        found = _QUANTITY.fullmatch(raw.strip()) if isinstance(raw, str) else None
        if found is None:
            raise ValueError(f"{show(raw)} is not a number with a unit; write for example {example}")
        number, unit = float(found[1]), (found[2] or bare).lower()
    if unit not in units:
        raise ValueError(
            f"unit {found[2] if found else unit!r} is not known here; write for example {example}"
        )
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{show(raw)} is not a sensible amount; write for example {example}")
    return number * units[unit]
