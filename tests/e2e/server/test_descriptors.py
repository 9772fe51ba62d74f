"""A real server process that runs out of file descriptors: new clients hear no at once, tunnels go on."""

from __future__ import annotations

import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from opentsm.admin.certificates import create_authority, issue_server, write
from opentsm.admin.client import ask
from opentsm.lab.waiting import until_now
from opentsm.types import UNASSIGNED_TSID, Code, Tsid
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import (
    ConfigurationRequest,
    ConfigurationResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Message,
)

LIMIT: Final = 128
GUARD: Final = 20.0
LOOK: Final = 1.0
"""Seconds a server without any descriptor is left to itself; a busy loop would try a million times."""

CONFIGURATION: Final = """\
[server]
admin-socket = "admin.sock"
log-format = "json"

[authentication]
anonymous = true

[realm.core]
core = "userspace"
addresses = ["10.64.0.1/16"]

[tls-profile.main]
certificate = "server.pem"
key = "server.key"

[tscf-port.one]
address = "127.0.0.1"
port = 0
tls-profile = "main"

[tscf-address-pool.all]
ranges = ["10.64.1.0/24"]

[tscf-interface.access]
realm = "core"
ports = ["one"]
address-pools = ["all"]
"""


@dataclass
class ServerUnderTest:
    """The process, and where it listens."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int = 0
    opened: list[ssl.SSLSocket] = field(default_factory=list)

    def ask(self, command: str) -> dict[str, Any]:
        return ask(self.folder / "admin.sock", command)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def may_open(self, files: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (files, LIMIT))


@dataclass
class Client:
    """One stream tunnel, by the standard library's TLS."""

    stream: ssl.SSLSocket
    tsid: Tsid = UNASSIGNED_TSID

    @classmethod
    def connect(cls, server: ServerUnderTest) -> Client:
        """Raises OSError: turned away."""
        context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
        context.set_alpn_protocols(["opentsm/1"])
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=GUARD)
        try:
            client = cls(context.wrap_socket(plain, server_hostname="localhost"))
        except OSError:
            plain.close()
            raise
        server.opened.append(client.stream)
        answer = client.exchange(ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1))
        assert isinstance(answer, ConfigurationResponse)
        assert answer.code == Code.SUCCESS
        client.tsid = answer.tsid
        return client

    def exchange(self, message: Any) -> Message:
        self.stream.sendall(encode(message))
        data = self.stream.recv(4096)
        if not data:
            raise ConnectionResetError("closed")
        return decode_untrusted(data)

    def is_answered(self) -> bool:
        answer = self.exchange(KeepaliveRequest(tsid=self.tsid, sequence=7, timestamp=1))
        return isinstance(answer, KeepaliveResponse)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerUnderTest]:
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, tmp_path, "ca", force=True)
    issued = issue_server(authority, now, names=["localhost"], addresses=[ip_address("127.0.0.1")])
    write(issued, tmp_path, "server", force=True)
    (tmp_path / "server.toml").write_text(CONFIGURATION)
    words = ["prlimit", f"--nofile=64:{LIMIT}", sys.executable, "-m", "opentsm.cli.main", "serve"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*words, str(tmp_path / "server.toml")], stdout=log, stderr=log)
    found = ServerUnderTest(process, tmp_path)
    try:
        until_now(lambda: (tmp_path / "admin.sock").exists() or process.poll() is not None)
        assert process.poll() is None, found.log()
        found.port = found.ask("status")["interfaces"][0]["ports"][0]["port"]
        yield found
    finally:
        for stream in found.opened:
            stream.close()
        process.terminate()
        process.wait(GUARD)


def _fill(server: ServerUnderTest) -> list[Client]:
    """Clients up to the first that is turned away."""
    clients: list[Client] = []
    while (client := _try(server)) is not None:
        clients.append(client)
    return clients


def _try(server: ServerUnderTest) -> Client | None:
    try:
        return Client.connect(server)
    except OSError:
        return None


def test_full_means_no_for_new_clients_and_nothing_for_the_others(server: ServerUnderTest) -> None:
    assert f'"limit": {LIMIT}' in server.log()
    clients = _fill(server)
    assert len(clients) > LIMIT // 2
    assert all(client.is_answered() for client in clients)
    # What is reserved keeps the server manageable, and it says what is wrong.
    status = server.ask("status")
    assert status["drops"]["drop_no_descriptor"] >= 1
    assert status["interfaces"][0]["active"] == len(clients)
    assert any(f"only {LIMIT} files" in sentence for sentence in status["warnings"])
    until_now(lambda: "raise LimitNOFILE=" in server.log())
    for client in clients[:5]:
        client.stream.close()
    until_now(lambda: _try(server) is not None)
    assert all(client.is_answered() for client in clients[5:])


def test_without_any_descriptor_nobody_runs_in_circles_and_who_waits_is_served_later(
    server: ServerUnderTest,
) -> None:
    first = Client.connect(server)
    accepted = server.ask("counters")["counters"]["streams_accepted"]
    server.may_open(3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=GUARD) as waiting:
        waiting.settimeout(LOOK)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        assert first.is_answered()
        server.may_open(LIMIT)
        until_now(lambda: server.ask("counters")["counters"]["streams_accepted"] > accepted)
    tries = server.ask("counters")["counters"]["drop_no_descriptor"]
    assert 1 <= tries < 1000
    assert _try(server) is not None
