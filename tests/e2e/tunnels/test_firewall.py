"""What leaves the phone's network, seen on the firewall's outer wire, is what the manual says."""

from __future__ import annotations

import asyncio

import pytest

from opentsm.client.tunnel import connect
from opentsm.errors import ConnectError
from opentsm.lab.capture import Packet
from opentsm.lab.firewall import tcp_443_only, tcp_udp_443
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import spawn
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host, login, start_echo

pytestmark = pytest.mark.netns

SIP_LIKE = b"OPTIONS sip:core@10.200.1.2 SIP/2.0\r\n\r\n"


class Lines(asyncio.DatagramProtocol):
    """Signalling's answers."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.append(data)


def media(packets: list[Packet]) -> list[Packet]:
    """DTLS application data: what carries inner packets once the handshake is over."""
    return [packet for packet in packets if packet.is_dtls and packet.payload[0] == 23]


def test_with_only_tcp_443_open_everything_works_on_the_stream(lab: Lab, server: ServerProcess) -> None:
    lab.firewall().apply(tcp_443_only(lab["server"].ipv4))
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver = MediaReceiver()
            voice, _ = await tunnel.create_datagram_endpoint(
                lambda: receiver, remote_addr=echo, mode=PathMode.DATAGRAM
            )
            _, lines = signalling = await tunnel.create_datagram_endpoint(Lines, remote_addr=echo)
            flow = MediaFlow(1)
            receiver.expect(flow)
            signalling[0].sendto(SIP_LIKE)
            await send_all([MediaSender(voice, flow)], count=100)
            await receiver.received(100)
            await until(lambda: lines.received == [SIP_LIKE])
            assert voice.path is Path.STREAM
            assert flow.report().lost == flow.report().duplicated == 0

    with lab["firewall1"].capture("wan0") as wire:
        in_host(lab["phone1"], scenario)
    passed = wire.packets
    assert {(p.protocol, 443 in (p.source_port, p.destination_port)) for p in passed} == {("tcp", True)}
    assert not any(SIP_LIKE[:20] in p.raw for p in passed), "signalling left in clear"
    assert lab.firewall().counters(), "the firewall saw nothing"


def test_with_udp_443_open_media_goes_as_dtls_and_signalling_stays(lab: Lab, server: ServerProcess) -> None:
    lab.firewall().apply(tcp_udp_443(lab["server"].ipv4))
    echo = start_echo(lab)
    inner: list[set[str]] = []

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver = MediaReceiver()
            voice, _ = await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo)
            first, second = MediaFlow(1), MediaFlow(2)
            receiver.expect(first)
            receiver.expect(second)
            before = voice.get_extra_info("sockname")
            await send_all([MediaSender(voice, first)], count=50)
            await receiver.received(50)
            voice.set_mode(PathMode.DATAGRAM)
            await tunnel.wait_ddt_enabled(voice)
            _, lines = signalling = await tunnel.create_datagram_endpoint(Lines, remote_addr=echo)
            signalling[0].sendto(SIP_LIKE)
            talking = spawn("media", send_all([MediaSender(voice, second)], count=275))
            # What begins on a DDT goes by both for half a second, and of each packet the first copy counts.
            await receiver.received(100)
            begun = tunnel.statistics().datagram.rx_packets
            await talking
            await receiver.received(325)
            await until(lambda: lines.received == [SIP_LIKE])
            assert voice.get_extra_info("sockname") == before
            assert first.report().lost == second.report().lost == 0
            statistics = tunnel.statistics()
            assert statistics.datagram.rx_packets - begun >= 200
            inner.append({str(tunnel.inner_address)})

    with lab["firewall1"].capture("wan0") as wire, lab["core"].capture("srv1") as core:
        in_host(lab["phone1"], scenario)
    ports = {(p.protocol, 443 in (p.source_port, p.destination_port)) for p in wire.packets}
    assert ports == {("tcp", True), ("udp", True)}
    assert len(media(wire.select(direction="out"))) >= 200
    assert len(media(wire.select(direction="in"))) >= 200
    # Behind the server the call never changed its face.
    sources = {p.source for p in core.select(protocol="udp", port=4000) if p.destination_port == 4000}
    assert [sources] == inner


def test_a_server_that_cannot_be_reached_is_explained(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> str:
        arguments = login(server)
        arguments["servers"] = f"tls://{lab['server'].ipv4}:444"
        with pytest.raises(ConnectError) as caught:
            await connect(**arguments)
        return str(caught.value)

    text = in_host(lab["phone1"], scenario)
    assert "444" in text
    assert "refused" in text.lower()
