"""The TSM server: assembly and life cycle.

Reading order: ``server`` (start, reload, stop), ``hub`` (all clients), ``peer`` (one client), then what they
stand on: ``offers`` and ``leases`` (what a new tunnel gets), ``listeners``, ``tls``, ``core_side``, ``tun``
(where packets come in and go out), ``datalog``, ``logs``, ``watch``, ``report``. ``auth`` knows who is who.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentsm.server.server import Server

__all__ = ["Server"]


def __getattr__(name: str) -> object:
    """``Server`` is imported when it is used: `opentsm passwd` needs ``auth`` only, and no user plane."""
    if name == "Server":
        from opentsm.server.server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
