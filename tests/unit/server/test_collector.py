"""Clients that go leave nothing for the collector; and the server collects when it is its own process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.engine.collecting import LONGEST_WAIT
from opentsm.protocol import actions as a
from opentsm.server.collector import NEVER, Collector
from opentsm.server.counters import Count
from opentsm.types import Flow, PathMode, Protocol
from opentsm.wire.messages import QualityReport
from tests.unit.server.harness import Client, Site, configuration, running, until


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def with_a_datagram_tunnel(site: Site) -> Client:
    client = await site.up()
    flow = Flow(Protocol.UDP, client.socket().port)
    client.act("set_mode", flow, PathMode.DATAGRAM)
    await until(lambda: client.seen.last(a.DdtEnabled), "a datagram tunnel")
    client.send(QualityReport(tsid=client.tsid, sequence=77))
    return client


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["released", "lost", "terminated"])
async def test_a_client_that_has_gone_is_freed_without_the_collector(
    certificates_folder: Path, how: str
) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        client = await with_a_datagram_tunnel(site)
        server = site.server
        peer = next(iter(server.peers)).value
        await until(lambda: site.server.report.tunnel(f"{client.tsid:016x}")["switches"], "what is made late")
        left = [weakref.ref(one) for one in (peer, peer.session)]
        if how == "released":
            client.act("close")
        elif how == "terminated":
            server.report.disconnect(f"{client.tsid:016x}")
        else:
            client.cut()
            await until(lambda: site.server.hub.persistent["access"], "the loss")
            peer.give_way()
        del peer
        await until(lambda: not len(server.peers), "the end of the session")
        # The loop may still hold the call in which it ended.
        await until(lambda: all(one() is None for one in left), "the session's memory")


@pytest.mark.usefixtures("no_collector")
async def test_a_stream_that_never_asks_is_freed_without_the_collector(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        client = Client(site)
        client.session.stream_ready = lambda now, *, binding: None  # type: ignore[method-assign]
        client.dial()
        await until(lambda: site.server.hub.unconfigured, "the stream")
        peer = next(iter(site.server.hub.unconfigured))
        left = [weakref.ref(one) for one in (peer, peer.session)]
        del peer
        client.cut()
        await until(lambda: all(one() is None for one in left), "the session's memory")


def test_it_collects_when_it_is_time_and_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("opentsm.server.collector.time.monotonic", lambda: clock[0])
    counts: Counter[str] = Counter()
    collector = Collector(counts, lambda: (0, 0))
    before = gc.get_threshold()
    collector.begin()
    try:
        assert gc.get_threshold()[2] == NEVER
        assert gc.get_freeze_count() > 0
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        collector.look()
        assert counts[Count.COLLECTIONS] == 0
        clock[0] += LONGEST_WAIT
        collector.look()
        assert counts[Count.COLLECTIONS] == 1
        assert counts[Count.COLLECTIONS_FOUND] >= 1
    finally:
        collector.end()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_a_server_that_is_a_process_of_its_own_takes_the_collector_over_while_it_runs(
    certificates_folder: Path,
) -> None:
    async with running(certificates_folder, configuration(certificates_folder)) as site:
        server = type(site.server)(site.server.settings)
        started = asyncio.Event()
        running_server = asyncio.ensure_future(server.run(on_start=started.set, own_process=True))
        await started.wait()
        inside = gc.get_threshold()
        os.kill(os.getpid(), signal.SIGTERM)
        await running_server
        assert inside[2] == NEVER
        assert gc.get_threshold()[2] != NEVER
