"""A lab with a server and tunnels for phones that know nothing of it."""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from opentsm.client.control import ask, pick, running
from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.speech import speech
from opentsm.lab.firewall import tcp_udp_443
from opentsm.lab.hearing import aligned, pesq, why_no_pesq, windows
from opentsm.lab.host import Host
from opentsm.lab.serving import SIP_DOMAIN, ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.sbc import account_line
from tests.e2e.interop.baresip import SIP_PASSWORD
from tests.e2e.up.harness import Up

SPEECH: Final = 8.0
"""Seconds of speech that are played and judged: P.862.3 advises 8 to 12."""

TAIL: Final = 1.0
"""Seconds played after them: a phone hangs up when its file ends, and its jitter buffer swallows the last."""

CLEAR: Final = 3.9
"""PESQ that a call on a clean network reaches at least. G.711's ceiling is 4.03."""

REACH: Final = 2.0
"""Seconds that one phone may begin to hear before or after the other begins to speak."""


class World:
    """A lab of phones behind one firewall that lets port 443 of the server through, and nothing else.

    Args:
        users: one phone each, in this order: phone1, phone2, ...
    """

    def __init__(self, lab: Lab, server: ServerProcess, users: Sequence[str]) -> None:
        self.lab = lab
        self.server = server
        self.folder = server.folder
        self.outside = server.host.ipv4
        self._hosts = {user: f"phone{number}" for number, user in enumerate(users, 1)}

    def host(self, user: str) -> Host:
        return self.lab[self._hosts[user]]

    def up(self, user: str, *options: str) -> Up:
        """`opentsm up` on this user's phone."""
        return Up(self.lab, self.server, *options, host=self._hosts[user], user=user)

    def asked(self, user: str, command: str = "status", **arguments: Any) -> dict[str, Any]:
        """What this user's `opentsm up` answers."""
        return self.host(user).call(lambda: ask(pick(running(), None, None), command, **arguments))

    def passed(self, user: str) -> tuple[int, int]:
        """Packets that this user's programs have sent into the device, and had from it."""
        (device,) = json.loads(self.host(user).ip("-json", "-statistics", "link", "show", "dev", "tsm0"))
        numbers = device["stats64"]
        return numbers["tx"]["packets"], numbers["rx"]["packets"]

    def sent(self, user: str) -> dict[str, int]:
        """Media packets that this user's phone has sent so far, by path."""
        flows = self.asked(user)["flows"]
        return {
            path: max((flow["sent"][path] for flow in flows), default=0) for path in ("stream", "datagram")
        }


@contextmanager
def world(
    folder: Path, users: Sequence[str], shape: Shape, *, sites: int = 1, delay: float = 0.0
) -> Iterator[World]:
    """The lab, the server and accounts; phones are the caller's to start.

    Args:
        sites: as many networks, each with such a firewall; users are spread over them in order.
        delay: seconds on the way from each site to the server, and as many back.
    """
    phones = -(-len(users) // sites)
    with Lab(LabSpec(sites=sites, phones=phones, emulate=delay > 0)) as lab:
        for site in range(1, sites + 1):
            lab.firewall(site).apply(tcp_udp_443(lab["server"].ipv4, lab["server"].ipv6))
            if delay:
                lab.wan(site).set(delay=delay)
        make_credentials(folder, lab["server"], users)
        # Digest with MD5 only, as htdigest writes it: baresip 1.0 gives up where SHA-256 is offered as well.
        lines = [account_line(user, SIP_DOMAIN, SIP_PASSWORD, "MD5") for user in users]
        (folder / "sip-users").write_text("".join(f"{line}\n" for line in lines))
        server = ServerProcess(lab["server"], folder, shape)
        server.start()
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            yield World(lab, server, users)


def require_pesq() -> None:
    """Skip, with a reason, where speech cannot be scored; fail where it has to be."""
    reason = why_no_pesq()
    if reason is not None and os.environ.get("OPENTSM_REQUIRE_NETNS") == "1":
        pytest.fail(reason, pytrace=False)
    if reason is not None:
        pytest.skip(reason)


def score(heard: array[int], begin: float, end: float) -> float:
    """PESQ of what a phone heard beside what the other played, from ``begin`` to ``end`` (seconds); of long
    speech, the worst of its stretches of about ten seconds."""
    played = speech(end)
    stretches = windows(round(begin * RATE), len(played))
    return min(pesq(played[a:b], aligned(played[a:b], heard, a, REACH)) or 0.0 for a, b in stretches)


def check_outer_wire(world: World, packets: Sequence[Any]) -> None:
    """Nothing but port 443 of the server has passed the firewall."""
    ours = {("tcp", world.outside, 443), ("udp", world.outside, 443)}
    seen = {(p.protocol, p.destination, p.destination_port) for p in packets if p.direction == "out"}
    assert {one for one in seen if one[0] in ("tcp", "udp")} <= ours, seen
