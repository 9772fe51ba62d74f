"""How media is spread over streams, as applications and command lines say it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator

import pytest

import opentsm
from opentsm import SO_TSM_REDUNDANCY, SOL_TSM, Redundancy, Tunnel
from opentsm.client.streaming import check_media_age, make_stream_settings, parse_redundancy
from opentsm.errors import ConfigError
from opentsm.limits import MAX_STREAMS
from opentsm.types import NO_REDUNDANCY, Spread
from tests.unit.client.peer import Peer


@pytest.fixture
async def tunnel(peer: Peer, ca: bytes) -> AsyncIterator[Tunnel]:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        yield tunnel


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("off", NO_REDUNDANCY),
        ("fan-out", Redundancy(Spread.FAN_OUT, 2)),
        ("fan-out:3", Redundancy(Spread.FAN_OUT, 3)),
        (" Load-Balance:4 ", Redundancy(Spread.LOAD_BALANCE, 4)),
    ],
)
def test_what_people_write_is_what_is_meant_and_shown(text: str, meant: Redundancy) -> None:
    assert Redundancy.parse(text) == meant
    assert Redundancy.parse(str(meant)) == meant
    assert Redundancy.from_number(meant.number) == meant
    assert parse_redundancy(text) == meant


@pytest.mark.parametrize(
    "text", ["", "fan", "fan-out:1", f"fan-out:{MAX_STREAMS + 1}", "off:2", "fan-out:x", "1"]
)
def test_what_cannot_be_is_said_to_be_so(text: str) -> None:
    with pytest.raises(ConfigError, match="redundancy"):
        parse_redundancy(text)


@pytest.mark.parametrize("number", [2, 0x11, 0x15, 0x32, -1, 255])
def test_a_number_that_means_nothing_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"streams|valid"):
        Redundancy.from_number(number)


def test_auto_is_no_wish() -> None:
    assert parse_redundancy("auto") is parse_redundancy(None) is None


def test_names_and_ages_are_checked_before_anything_is_connected() -> None:
    assert make_stream_settings("off", "bbr").congestion_control == "bbr"
    with pytest.raises(ConfigError, match="congestion_control"):
        make_stream_settings("off", "rm -rf")
    assert check_media_age(0.4) == 0.4
    with pytest.raises(ConfigError, match="media age"):
        check_media_age(0.0)


async def test_a_socket_sets_it_for_its_tunnel(tunnel: Tunnel) -> None:
    sock, other = tunnel.socket(), tunnel.socket()
    sock.setsockopt(SOL_TSM, SO_TSM_REDUNDANCY, "fan-out:3")
    assert tunnel.redundancy == Redundancy(Spread.FAN_OUT, 3)
    assert other.getsockopt(SOL_TSM, SO_TSM_REDUNDANCY) == 0x13
    other.setsockopt(SOL_TSM, SO_TSM_REDUNDANCY, 0x24)
    assert tunnel.redundancy == Redundancy(Spread.LOAD_BALANCE, 4)
    with pytest.raises(OSError, match=r"streams|valid") as refused:
        sock.setsockopt(SOL_TSM, SO_TSM_REDUNDANCY, 0x19)
    assert refused.value.errno == errno.EINVAL
    sock.setsockopt(SOL_TSM, SO_TSM_REDUNDANCY, "auto")
    assert tunnel.redundancy == NO_REDUNDANCY
