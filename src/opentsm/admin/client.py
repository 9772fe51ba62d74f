"""The admin socket's other end, for command lines: ask one thing, get the answer."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from opentsm.admin.backend import AdminError
from opentsm.admin.protocol import MAX_ANSWER
from opentsm.errors import PlatformError

TIMEOUT: Final = 10.0
"""Seconds to wait for a server that is up; it answers in milliseconds."""


def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Ask a running server.

    Args:
        path: its admin socket.
        command: one of ``opentsm.admin.protocol``.
        arguments: what the command takes.

    Raises:
        PlatformError: nobody answers; the message says what to look at.
        AdminError: the server answers that it cannot.
    """
    line = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(path))
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                answer = answers.readline(MAX_ANSWER)
    except (OSError, ValueError) as error:
        raise PlatformError(_explain(path, error)) from error
    if not answer.endswith(b"\n"):
        raise PlatformError(f"the server on {path} hung up; its log says why")
    reply = json.loads(answer)
    if not reply["ok"]:
        raise AdminError(str(reply["error"]))
    result: dict[str, Any] = reply["result"]
    return result


def _explain(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"there is no server at {path}; start one with `opentsm serve`, or say --socket PATH"
        case ConnectionRefusedError():
            return f"the server that made {path} is gone; start it again with `opentsm serve`"
        case PermissionError():
            return f"{path} belongs to somebody else: ask as the account the server runs as, or as root"
        case TimeoutError():
            return f"the server on {path} does not answer within {TIMEOUT:g} s"
        case _:
            return f"cannot ask the server on {path}: {error}"
