"""Noticing another network: the decision, the clocks, and the kernel's word."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from opentsm.client import netwatch
from opentsm.client.roaming import SLEPT, Roaming, Standing, View, judge
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until
from opentsm.types import SocketAddress

HOME, AWAY, INNER = "192.168.1.7", "10.20.0.9", "10.64.1.10"


@pytest.mark.parametrize(
    ("view", "was_nowhere", "standing"),
    [
        (View(HOME, True, HOME), False, Standing.HERE),
        (View(HOME, True, AWAY), False, Standing.ELSEWHERE),
        (View(HOME, False, AWAY), False, Standing.UPROOTED),
        (View(HOME, False, None), False, Standing.NOWHERE),
        (View(HOME, True, None), False, Standing.NOWHERE),
        (View(HOME, True, HOME), True, Standing.ELSEWHERE),
        (View(HOME, False, INNER, (INNER,)), False, Standing.NOWHERE),
        (View(HOME, True, INNER, (INNER,)), False, Standing.NOWHERE),
        (View(None, False, AWAY), False, Standing.ELSEWHERE),
    ],
)
def test_where_we_stand(view: View, was_nowhere: bool, standing: Standing) -> None:
    assert judge(view, was_nowhere=was_nowhere) is standing


class Roamer:
    def __init__(self, local: str = HOME) -> None:
        self.outer: tuple[SocketAddress, SocketAddress] | None = ((local, 5000), ("192.0.2.1", 443))
        self.inner: Collection[str] = (INNER,)
        self.told: list[bool] = []
        self.sources: list[str | None] = []

    def network_changed(self, *, lost: bool = False) -> None:
        self.told.append(lost)

    def moved(self, source: str | None) -> None:
        self.sources.append(source)


class Machine:
    """What the kernel would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source: str | None = HOME
        self.addresses = {HOME}
        monkeypatch.setattr(netwatch, "source_towards", lambda remote: self.source)
        monkeypatch.setattr(netwatch, "is_here", lambda address: address in self.addresses)


async def test_a_walk_out_of_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, roamer = Machine(monkeypatch), Roamer()
    roaming = Roaming(roamer, asleep=lambda: 0.0)
    roaming.start()
    roaming.look()
    assert not roamer.told, "a change that is none of ours"
    machine.source, machine.addresses = None, set()
    roaming.look()
    assert (roamer.told, roamer.sources) == ([], [None])
    machine.source, machine.addresses = AWAY, {AWAY}
    roaming.look()
    roaming.look()
    assert (roamer.told, roamer.sources) == ([True], [None, AWAY])
    roaming.stop()


async def test_another_network_beside_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, roamer = Machine(monkeypatch), Roamer()
    roaming = Roaming(roamer, asleep=lambda: 0.0)
    roaming.start()
    machine.source, machine.addresses = AWAY, {HOME, AWAY}
    for _ in range(5):
        roaming.look()
    assert roamer.told == [False], "asked once, however much the kernel says"
    roamer.outer = ((AWAY, 5001), ("192.0.2.1", 443))
    machine.source = HOME
    roaming.look()
    assert roamer.told == [False, False], "and once on the way back"
    roaming.stop()


async def test_a_cable_pulled_and_plugged_in_again_is_a_new_network(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, roamer = Machine(monkeypatch), Roamer()
    roaming = Roaming(roamer, asleep=lambda: 0.0)
    roaming.start()
    machine.source = None
    roaming.look()
    machine.source = HOME
    roaming.look()
    assert roamer.told == [False]
    roaming.stop()


async def test_a_machine_that_wakes_looks_for_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    roamer, asleep = Roamer(), [100.0]
    roaming = Roaming(roamer, asleep=lambda: asleep[0])
    roaming.start()
    asleep[0] += SLEPT / 2
    roaming.look()
    assert not roamer.told
    asleep[0] += 3600.0
    roaming.look()
    roaming.look()
    assert roamer.told == [False]
    roaming.stop()


async def test_the_clock_alone_is_enough_to_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    monkeypatch.setattr("opentsm.client.roaming.SLEEP_LOOK", 0.001)
    roamer, asleep = Roamer(), [0.0]
    roaming = Roaming(roamer, asleep=lambda: asleep[0])
    roaming.start()
    asleep[0] = 60.0
    await until(lambda: roamer.told, what="the clocks to be looked at")
    roaming.stop()


def test_what_the_kernel_answers_about_this_machine() -> None:
    assert netwatch.source_towards(("127.0.0.1", 9)) == "127.0.0.1"
    assert netwatch.is_here("127.0.0.1")
    assert not netwatch.is_here("192.0.2.77")
    assert netwatch.time_asleep() >= -0.001


@pytest.mark.parametrize(
    ("data", "news"),
    [
        (netwatch._HEADER.pack(16, 20, 0, 0, 0), True),
        (netwatch._HEADER.pack(16, 3, 0, 0, 0), False),
        (netwatch._HEADER.pack(18, 3, 0, 0, 0) + bytes(4) + netwatch._HEADER.pack(16, 25, 0, 0, 0), True),
        (netwatch._HEADER.pack(0, 3, 0, 0, 0) * 2, False),
        (b"\x10\0", False),
        (b"", False),
    ],
)
def test_only_news_is_news(data: bytes, news: bool) -> None:
    assert netwatch._has_news(data) is news


@pytest.mark.netns
def test_an_address_that_comes_and_goes_is_reported() -> None:
    with Lab(LabSpec(emulate=False)) as lab:
        phone = lab["phone1"]

        async def scenario() -> None:
            told = asyncio.Event()
            watch = netwatch.NetworkWatch(told.set)
            for verb in ("add", "del"):
                told.clear()
                await asyncio.to_thread(phone.ip, "address", verb, "10.250.0.1/24", "dev", "eth0")
                async with asyncio.timeout(10):
                    await told.wait()
            watch.close()
            watch.close()

        phone.call(asyncio.run, scenario())
