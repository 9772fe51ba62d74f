"""A running server as its operator sees it, through the admin socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from opentsm.admin.backend import AdminError
from opentsm.admin.client import ask
from opentsm.config import load
from opentsm.types import Code
from opentsm.wire.messages import ReleaseRequest
from tests.unit.server.harness import configuration, running, until


def with_admin(folder: Path, socket: Path, **parts: str) -> str:
    return configuration(folder, **parts).replace('admin-socket = ""', f'admin-socket = "{socket}"')


async def asked(socket: Path, command: str, **arguments: Any) -> dict[str, Any]:
    answer = await asyncio.to_thread(lambda: ask(socket, command, **arguments))
    assert json.dumps(answer)
    return answer


async def test_an_operator_sees_interfaces_pools_and_tunnels(
    certificates_folder: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "admin.sock"
    async with running(
        certificates_folder, with_admin(certificates_folder, socket, realm="echo = 7")
    ) as site:
        client = await site.up()
        other = await site.up()
        status = await asked(socket, "status")
        (interface,) = status["interfaces"]
        assert (interface["active"], interface["services"]) == (2, "SIP, DDT")
        assert interface["ports"] == [
            {"name": "v4", "address": "127.0.0.1", "port": site.server.port(), "transports": ["tls", "dtls"]}
        ]
        assert [(pool["family"], pool["leased"]) for pool in status["pools"]] == [("IPv4", 2), ("IPv6", 2)]
        assert status["warnings"] == []
        page = await asked(socket, "tunnels", limit=1)
        assert [one["tsid"] for one in page["tunnels"]] == [f"{client.tsid:016x}"]
        page = await asked(socket, "tunnels", after=page["next"])
        assert [one["tsid"] for one in page["tunnels"]] == [f"{other.tsid:016x}"]
        found = await asked(socket, "tunnels", match=other.inner[0])
        assert [one["inner"] for one in found["tunnels"]] == [other.inner]
        inner = client.socket()
        inner.send(b"counted", "10.64.0.1", 7)
        await inner.heard(b"counted")
        detail = await asked(socket, "tunnel", tsid=f"{client.tsid:016x}")
        assert detail["paths"]["stream"]["rx_packets"] == 1
        assert detail["outer"].startswith("127.0.0.1:")
        metrics = (await asked(socket, "metrics"))["text"]
        assert 'opentsm_tunnels{interface="access",state="active"} 2.0' in metrics


async def test_an_operator_ends_a_tunnel(certificates_folder: Path, tmp_path: Path) -> None:
    socket = tmp_path / "admin.sock"
    async with running(certificates_folder, with_admin(certificates_folder, socket)) as site:
        client = await site.up()
        await asked(socket, "disconnect", tsid=f"{client.tsid:016x}")
        await until(lambda: client.ended, "the client is told")
        (message,) = [one for one in client.seen.messages if isinstance(one, ReleaseRequest)]
        assert (message.code, message.text) == (Code.NOT_ALLOWED, "disconnected by the operator")
        await until(lambda: len(site.server.hub.registry) == 0)
        with pytest.raises(AdminError, match="there is no tunnel with TSID"):
            await asked(socket, "tunnel", tsid=f"{client.tsid:016x}")
        with pytest.raises(AdminError, match="is not a TSID"):
            await asked(socket, "disconnect", tsid="everybody")


async def test_an_operator_reloads(certificates_folder: Path, tmp_path: Path) -> None:
    socket, file = tmp_path / "admin.sock", tmp_path / "server.toml"
    file.write_text(with_admin(certificates_folder, socket))
    async with running(certificates_folder, load(file)):
        assert await asked(socket, "reload") == {"ok": True, "error": "", "changes": []}
        file.write_text("nonsense")
        answer = await asked(socket, "reload")
        assert (answer["ok"], answer["changes"]) == (False, [])
        assert str(file) in answer["error"]
        assert "The last reload changed nothing" in (await asked(socket, "status"))["warnings"][0]
        with pytest.raises(AdminError, match="known: debug, info, warning, error"):
            await asked(socket, "log-level", level="loud")
        await asked(socket, "log-level", level="info")
