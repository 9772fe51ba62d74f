"""Phones that call each other in virtual time, on a network in memory."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, Coroutine, Mapping
from itertools import pairwise
from typing import Any

import pytest

from opentsm.client.phone.call import Call, CallError, CallSettings
from opentsm.client.phone.core import Account
from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.types import Path, PathMode, SocketAddress
from tests.unit.client.phone.virtual import Fate, Host, Network, Transport, VirtualLoop, run, until

WORDS = speech()[4000:12000]
"""A second of the built-in voice."""


def phone(network: Network, name: str, number: int, server: SocketAddress | None = None) -> Phone:
    return Phone(Host(network, f"10.64.0.{number}"), Account(name, "example.org"), server=server)


def uri(of: Phone) -> str:
    return f"sip:{of.account.user}@{of.agent.local[0]}"


Story = Callable[[Phone, Phone], Coroutine[Any, Any, None]]


def told(story: Story, fates: Mapping[Path, Fate] | None = None) -> None:
    """Alice and Bob on a network, and what happens."""

    async def main() -> None:
        network = Network(fates)
        async with phone(network, "alice", 2) as alice, phone(network, "bob", 3) as bob:
            await story(alice, bob)
        assert network.ports == {}  # whatever happened, nothing is left open

    run(main())


async def connected(
    caller: Phone, callee: Phone, ours: CallSettings | None = None, theirs: CallSettings | None = None
) -> tuple[Call, Call]:
    call = await caller.call(uri(callee), ours or CallSettings())
    answered = await callee.answer(await callee.next_call(), theirs or CallSettings())
    await call.answered()
    return call, answered


def contains(recording: array[int], wanted: array[int]) -> bool:
    """Whether a stretch was heard as it was said, but for G.711."""
    return wanted.tobytes() in recording.tobytes()


def test_each_hears_what_the_other_says() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        words = CallSettings(samples=WORDS, playout=0.2)
        call, answered = await connected(alice, bob, words, words)
        coded = PCMU.decode(PCMU.encode(WORDS))
        await until(lambda: all(contains(c.recording, coded[-800:]) for c in (call, answered)))
        ended = await call.hang_up()
        assert (ended.code, ended.by) == (200, "local")
        assert (await answered.ended()).by == "remote"
        for one in (call, answered):
            report = one.report()
            assert contains(one.recording, coded)  # every sample, in order: nothing lost, late or concealed
            assert report.received >= 50
            assert (report.lost_percent, report.late_percent, report.drops) == (0.0, 0.0, {})
            assert report.mos is not None
            assert report.mos > 4.0
        assert alice.calls == bob.calls == ()

    told(story)


def test_an_echo_says_what_it_hears() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(
            alice, bob, CallSettings(samples=WORDS, playout=0.2), CallSettings(echo=True, playout=0.2)
        )
        twice = PCMU.decode(PCMU.encode(PCMU.decode(PCMU.encode(WORDS))))
        await until(lambda: contains(call.recording, twice[:1600]))
        await answered.hang_up()
        assert (await call.ended()).by == "remote"

    told(story)


def test_digits_are_heard() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        call.dial("12")
        call.dial("#")
        await until(lambda: answered.media.keys.digits == "12#")
        await call.hang_up()
        assert answered.report().keys == "12#"
        assert answered.report().lost_percent == 0.0  # the voice pauses while a key is down; that is no loss

    told(story)


def test_reports_of_both_ends_give_the_round_trip() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        await until(lambda: call.media.round_trip is not None and answered.media.round_trip is not None)
        assert call.report().round_trip_ms is not None
        assert call.report().remote_loss_percent == 0.0

    told(story)


def test_the_switch_is_noted_and_so_is_every_packets_path() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, _ = await connected(alice, bob)
        await until(lambda: len(call.media.sent) > 3)
        call.set_mode(PathMode.DATAGRAM)
        await until(lambda: call.media.sent[-1].path is Path.DATAGRAM)
        call.set_mode(PathMode.STREAM)
        await until(lambda: call.media.sent[-1].path is Path.STREAM)
        report = call.report()
        assert set(report.sent_by) == {"stream", "datagram"}
        assert sum(report.sent_by.values()) == report.sent
        assert [change.what for change in call.changes] == [
            "switch: stream",
            "path: stream",
            "switch: datagram",
            "path: datagram",
            "switch: stream",
            "path: stream",
        ]

    told(story)


def test_busy_and_declined() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call = await alice.call(uri(bob))
        bob.reject(await bob.next_call(), 486)
        with pytest.raises(CallError, match="486 Busy Here"):
            await call.answered()
        bob.set_busy(True)
        with pytest.raises(CallError, match="486"):
            await (await alice.call(uri(bob))).answered()
        assert (await call.ended()).by == "remote"

    told(story)


def test_a_caller_who_gives_up_is_not_answered() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call = await alice.call(uri(bob))
        incoming = await bob.next_call()
        assert (await call.hang_up()).code == 487
        with pytest.raises(CallError, match="the caller gave up"):
            await bob.answer(incoming)

    told(story)


def test_a_silent_far_end_is_given_up() -> None:
    """Its media never comes: the other side is dead, and the call must not last for ever."""

    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        ports_of(answered).mute = True
        ended = await call.ended()
        assert (ended.by, ended.reason) == ("local", "no media for 30 s")
        assert 30 <= call.seconds < 31

    told(story)


def ports_of(call: Call) -> Transport:
    transport = call._ports.rtp
    assert isinstance(transport, Transport)
    return transport


def test_a_tunnel_that_goes_ends_the_call_at_once() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        ports_of(call).lose("the tunnel is gone")
        assert (await call.ended()).reason == "the tunnel is gone"
        assert (await answered.ended()).by == "remote"

    told(story)


def test_a_tunnel_that_takes_the_sip_port_ends_everything() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, _ = await connected(alice, bob)
        transport = alice._transport
        assert isinstance(transport, Transport)
        transport.lose("the tunnel is gone")
        assert (await call.ended()).reason == "the tunnel is gone"
        assert alice.calls == ()

    told(story)


def test_media_from_a_stranger_is_counted_and_not_heard() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, _ = await connected(alice, bob)
        await until(lambda: bool(call.media.received))
        ssrc = call.media.received and call.media.reception and call.media.reception.ssrc
        stranger = Host(ports_of(call)._network, "10.64.0.99")
        transport, _protocol = await stranger.create_datagram_endpoint(asyncio.DatagramProtocol)
        transport.sendto(b"\x80\x00" + bytes(170), ("10.64.0.2", call._ports.port))
        transport.sendto(b"nonsense", ("10.64.0.2", call._ports.port + 1))
        drops = call.media.numbers.drops
        await until(lambda: drops["media-from-stranger"] == 2)
        assert call.media.reception is not None
        assert call.media.reception.ssrc == ssrc
        transport.close()

    told(story)


def test_nonsense_from_the_far_end_is_counted_by_name() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        for data in (b"", b"\x80\x7f" + bytes(10), b"\x80\x65" + bytes(10)):
            ports_of(answered).sendto(data, ("10.64.0.2", call._ports.port))
            ports_of(answered).sendto(data, ("10.64.0.2", call._ports.port + 1))
        drops = call.media.numbers.drops
        await until(lambda: sum(drops.values()) == 6)
        rtp = {"rtp-size": 1, "rtp-payload-type": 1, "dtmf-truncated": 1}
        assert drops == rtp | {"rtcp-size": 1, "rtcp-version": 2}

    told(story)


def test_options() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        assert await alice.options(uri(bob)) == 200
        assert await alice.options("sip:nobody@10.64.0.77") == 408

    told(story)


def test_many_calls_at_once() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        pairs = [await connected(alice, bob) for _ in range(8)]
        await until(lambda: all(len(one.media.received) > 5 for pair in pairs for one in pair))
        await asyncio.gather(*(call.hang_up() for call, _ in pairs))
        assert all(one.report().lost_percent == 0 for pair in pairs for one in pair)

    told(story)


def test_closing_a_phone_hangs_up() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, _ = await connected(alice, bob)
        await bob.close()
        assert (await call.ended()).by == "remote"

    told(story)


def test_garbage_on_the_sip_port_is_counted_and_costs_nobody_a_call() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        stranger = Host(Network(), "10.64.0.99")
        transport, _ = await stranger.create_datagram_endpoint(asyncio.DatagramProtocol)
        assert isinstance(alice._transport, Transport)
        alice._transport._network.carry(b"nonsense", transport.path, ("10.64.0.99", 1), ("10.64.0.3", 5060))
        await until(lambda: bob.drops["sip-syntax"] == 1)
        await connected(alice, bob)

    told(story)


def test_a_target_that_is_no_address() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        with pytest.raises(ValueError, match="write sip:USER@DOMAIN"):
            await alice.call("not an address")
        with pytest.raises(ValueError, match="no SIP server"):
            await alice.call("sip:bob@example.net")
        assert alice.calls == ()

    told(story)


def test_a_registration_that_nobody_answers_says_so() -> None:
    async def main() -> None:
        async with phone(Network(), "alice", 2, server=("10.64.0.1", 5060)) as alice:
            with pytest.raises(CallError, match="no answer from the SIP server"):
                await alice.register()

    run(main())


# -- what the network does to a call ---------------------------------------------------------------------


def lossy(seed: int, loss: float, late: float) -> Fate:
    """Loses and delays media by chance, and counts what it did to packets of speech."""
    chance = random.Random(seed)

    def fate(data: bytes, path: Path) -> float | None:
        if len(data) != 172:  # only speech: what is asked is what becomes of it
            return 0.05
        if chance.random() < loss:
            return None
        return 0.05 + (0.25 if chance.random() < late else 0.0)

    return fate


def test_what_the_network_does_is_what_the_report_says() -> None:
    """5 % lost and 10 % a quarter of a second late, at 60 ms of play-out, for a minute."""

    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob, CallSettings(samples=speech(), loop=True))
        await until(lambda: call.seconds > 60, 70)
        await call.hang_up()
        report = answered.report()
        sent = {record.sequence for record in call.media.sent}
        heard = {record.sequence % 65536: record for record in answered.media.received}
        span = range(min(heard), max(heard) + 1)
        lost = sum(number not in heard for number in span) / len(span)
        late = sum(not record.in_time for record in heard.values()) / len(span)
        assert set(heard) <= sent
        assert report.lost_percent == pytest.approx(100 * lost, abs=0.2)
        assert report.late_percent == pytest.approx(100 * late, abs=0.2)
        assert 3 < report.lost_percent < 7
        assert 7 < report.late_percent < 12
        assert report.mos is not None
        assert report.mos < 3.2
        # The recording is as long as what was said: gaps are concealed, not cut out.
        assert len(answered.recording) == pytest.approx(60 * 8000, rel=0.02)

    told(story, {Path.STREAM: lossy(1, 0.05, 0.10)})


def test_switching_to_the_better_path_in_mid_call_is_heard() -> None:
    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob, CallSettings(samples=speech(), loop=True))
        await until(lambda: call.seconds > 20)
        before = answered.media.counts
        call.set_mode(PathMode.DATAGRAM)
        await until(lambda: call.seconds > 40)
        after = answered.media.counts
        assert before.late > 100
        # What was on its way when the switch was turned, and no more.
        assert (after.late + after.lost) - (before.late + before.lost) <= 8
        assert answered.report().received_by["datagram"] == pytest.approx(1000, abs=20)

    told(story, {Path.STREAM: lossy(2, 0.0, 0.15)})


def test_digits_survive_a_bad_network() -> None:
    chance = random.Random(3)

    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob)
        call.dial("0123456789*#ABCD")
        await until(lambda: answered.media.keys.digits == "0123456789*#ABCD")

    told(story, {Path.STREAM: lambda data, path: None if chance.random() < 0.3 else 0.05})


def test_a_loop_that_stood_still_leaves_a_gap_and_no_burst() -> None:
    """A second in which this program did nothing: the far end hears a pause, no loss, and all in time."""

    async def story(alice: Phone, bob: Phone) -> None:
        call, answered = await connected(alice, bob, CallSettings(samples=speech(), loop=True))
        await until(lambda: call.seconds > 2)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.now += 1.0
        await until(lambda: call.seconds > 6)
        await call.hang_up()
        assert call.report().skipped == pytest.approx(50, abs=1)
        assert answered.report().lost_percent == 0.0
        assert answered.media.counts.unsent == pytest.approx(100, abs=4)
        gaps = [b.at - a.at for a, b in pairwise(call.media.sent)]
        assert sum(gap < 0.001 for gap in gaps) == 0

    told(story)


def test_adaptive_play_out_trades_delay_for_lateness() -> None:
    def late_and_delay(playout: float | None) -> tuple[float, float]:
        found: list[tuple[float, float]] = []

        async def story(alice: Phone, bob: Phone) -> None:
            spoken = CallSettings(samples=speech(), loop=True)
            call, answered = await connected(alice, bob, spoken, CallSettings(playout=playout))
            await until(lambda: call.seconds > 60, 70)
            found.append((answered.report().late_percent, answered.media.playout.delay))

        chance = random.Random(4)
        told(story, {Path.STREAM: lambda data, path: 0.05 + min(0.3, chance.expovariate(1 / 0.06))})
        return found[0]

    fixed, adaptive = late_and_delay(0.06), late_and_delay(None)
    assert adaptive[0] < fixed[0] / 3
    assert adaptive[1] > 0.15
