"""The language of the admin socket: one JSON object a line, each way.

{"command": "tunnels", "limit": 50}
{"ok": true, "result": {...}}            or   {"ok": false, "error": "what to do about it"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from opentsm.admin.backend import AdminError, Backend
from opentsm.admin.health import warnings
from opentsm.admin.metrics import render

MAX_LINE: Final = 64 * 1024
"""Bytes of one request; the longest honest one has a few hundred."""

MAX_ANSWER: Final = 16 * 1024 * 1024
"""Bytes of one answer that a reader has to put up with; a page of tunnels has some hundred kilobytes."""

MAX_PAGE: Final = 500
"""Tunnels in one answer, so that no request keeps the server from its clients for more than milliseconds."""

DEFAULT_PAGE: Final = 50
MAX_MATCH: Final = 256


async def answer(backend: Backend, line: bytes) -> bytes:
    """Carry out one request line; the answer's line."""
    try:
        result = await _run(backend, _request(line))
    except AdminError as error:
        return _line({"ok": False, "error": str(error)})
    return _line({"ok": True, "result": result})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise AdminError("a request is one JSON object on one line") from None
    if not isinstance(request, dict):
        raise AdminError("a request is one JSON object on one line")
    return request


async def _run(backend: Backend, request: dict[str, Any]) -> Any:
    command = request.pop("command", None)
    if command == "reload":
        return await backend.reload()
    handler = _COMMANDS.get(command) if isinstance(command, str) else None
    if handler is None:
        known = ", ".join(sorted([*_COMMANDS, "reload"]))
        raise AdminError(f"there is no command {command!r}; known: {known}")
    return handler(backend, request)


def _status(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    return {**backend.status(), "warnings": warnings(backend.facts())}


def _tunnels(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    limit = _number(request, "limit", DEFAULT_PAGE)
    match = request.get("match", "")
    if not isinstance(match, str) or len(match) > MAX_MATCH:
        raise AdminError(f"match is a text of at most {MAX_MATCH} characters")
    after = _number(request, "after", 0)
    return backend.tunnels(after=after, limit=max(1, min(limit, MAX_PAGE)), match=match)


def _number(request: dict[str, Any], key: str, default: int) -> int:
    value = request.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AdminError(f"{key} is a whole number")
    return value


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise AdminError(f"the request needs {key}, a text")
    return value


def _pools(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    return {"pools": [asdict(pool) for pool in backend.facts().pools]}


def _counters(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    return {"counters": backend.facts().counters}


def _drops(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    facts = backend.facts()
    drops = {name: n for name, n in facts.counters.items() if n and name.startswith("drop_")}
    return {"drops": drops, "recent": {name: facts.recent.get(name, 0) for name in drops}}


def _metrics(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    return {"text": render(backend.facts)}


_COMMANDS: Final[dict[str, Callable[[Backend, dict[str, Any]], dict[str, Any]]]] = {
    "status": _status,
    "tunnels": _tunnels,
    "tunnel": lambda backend, request: backend.tunnel(_text(request, "tsid")),
    "disconnect": lambda backend, request: backend.disconnect(_text(request, "tsid")),
    "log-level": lambda backend, request: backend.set_log_level(_text(request, "level")),
    "pools": _pools,
    "counters": _counters,
    "drops": _drops,
    "metrics": _metrics,
}
