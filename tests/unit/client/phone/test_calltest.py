from __future__ import annotations

from opentsm.client.phone.calltest import EchoTest, run_call_test
from opentsm.client.phone.media import Identity
from opentsm.client.phone.ports import Datagrams
from opentsm.client.phone.speech import speech
from opentsm.types import Path
from tests.unit.client.phone.virtual import Host, Network, run

ECHO = ("10.64.0.1", 7)


def through(delays: dict[int, float | None], count: int = 100) -> EchoTest:
    """A test of some packets; packet n is back after 100 ms, or as ``delays`` says (None: never)."""
    test = EchoTest(ECHO, speech(), 0.06, Identity(5, 65530, 7))
    back: list[tuple[float, bytes]] = []
    for n in range(count):
        (packet,) = test.tick(n * 0.02, Path.STREAM)
        delay = delays.get(n, 0.1)
        if delay is not None:
            back.append((n * 0.02 + delay, packet))
    for arrival, packet in sorted(back):
        test.receive(arrival, packet, ECHO, Path.STREAM)
    return test


def test_a_good_line() -> None:
    verdict = through({}).verdict(Path.STREAM, 10.0)
    assert (verdict.sent, verdict.received, verdict.word) == (100, 100, "good")
    assert verdict.round_trip_ms is not None
    assert round(verdict.round_trip_ms) == 100


def test_loss_is_counted_to_the_last_packet_and_lateness_too() -> None:
    """The last packets of all are no gaps to a play-out buffer, and yet they are lost."""
    delays: dict[int, float | None] = {10: None, 98: None, 99: None, 30: 0.3, 31: 0.3}
    verdict = through(delays).verdict(Path.STREAM, 10.0)
    assert verdict.lost_percent == 3.0
    assert 1.9 < verdict.late_percent < 2.2
    assert verdict.word in ("fair", "bad")


def test_only_our_own_packets_from_the_echo_count() -> None:
    test = through({})
    (packet,) = test.tick(3.0, Path.STREAM)
    test.receive(3.1, packet, ("10.64.0.66", 7), None)
    test.receive(3.1, packet[:8] + b"XXXX" + packet[12:], ECHO, None)
    assert test.strangers == 2
    assert test.verdict(Path.STREAM, 10.0).received == 100


def test_both_paths_in_one_run() -> None:
    async def main() -> None:
        network = Network({Path.STREAM: lambda data, path: 0.1, Path.DATAGRAM: lambda data, path: 0.04})
        echo, mirror = await Host(network, ECHO[0]).create_datagram_endpoint(Datagrams, ECHO)
        mirror.handler = echo.sendto
        verdicts = await run_call_test(Host(network, "10.64.0.2"), ECHO, speech(), seconds=5)
        assert [(v.path, v.sent, v.received) for v in verdicts] == [
            ("stream", 250, 250),
            ("datagram", 250, 250),
        ]
        trips = [round(v.round_trip_ms or 0) for v in verdicts]
        assert trips == [200, 140]  # the echo answers on its own path, the stream

    run(main())
