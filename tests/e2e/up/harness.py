"""`opentsm up` and `opentsm run` on a phone of the lab, as processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from opentsm.lab.host import Host
from opentsm.lab.serving import PASSWORD, USER, ServerProcess
from opentsm.lab.topology import Lab
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment

CORE: Final = ("--route", "10.200.1.0/24", "--route", "fd66:300:1::/64")
"""The core is behind the server's inner network."""

OPENTSM: Final = (sys.executable, "-m", "opentsm.cli.main")


def reach(server: ServerProcess, folder: Path | None = None, user: str = USER) -> list[str]:
    """Words that say which server, and who we are."""
    where = folder or server.folder
    # One for each user: calls side by side begin at any time, and no `opentsm` may find it half written.
    secret = where / f"password-{user}"
    secret.write_text(f"{PASSWORD}\n")
    url = f"{server.shape.transport}://{server.host.ipv4}:{server.shape.port}"
    return [url, "--user", user, "--password-file", str(secret), "--ca", str(where / "ca.pem")]


def network(host: Host) -> str:
    """Everything that may change on a host: devices, addresses, routes, rules."""
    return "".join(
        host.ip(*words.split())
        for words in (
            "-brief address",
            "-4 route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
        )
    )


class Up:
    """`opentsm up` on a host; a context manager that ends it as Ctrl-C or SIGTERM do.

    Args:
        options: further words of the command line.
        host: the phone. user: who it logs in as.
    """

    def __init__(
        self, lab: Lab, server: ServerProcess, *options: str, host: str = "phone1", user: str = USER
    ) -> None:
        self.host = lab[host]
        self.command = [*OPENTSM, "up", *reach(server, user=user), *options]
        self._log = server.folder / f"up-{host}.log"
        self.process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        self._log.write_text("")
        with self._log.open("ab") as log:
            self.process = self.host.popen(self.command, stdout=log, stderr=log, env=python_environment())
        until_now(self._is_up, within=30, what="`opentsm up` to be up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(20)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def address(self, version: int = 4) -> str:
        """The device's address as the host sees it; empty: none."""
        fields = self.host.ip(
            f"-{version}", "-brief", "address", "show", "dev", "tsm0", "scope", "global"
        ).split()
        return fields[2].partition("/")[0] if len(fields) > 2 else ""

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said
        return " is up: " in self.said
