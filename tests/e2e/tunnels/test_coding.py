"""Redundancy, FEC and header compression between a real client and server, over a network that loses."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.accounting import combine
from opentsm.lab.impairment import GilbertElliott, Settings
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.types import PathMode
from tests.e2e.tunnels.harness import ServerProcess, Shape, in_host, login, make_credentials

pytestmark = pytest.mark.netns

FLOWS = 8
PACKETS = 500
BEGINNING = 100
"""Packets while the datagram tunnel is new: until it is proved, media goes by both."""
CLEAN = Settings(delay=0.02)
LOSSY = Settings(delay=0.02, loss=0.05)
IPV4_UDP = 28
"""Bytes of the outer headers, and of the inner ones."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(seed=5, wan=CLEAN)) as lab:
        yield lab


@pytest.fixture
def shape() -> Shape:
    return Shape(services=("SIP", "DDT", "redundancy", "FEC", "header-compression"))


@dataclass
class Trunk:
    """Some calls in one tunnel, and their parties behind the server."""

    tunnel: Tunnel
    ways: tuple[list[MediaSender], list[MediaSender]]

    @property
    def numbers(self) -> dict[str, int]:
        return dict(self.tunnel.statistics().coding)

    def in_time(self, way: int, later: int = 3) -> float:
        """Percent of what was sent that was there before ``later`` more packets of its flow had come: with
        three of 20 ms a play-out of 60 ms, told by the order and not by the clock of a busy machine."""
        flows = [sender.flow for sender in self.ways[way]]
        report = combine([flow.report() for flow in flows])
        assert report.duplicated == report.corrupt == 0
        return 100.0 * sum(usable(flow, later) for flow in flows) / report.sent


def usable(flow: MediaFlow, later: int) -> int:
    newest, found = -1, 0
    for number in flow.numbers:
        newest = max(newest, number)
        found += number + later >= newest
    return found


@contextlib.asynccontextmanager
async def trunk(lab: Lab, server: ServerProcess, coding: str, payload: int = 160) -> AsyncIterator[Trunk]:
    """A tunnel whose calls are all on the datagram tunnel, with what was asked for agreed."""
    async with contextlib.AsyncExitStack() as stack:
        tunnel = await stack.enter_async_context(connect(**login(server), coding=coding))
        up: list[MediaSender] = []
        down: list[MediaSender] = []
        for number in range(FLOWS):
            at_phone, at_core = MediaReceiver(), MediaReceiver()
            far = MediaSocket(lab["core"].udp(port=4000 + 2 * number), at_core)
            stack.callback(far.close)
            there, back = (MediaFlow(way + number, payload=payload) for way in (100, 200))
            at_core.expect(there)
            at_phone.expect(back)
            voice, _ = await tunnel.create_datagram_endpoint(
                functools.partial(_same, at_phone),
                remote_addr=(lab["core"].ipv4, 4000 + 2 * number),
                mode=PathMode.DATAGRAM,
            )
            await tunnel.wait_ddt_enabled(voice)
            up.append(MediaSender(voice, there))
            down.append(MediaSender(far, back, voice.get_extra_info("sockname")))
        yield Trunk(tunnel, (up, down))


def _same(receiver: MediaReceiver) -> MediaReceiver:
    return receiver


async def talk(calls: Trunk, packets: int) -> None:
    """All parties at once; then until nothing more can come: the network's delay and the last flush."""
    await send_all([*calls.ways[0], *calls.ways[1]], count=packets)
    await asyncio.sleep(0.5)  # tree: allow sleep because it is how silence is heard


@pytest.mark.parametrize(
    ("coding", "at_least", "most_bytes"),
    [
        pytest.param("off", 0.0, 1.15, id="none"),
        pytest.param("1,no-fec,no-compression", 99.5, 2.0, id="factor-1"),
        pytest.param("2,no-fec,no-compression", 99.9, 3.0, id="factor-2"),
        pytest.param("1,no-compression", 99.8, 2.0, id="fec-1"),
        pytest.param("2", 99.9, 3.0, id="fec-2-compressed"),
    ],
)
def test_five_percent_of_loss_each_way(
    lab: Lab, server: ServerProcess, coding: str, at_least: float, most_bytes: float
) -> None:
    async def scenario() -> None:
        async with trunk(lab, server, coding) as calls:
            lab.wan().replace("both", LOSSY)
            talking = asyncio.ensure_future(talk(calls, BEGINNING + PACKETS))
            every = [sender.flow for way in calls.ways for sender in way]
            await until(lambda: all(len(flow.sent) >= BEGINNING for flow in every), what="the beginning")
            before, said = lab.wan().stats(), sum(len(flow.sent) for flow in every) / 2
            await talking
            after, said = lab.wan().stats(), sum(len(flow.sent) for flow in every) / 2 - said
            for way, name in enumerate(("up", "down")):
                percent = calls.in_time(way)
                bytes_ = getattr(after, name).bytes_in - getattr(before, name).bytes_in
                share = bytes_ / (said * (IPV4_UDP + 37 + IPV4_UDP + 12 + 160))
                clock = combine([sender.flow.report() for sender in calls.ways[way]])
                print(
                    f"{coding} {name}: {percent:.2f} % in time, {share:.2f} of the bytes; "
                    f"by the clock {clock.late} late, {clock.lost} lost of {clock.sent}"
                )
                assert share <= most_bytes
                assert percent >= at_least
                if coding == "off":
                    assert percent < 97, "this network does lose"

    in_host(lab["phone1"], scenario)


@pytest.mark.parametrize(("coding", "run"), [("2,no-fec", 2), ("2", 3)])
def test_bursts_are_survived(lab: Lab, server: ServerProcess, coding: str, run: int) -> None:
    """One call; the network takes so many datagrams in a row, again and again."""

    async def scenario() -> None:
        async with trunk(lab, server, coding) as calls:
            one = Trunk(calls.tunnel, (calls.ways[0][:1], calls.ways[1][:1]))
            flow = one.ways[0][0].flow
            for _ in range(25):
                # Media flows; then exactly `run` packet times of nothing; then it flows again.
                await send_all(one.ways[0], count=8)
                lab.wan().set("up", udp="drop")
                await send_all(one.ways[0], count=run)
                lab.wan().set("up", udp="pass")
            await talk(Trunk(one.tunnel, (one.ways[0], [])), 20)
            report = flow.report()
            print(f"{coding}: {report.lost} lost, {usable(flow, 3)} in time of {report.sent}")
            assert report.lost <= 2, "a burst that the clock made longer than it was meant may cost one"
            dropped = lab.wan().stats().up.dropped
            assert sum(count for name, count in dropped.items() if name.startswith("udp/")) >= 25 * run

    in_host(lab["phone1"], scenario)


def test_the_sender_chooses_by_what_is_lost(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with trunk(lab, server, "auto,no-fec") as calls:
            talking = asyncio.ensure_future(send_all([*calls.ways[0], *calls.ways[1]], seconds=90))
            try:
                await until(lambda: calls.numbers["compressed_received"] > 50, within=20, what="compression")
                assert calls.numbers["factor"] == 0, "nothing is lost yet"
                lab.wan().replace("both", Settings(delay=0.02, burst=GilbertElliott(0.03, 0.5)))
                await until(lambda: calls.numbers["factor"] >= 1, within=30, what="redundancy upwards")
                await until(lambda: calls.numbers["recovered"] >= 5, within=30, what="redundancy downwards")
                await until(
                    lambda: server.tunnels()[0]["coding"]["recovered"] > 0, within=30, what="its use upwards"
                )
                lab.wan().replace("both", CLEAN)
                await until(lambda: calls.numbers["factor"] == 0, within=60, what="peace")
            finally:
                talking.cancel()

    in_host(lab["phone1"], scenario, within=150)


def test_headers_are_left_out_on_both_paths(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with trunk(lab, server, "0", payload=33) as calls:
            await talk(calls, 20)
            for mode in (PathMode.STREAM, PathMode.DATAGRAM):
                for sender in calls.ways[0]:
                    calls.tunnel.set_mode(sender.transport, mode)  # type: ignore[arg-type]
                before, sent = calls.numbers, lab.wan().stats().up.bytes_in
                await talk(calls, 50)
                numbers, sent = calls.numbers, lab.wan().stats().up.bytes_in - sent
                assert numbers["compressed_sent"] - before["compressed_sent"] == FLOWS * 50, mode
                assert numbers["saved_bytes"] - before["saved_bytes"] == FLOWS * 50 * 24, mode
                print(f"{mode.name}: {sent / (FLOWS * 50):.1f} bytes on the wire per packet, with all else")
            for way in (0, 1):
                assert calls.in_time(way, later=PACKETS) == 100.0, "all of it, in whatever order"
            assert numbers["contexts_received"] >= FLOWS

    in_host(lab["phone1"], scenario)


class TestNotOffered:
    @pytest.fixture
    def shape(self) -> Shape:
        return Shape()

    def test_nothing_is_coded_for_a_server_that_does_not_offer_it(
        self, lab: Lab, server: ServerProcess
    ) -> None:
        async def scenario() -> None:
            async with trunk(lab, server, "2") as calls:
                await talk(calls, 20)
                assert not any(calls.numbers.values())
                assert calls.in_time(0) == 100.0

        in_host(lab["phone1"], scenario)


@pytest.fixture
def server(lab: Lab, tmp_path: Path, shape: Shape) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"])
    server = ServerProcess(lab["server"], tmp_path, shape)
    server.start()
    yield server
    server.stop()
