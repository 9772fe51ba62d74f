"""The story on a terminal."""

from __future__ import annotations

import time

from rich.console import Console


class Terminal:
    """Tells a story line by line; on a terminal the newest line says what is going on."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._status = self._console.status("starting ...")
        self._begin = time.monotonic()

    def __enter__(self) -> Terminal:
        self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._status.stop()

    def say(self, line: str) -> None:
        self._console.print(f"{time.monotonic() - self._begin:6.1f} s  {line}")

    def status(self, line: str) -> None:
        self._status.update(line)
