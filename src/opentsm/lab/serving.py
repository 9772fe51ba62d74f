"""A real TSM server process in a host of a lab, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from opentsm.admin.certificates import create_authority, issue_server, write
from opentsm.admin.client import ask
from opentsm.errors import PlatformError
from opentsm.lab.host import Host
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment
from opentsm.sbc import account_line
from opentsm.sbc.settings import ALGORITHMS

USER: Final = "alice"
PASSWORD: Final = "correct horse"

REALM = """
[realm.core]
core = "{core}"
{device}
addresses = ["10.64.0.1/16", "fd00:64::1/64"]
echo = 7
"""

POOL = """
[tscf-address-pool.office]
ranges = {ranges}
"""

INTERFACE = """
[tscf-interface.access]
realm = "core"
ports = {ports}
address-pools = ["office"]
assigned-services = {services}
plain-transports = "{plain}"
control-log = "on"
"""

SIP_DOMAIN: Final = "example.test"

SBC = """
[sbc.calls]
realm = "core"
domain = "{domain}"
address = "10.64.0.2"
users-file = "sip-users"
cdr-file = "calls.jsonl"
database = "sbc.db"
"""

PORT = """
[tscf-port.{name}]
address = "{address}"
port = {port}
transport-protocol = "{transport}"
congestion-control = "{congestion}"
{profile}
"""


@dataclass
class Shape:
    """What a test's server is like. ``address``: the IPv4 address it listens on; "": every one.
    ``sip_server``: told to clients. ``sbc_more``: further lines of the SBC's settings, and objects behind
    them."""

    services: tuple[str, ...] = ("SIP", "DDT")
    ranges: tuple[str, ...] = ("10.64.1.10-10.64.1.250", "fd00:64::1000-fd00:64::1fff")
    transport: str = "tls"
    port: int = 443
    ipv6: bool = True
    persistence: str = "330 s"
    sbc: bool = False
    sbc_more: str = ""
    store: bool = True
    sip_server: str = ""
    core: str = "tun"
    address: str = ""
    congestion: str = ""

    def text(self, folder: Path) -> str:
        profile = 'tls-profile = "main"' if self.transport == "tls" else ""
        addresses = {"v4": self.address or "0.0.0.0", **({"v6": "::"} if self.ipv6 else {})}
        parts = [
            f'[server]\nworkers = 2\nadmin-socket = "{folder / "admin.sock"}"\n'
            f'data-log = "{folder / "control.jsonl"}"\n',
            f'store = "{folder / "server.db"}"\n' if self.store else "",
            f'[timers]\ntunnel-persistence-time = "{self.persistence}"\n',
            '[authentication]\nmethods = ["password"]\npassword-file = "passwords"\n',
            '[tls-profile.main]\ncertificate = "server.pem"\nkey = "server.key"\n' if profile else "",
            REALM.format(core=self.core, device='tun = "tsm0"' if self.core == "tun" else ""),
            SBC.format(domain=SIP_DOMAIN) + self.sbc_more if self.sbc else "",
            POOL.format(ranges=json.dumps(self.ranges)),
            f'sip-server = "{self.sip_server}"\n' if self.sip_server else "",
            INTERFACE.format(
                ports=json.dumps(list(addresses)),
                services=json.dumps(self.services),
                plain="off" if profile else "on",
            ),
        ]
        parts += [
            PORT.format(
                name=name,
                address=address,
                port=self.port,
                transport=self.transport,
                profile=profile,
                congestion=self.congestion,
            )
            for name, address in addresses.items()
        ]
        return "\n".join(parts)


@dataclass
class ServerProcess:
    """`opentsm serve` in a host of the lab."""

    host: Host
    folder: Path
    shape: Shape = field(default_factory=Shape)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.write()
        log = (self.folder / "server.log").open("ab")
        command = [sys.executable, "-m", "opentsm.cli.main", "serve", str(self.config)]
        self.process = self.host.popen(command, stdout=log, stderr=log, env=python_environment())
        log.close()
        until_now(self._answers, what=f"the server to listen; its log: {self.folder / 'server.log'}")

    @property
    def config(self) -> Path:
        return self.folder / "server.toml"

    def write(self) -> None:
        self.config.write_text(self.shape.text(self.folder))

    def reload(self, **changes: Any) -> None:
        """Change the file, ask for a reload and wait until it is in force."""
        for name, value in changes.items():
            setattr(self.shape, name, value)
        self.write()
        self.command("reload")

    def command(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command on the admin socket; see ``opentsm.admin.protocol``."""
        return ask(self.folder / "admin.sock", command, **arguments)

    def tunnels(self) -> list[dict[str, Any]]:
        """Everything the server knows of each of its tunnels (the first page)."""
        page = self.command("tunnels", after=0, limit=50, match="")
        return [self.command("tunnel", tsid=row["tsid"]) for row in page["tunnels"]]

    def counters(self) -> dict[str, int]:
        """Counters and drops by name."""
        counters: dict[str, int] = self.command("counters")["counters"]
        return counters

    def control_log(self) -> list[dict[str, Any]]:
        path = self.folder / "control.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def call_records(self) -> list[dict[str, Any]]:
        """Records of ended calls (with ``Shape.sbc``)."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        self.process.wait(20)
        self.process = None

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise PlatformError(f"the server ended at once: {(self.folder / 'server.log').read_text()}")
        probe = self.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        with probe:
            return probe.connect_ex((self.host.ipv4, self.shape.port)) == 0


def make_credentials(folder: Path, server: Host, users: Sequence[str] = (USER,)) -> None:
    """A development CA, the server's certificate, a password file and SIP accounts of these users; all have
    the same password."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca")
    addresses = [ip_address(a) for a in (server.ipv4, server.ipv6) if a]
    write(issue_server(authority, now, names=["server.test"], addresses=addresses), folder, "server")
    for user in users:
        command = [sys.executable, "-m", "opentsm.cli.main", "passwd", str(folder / "passwords"), user]
        _run(command, f"{PASSWORD}\n")
    accounts = [account_line(user, SIP_DOMAIN, PASSWORD, name) for user in users for name in ALGORITHMS]
    (folder / "sip-users").write_text("".join(f"{line}\n" for line in accounts))


def _run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of our own commands.

    Raises:
        PlatformError: it failed; with what it printed.
    """
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, timeout=60, check=False, env=python_environment()
    )
    if done.returncode:
        raise PlatformError(f"`{' '.join(command[2:])}` failed: {done.stderr}{done.stdout}")
    return done
