"""A machine whose every packet goes through the tunnel comes into another network: the tunnel comes along."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from opentsm.lab.serving import ServerProcess
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until_now
from tests.e2e.tunnels.harness import start_echo
from tests.e2e.up.harness import Up

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(sites=2, emulate=False)) as lab:
        yield lab


def out_of_the_wifi(lab: Lab) -> None:
    """Mobile data has come up beside the Wi-Fi; then the Wi-Fi goes."""
    lab.second_uplink(1, 2)
    lab["phone1"].ip("link", "set", "eth0", "down")


def into_another_house(lab: Lab) -> None:
    """For a moment there is no network at all; the next one looks as the first one did."""
    lab.rehome(1, 2)


def answered(lab: Lab, echo: tuple[str, int]) -> bool:
    """Whether a program on the phone reaches the core."""
    with lab["phone1"].socket(socket.AF_INET, socket.SOCK_DGRAM) as program, contextlib.suppress(OSError):
        program.settimeout(2)
        program.sendto(b"anybody there?", echo)
        return program.recv(100) == b"anybody there?"
    return False


@pytest.mark.parametrize("change", [out_of_the_wifi, into_another_house])
def test_the_default_route_keeps_leading_into_the_tunnel(
    lab: Lab, server: ServerProcess, change: Callable[[Lab], None]
) -> None:
    echo = start_echo(lab)
    with Up(lab, server, "--default-route") as up:
        until_now(lambda: answered(lab, echo), what="the core by way of the tunnel")
        (before,) = server.tunnels()
        change(lab)
        until_now(
            lambda: server.tunnels()[0]["outer"] != before["outer"],
            within=40,
            what=f"the tunnel to come along; it said: {up.said}",
        )
        until_now(lambda: answered(lab, echo), what="the core from the new network")
        (after,) = server.tunnels()
        assert (after["tsid"], after["inner"]) == (before["tsid"], before["inner"])
        assert up.stop() == 0, up.said
