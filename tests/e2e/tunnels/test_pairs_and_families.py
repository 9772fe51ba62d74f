"""TLS pairs with DTLS and TCP with UDP, on the same port number; IPv4 and IPv6, inside and outside."""

from __future__ import annotations

import pytest

from opentsm.client.tunnel import connect
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, Shape, in_host, login, start_echo

pytestmark = pytest.mark.netns


async def talk(server: ServerProcess, echo: tuple[str, int], *, ipv6: bool = False) -> str:
    """Fifty packets there and back on each path; the inner address they had."""
    async with connect(**login(server, ipv6=ipv6)) as tunnel:
        receiver = MediaReceiver()
        voice, _ = await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo)
        for ssrc, mode, path in ((1, PathMode.STREAM, Path.STREAM), (2, PathMode.DATAGRAM, Path.DATAGRAM)):
            flow = MediaFlow(ssrc)
            receiver.expect(flow)
            voice.set_mode(mode)
            if mode is PathMode.DATAGRAM:
                await tunnel.wait_ddt_enabled(voice)
            assert voice.path is path
            await send_all([MediaSender(voice, flow)], count=50)
            await receiver.heard([flow])
            await receiver.received(50 * ssrc)
            assert flow.report().lost == flow.report().duplicated == 0
        return str(voice.get_extra_info("sockname")[0])


@pytest.mark.parametrize(
    ("outer_v6", "inner_v6"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_every_family_inside_every_family(
    lab: Lab, server: ServerProcess, *, outer_v6: bool, inner_v6: bool
) -> None:
    core = lab["core"]
    echo = start_echo(lab, address=core.ipv6 if inner_v6 else core.ipv4)
    with lab["firewall1"].capture("wan0") as wire:
        inner = in_host(lab["phone1"], lambda: talk(server, echo, ipv6=outer_v6))
    assert (":" in inner) == inner_v6
    assert {p.version for p in wire.packets if p.protocol in ("tcp", "udp")} == {6 if outer_v6 else 4}


class TestPlain:
    @pytest.fixture
    def shape(self) -> Shape:
        return Shape(transport="tcp", port=5000)

    def test_tcp_pairs_with_udp_on_the_same_number(self, lab: Lab, server: ServerProcess) -> None:
        echo = start_echo(lab)
        with lab["firewall1"].capture("wan0") as wire:
            in_host(lab["phone1"], lambda: talk(server, echo))
        outer = wire.packets
        assert {p.protocol for p in outer} == {"tcp", "udp"}
        assert all(5000 in (p.source_port, p.destination_port) for p in outer)
        assert not any(p.is_tls or p.is_dtls for p in outer)
