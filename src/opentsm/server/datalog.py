"""The data log: control messages as JSON lines, written by a thread of its own.

Whoever logs never waits: lines queue up to a bound, and beyond it are counted and left out; the file itself
says how many.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from opentsm.errors import ConfigError

QUEUE: Final = 8192
"""Lines that may wait for the disk: some seconds of a busy server, at most a few megabytes."""

_log: Final = structlog.get_logger("opentsm.server")


class DataLog:
    """One file of control messages.

    Args:
        path: the file; lines are added at its end.

    Attributes:
        dropped: lines left out because the disk was too slow or full.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        self._reported = 0
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUE)
        self._reopen = threading.Event()
        self._stop = threading.Event()
        self._file: TextIO | None = self._open()
        self._thread = threading.Thread(target=self._run, name="opentsm-data-log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line; never waits."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one has been moved away."""
        self._reopen.set()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, and close the file."""
        self._stop.set()
        try:
            self._queue.put_nowait(None)  # wakes the writer; a full queue keeps it awake anyway
        except queue.Full:
            self.dropped += 1
        self._thread.join(timeout)

    def _open(self) -> TextIO:
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigError(
                f"the data log cannot be opened: {error.strerror}", source=str(self.path)
            ) from error
        return os.fdopen(handle, "a", encoding="utf-8")

    def _run(self) -> None:
        while not (self._stop.is_set() and self._queue.empty()):
            record = self._queue.get()
            if self._reopen.is_set():
                self._reopen.clear()
                self._renew()
            if record is not None:
                self._put(record)
        if self._file is not None:
            self._file.close()

    def _renew(self) -> None:
        if self._file is not None:
            self._file.close()
        try:
            self._file = self._open()
        except ConfigError as error:
            self._file = None
            _log.error("data log lost", error=str(error))

    def _put(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            self.dropped += 1
            return
        try:
            missing, self._reported = self.dropped - self._reported, self.dropped
            if missing:
                self._file.write(json.dumps({"dropped": missing}) + "\n")
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
            if self._queue.empty():
                self._file.flush()
        except OSError:
            self.dropped += 1
