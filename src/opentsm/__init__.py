"""OpenTSM: tunneled session management for real-time calls.

``async with opentsm.connect("tls://host:443") as tunnel`` is the way in; see docs/sdk.md.

Names are imported when they are used: ``import opentsm`` loads neither the user plane nor asyncio.
Type checkers read __init__.pyi, which lists the same names.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__version__ = "0.1.0"

_HOMES: Final = {
    "connect": "client.tunnel",
    "Tunnel": "client.tunnel",
    "inner_endpoints": "client.lending",
    "InnerSocket": "client.sockets",
    "TunnelDatagramTransport": "client.endpoint",
    "SOL_TSM": "client.sockets",
    "SO_TSM_TRANSPORT": "client.sockets",
    "SO_TSM_PATH": "client.sockets",
    "SO_TSM_DROPPED": "client.sockets",
    "SO_TSM_REDUNDANCY": "client.sockets",
    "ServerAddress": "client.address",
    "Statistics": "client.statistics",
    "PathStatistics": "client.statistics",
    "OpenTsmError": "errors",
    "ConfigError": "errors",
    "TunnelError": "errors",
    "ConnectError": "errors",
    "RefusedError": "errors",
    "TunnelClosedError": "errors",
    "Path": "types",
    "PathMode": "types",
    "Redundancy": "types",
    "Service": "types",
    "Transport": "types",
}

__all__ = [*_HOMES, "notifications"]  # noqa: PLE0604  # strings, all of them


def __getattr__(name: str) -> Any:
    """Fetch a name from its home and keep it."""
    if name == "notifications":
        value: Any = importlib.import_module("opentsm.client.notifications")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"opentsm.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'opentsm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
