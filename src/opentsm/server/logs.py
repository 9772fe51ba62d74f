"""Structured logs on standard error: for people, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

from opentsm.config.model import LogFormat, LogLevel

_LEVELS: Final = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}
_METHODS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}


class _Threshold:
    """Least severe line written; it may change while the program runs."""

    level = logging.INFO

    def __call__(
        self, logger: Any, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if _METHODS.get(method, logging.CRITICAL) < self.level:
            raise structlog.DropEvent
        return event


_threshold: Final = _Threshold()


def set_level(level: LogLevel) -> None:
    """Change the least severe line written, at once."""
    _threshold.level = _LEVELS[level]


def wanted(level: LogLevel) -> bool:
    """Whether lines of this level are written: for callers to whom making one is dear."""
    return _LEVELS[level] >= _threshold.level


def configure(level: LogLevel, format: LogFormat) -> None:
    """Set up logging for this process."""
    set_level(level)
    as_json = format is LogFormat.JSON
    renderer: Any = structlog.processors.JSONRenderer()
    if not as_json:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            _threshold,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.dict_tracebacks] if as_json else []),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
