"""Programs of others in hosts of a lab: what they need, how they are driven, what they said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import pytest

from opentsm.lab.host import Host
from opentsm.lab.privileges import in_user_namespace
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment
from scripts.bootstrap import GROUPS, apt_prefix

PATIENCE: Final = 60.0
"""Seconds after which a program that says nothing has failed; not a measure of speed."""

SHOWN: Final = 3000
"""Characters of its output that are shown when it fails."""


def require(*packages: str) -> None:
    """Skip, with a reason, where a Debian package is missing and may not be installed; else fail."""
    needs = [need for need in GROUPS["interop"] if need.package in packages]
    assert len(needs) == len(packages), "each package has to be in scripts/bootstrap.py"
    missing = " ".join(need.package for need in needs if not need.present())
    if not missing:
        return
    reason = f"not installed here: {missing} (Debian: apt-get install {missing})"
    may_install = apt_prefix() is not None and not in_user_namespace()
    if may_install and os.environ.get("OPENTSM_REQUIRE_NETNS") == "1":
        pytest.fail(f"{reason}; apt-get may be used here, so `make test` should have done it", pytrace=False)
    pytest.skip(reason)


class Program:
    """A program in a host, driven by lines and watched by what it writes.

    Args:
        host: where it runs.
        command: the program and its arguments.
        log: file that gets all it writes.
    """

    def __init__(self, host: Host, command: Sequence[str], log: Path, **options: Any) -> None:
        self.command = command
        self.log = log
        options = {"env": python_environment(), **options}
        with log.open("wb") as out:
            self.process: subprocess.Popen[Any] = host.popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, **options
            )

    @property
    def said(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def type(self, line: str) -> None:
        """Give it a line."""
        pipe: IO[bytes] | None = self.process.stdin
        assert pipe is not None
        pipe.write(f"{line}\n".encode())
        pipe.flush()

    def wait_for(self, *texts: str, within: float = PATIENCE) -> str:
        """Wait until it has said one of these; which one.

        Raises:
            AssertionError: it ended, or did not say it; with what it said.
        """

        def heard() -> str | None:
            said = self.said
            found = next((text for text in texts if text in said), None)
            if found is None and self.process.poll() is not None:
                raise AssertionError(
                    f"{self.command[0]} ended with {self.process.returncode}: {said[-SHOWN:]}"
                )
            return found

        try:
            return until_now(heard, within=within)
        except TimeoutError:
            raise AssertionError(
                f"not said within {within:g} s: {texts}; it said {self.said[-SHOWN:]}"
            ) from None

    def finish(self, line: str = "", within: float = 15.0) -> int:
        """Tell it to end and wait until it has; its exit code."""
        if self.process.poll() is None:
            if line:
                self.type(line)
            else:
                self.process.terminate()
        return self.process.wait(within)
