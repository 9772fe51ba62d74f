"""What a reload would change, in words, and when each change takes effect."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opentsm.config.model import Settings
from opentsm.config.schema import OBJECTS, Effect, Field, ObjectType
from opentsm.config.units import format_duration
from opentsm.engine.services import format_services
from opentsm.types import Service


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind, name: the object, as in the file. key: the setting, or "" for the object as a whole.
        old, new: values in words; "" where the object is added or removed.
        effect: when it counts.
    """

    kind: str
    name: str
    key: str
    old: str
    new: str
    effect: Effect

    def __str__(self) -> str:
        title = f"{self.kind} {self.name}".rstrip()
        if self.key:
            what = f"{title}: {self.key}: {self.old or 'nothing'} -> {self.new or 'nothing'}"
        else:
            what = f"{title} {'added' if self.new else 'removed'}"
        return f"{what} ({self.effect.value})"


@dataclass(frozen=True, slots=True)
class Changes:
    """All differences between two configurations, in the schema's order. False if there are none."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    @property
    def live(self) -> tuple[Change, ...]:
        """Those that a reload makes true, at once or for newly established tunnels."""
        return tuple(change for change in self.changes if change.effect is not Effect.RESTART)

    @property
    def restart(self) -> tuple[Change, ...]:
        """Those that wait for a restart."""
        return tuple(change for change in self.changes if change.effect is Effect.RESTART)

    def touches(self, kind: str) -> bool:
        """Whether an object of this kind changes, comes or goes."""
        return any(change.kind == kind for change in self.changes)

    def __str__(self) -> str:
        return "\n".join(str(change) for change in self.changes) or "nothing changes"


def diff(old: Settings, new: Settings) -> Changes:
    """Compare two configurations, whatever files they came from."""
    found: list[Change] = []
    for kind in OBJECTS:
        before, after = _objects(old, kind), _objects(new, kind)
        for name in before | after:
            found.extend(_compare(kind, name, before.get(name), after.get(name)))
    return Changes(tuple(found))


def describe(value: object) -> str:
    """A value of the model as a person would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, frozenset):
        return format_services(one for one in value if isinstance(one, Service))
    if isinstance(value, tuple):
        return ", ".join(describe(one) for one in value)
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, float):  # every number that need not be whole is a time
        return format_duration(value)
    name = getattr(value, "name", None) if hasattr(value, "__dataclass_fields__") else None
    return str(value if name is None else name)


def _objects(settings: Settings, kind: ObjectType) -> dict[str, Any]:
    held = getattr(settings, kind.attr)
    return held if kind.named else {"": held}


def _compare(kind: ObjectType, name: str, before: object, after: object) -> Iterator[Change]:
    if before is None or after is None:
        yield Change(kind.key, name, "", _presence(before), _presence(after), kind.presence)
        return
    for field in kind.fields:
        old, new = _value(before, field), _value(after, field)
        if old != new:
            yield Change(kind.key, name, field.key, describe(old), describe(new), field.effect)


def _presence(value: object) -> str:
    return "" if value is None else "present"


def _value(held: object, field: Field) -> object:
    """A setting's value; an object it refers to counts by name, as its own changes are listed by it."""
    value = getattr(held, field.attribute)
    return describe(value) if field.kind.refers_to else value
