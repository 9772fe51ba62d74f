"""What must survive a restart, behind small protocols: sessions, registrations, calls and records, secrets.

``ports`` says what callers may ask for, ``sqlite`` keeps it in a file, ``memory`` nowhere.
"""

from __future__ import annotations

from .memory import MemoryStore
from .ports import (
    BindingRow,
    CallStore,
    DialogStore,
    LocationStore,
    SecretStore,
    SessionRow,
    SessionStore,
    Store,
)
from .sqlite import SqliteStore

__all__ = [
    "BindingRow",
    "CallStore",
    "DialogStore",
    "LocationStore",
    "MemoryStore",
    "SecretStore",
    "SessionRow",
    "SessionStore",
    "SqliteStore",
    "Store",
]
