"""Control messages for data logs: one JSON-ready dictionary each, secrets never among the values."""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Any, Final

from opentsm.types import Flow
from opentsm.wire.messages import SECRET_FIELDS, Message, PathQuality

REDACTED: Final = "<redacted>"
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_TSID_FIELDS: Final = frozenset({"tsid", "tunnel_id"})


def log_record(message: Message) -> dict[str, Any]:
    """What a control-message log shows of one message.

    Returns:
        ``message`` (name of the type), ``tsid`` (16 hexadecimal digits), ``sequence``, and each TLV
        that is present under its field's name. Passwords, resume secrets and proofs show only that
        they were there.
    """
    record: dict[str, Any] = {"message": _WORDS.sub("-", type(message).__name__).lower()}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if value is None or value == ():
            continue
        record[field.name] = _shown(field.name, value)
    return record


def _shown(name: str, value: Any) -> Any:
    if name in SECRET_FIELDS:
        return REDACTED
    if name in _TSID_FIELDS:
        return f"{value:016x}"
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.IntFlag):
        return int(value)
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", "-")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Flow):
        return _flow(value)
    if isinstance(value, PathQuality):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | str) else str(value)  # a Redundancy reads as people write it


def _flow(flow: Flow) -> str:
    family = "ipv6" if flow.ipv6 else "ipv4"
    far = f" -> {flow.far[0]} port {flow.far[1]}" if flow.far else ""
    return f"{flow.protocol.name.lower()}/{family} port {flow.port}{far}"
