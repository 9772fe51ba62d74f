"""What passes between the emulator and those who command it: counters and settings, as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from opentsm.lab.impairment import GilbertElliott, Settings


@dataclass(slots=True)
class Tally:
    """Counters of one direction; ``dropped`` by "protocol/reason"."""

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    duplicated: int = 0
    answered: int = 0
    held_most: int = 0
    worst_lateness: float = 0.0
    late_1ms: int = 0
    by_protocol: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """A plain copy, without the Counter types."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


def settings_from_json(value: dict[str, Any]) -> Settings:
    """Settings as ``dataclasses.asdict`` wrote them.

    Raises:
        ValueError, TypeError: a field is unknown or its value makes no sense.
    """
    burst = value.get("burst")
    return Settings(**{**value, "burst": GilbertElliott(**burst) if burst else None})
