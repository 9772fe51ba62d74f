"""The client's log of control messages: one record each, to a function or as JSON lines to a file."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import IO, Any

from opentsm.client.settings import MessageLog
from opentsm.errors import ConfigError
from opentsm.types import Path
from opentsm.wire.log import log_record
from opentsm.wire.messages import Message

_log = logging.getLogger(__name__)


class MessageLogger:
    """Writes down each control message, sent and received. Secrets never appear (``wire.log``).

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, target: MessageLog | None) -> None:
        self._write = target if callable(target) else None
        self._file: IO[str] | None = None
        if isinstance(target, str | FilePath):
            self._file = _open(target)

    def log(self, direction: str, path: Path, message: Message) -> None:
        """``direction`` is ``sent`` or ``received``."""
        if self._write is None and self._file is None:
            return
        record: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "direction": direction,
            "path": path.name.lower(),
            **log_record(message),
        }
        try:
            self._put(record)
        except Exception:  # a full disk or a broken function must not cost the tunnel
            _log.exception("control message log failed; it ends here")
            self._write = None
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, record: dict[str, Any]) -> None:
        if self._write is not None:
            self._write(record)
        if self._file is not None:
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")


def _open(target: str | FilePath) -> IO[str]:
    try:
        return open(target, "a", encoding="utf-8", buffering=1)  # closed with the tunnel
    except OSError as error:
        raise ConfigError(f"message_log: cannot write {target}: {error.strerror}") from error
