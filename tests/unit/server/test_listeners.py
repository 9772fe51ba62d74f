"""Opening sockets, and what people are told when that fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from opentsm.errors import PlatformError
from opentsm.server.listeners import open_sockets
from opentsm.types import Transport
from tests.unit.server.harness import configuration, running

PAIR = (Transport.TLS, Transport.DTLS)


def opened(address: str, port: int, workers: int = 1) -> tuple[int, list[list[socket.socket]]]:
    return open_sockets(address, port, PAIR, workers)


def close(groups: list[list[socket.socket]]) -> None:
    for one in (one for group in groups for one in group):
        one.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_each_worker_has_a_socket_and_both_transports_the_same_number(address: str) -> None:
    number, groups = opened(address, 0, workers=3)
    assert [len(group) for group in groups] == [3, 3]
    assert {one.getsockname()[1] for group in groups for one in group} == {number}
    assert [group[0].type for group in groups] == [socket.SOCK_STREAM, socket.SOCK_DGRAM]
    close(groups)


def test_a_port_in_use_is_named_even_if_its_user_is_another_server_of_ours() -> None:
    number, groups = opened("127.0.0.1", 0)
    groups[0][0].listen()
    with pytest.raises(PlatformError, match=f"127.0.0.1:{number}.*another program has it; `ss -tulpn"):
        opened("127.0.0.1", number)
    close(groups)


def test_a_datagram_port_in_use_is_found_too_and_nothing_stays_open() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        number = holder.getsockname()[1]
        with pytest.raises(PlatformError, match="another program has it"):
            opened("127.0.0.1", number)
    _, groups = opened("127.0.0.1", number)
    close(groups)


def test_an_address_of_somebody_else_is_named() -> None:
    with pytest.raises(PlatformError, match="no such address; `ip address` shows"):
        opened("192.0.2.1", 0)


def test_a_privileged_port_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(PlatformError, match=r"CAP_NET_BIND_SERVICE.*ip_unprivileged_port_start=443"):
        opened("127.0.0.1", 443)


async def test_several_workers_serve_clients(certificates_folder: Path) -> None:
    text = configuration(certificates_folder, realm="echo = 7").replace("[server]", "[server]\nworkers = 2")
    async with running(certificates_folder, text) as site:
        for number in range(8):
            inner = (await site.up()).socket()
            inner.send(b"%d" % number, "10.64.0.1", 7)
            await inner.heard(b"%d" % number)
        assert len(site.server.hub.registry) == 8


async def test_a_failed_start_leaves_nothing_open(certificates_folder: Path) -> None:
    number, groups = opened("127.0.0.1", 0)
    text = configuration(certificates_folder).replace("port = 0", f"port = {number}")
    with pytest.raises(PlatformError, match="another program has it"):
        async with running(certificates_folder, text):
            pytest.fail("it must not start")
    close(groups)
    async with running(certificates_folder, text) as site:
        assert site.server.port("v4") == number
        with pytest.raises(KeyError):
            site.server.port("v7")
