from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.g711 import PCMA, PCMU
from opentsm.client.phone.media import RTCP_INTERVAL, Identity, MediaSession
from opentsm.client.phone.rtcp import parse_rtcp_untrusted
from opentsm.client.phone.rtp import RtpPacket, parse_rtp_untrusted
from opentsm.errors import RemoteProtocolError
from opentsm.types import Path

LOUD = array("h", [8000] * 1600)


def said(session: MediaSession, ticks: int, start: int = 0) -> list[RtpPacket]:
    found = []
    for n in range(start, start + ticks):
        found += [parse_rtp_untrusted(data) for data in session.tick(n * 0.02, Path.STREAM)]
    return found


def test_numbers_go_on_across_their_wraps_and_the_first_packet_is_marked() -> None:
    packets = said(MediaSession(Identity(9, 65534, (1 << 32) - 160), LOUD), 4)
    assert [packet.sequence for packet in packets] == [65534, 65535, 0, 1]
    assert [packet.timestamp for packet in packets] == [(1 << 32) - 160, 0, 160, 320]
    assert [packet.marker for packet in packets] == [True, False, False, False]
    assert {packet.ssrc for packet in packets} == {9}
    assert packets[0].payload == PCMU.encode(LOUD[:160])


def test_after_the_file_there_is_silence_or_the_file_again() -> None:
    once = said(MediaSession(Identity(1, 0, 0), LOUD), 12)
    again = said(MediaSession(Identity(1, 0, 0), LOUD, loop=True), 12)
    assert once[11].payload == bytes([PCMU.silence]) * 160
    assert again[11].payload == once[0].payload


def test_the_law_that_was_agreed_on_is_spoken_and_both_are_understood() -> None:
    speaker, listener = MediaSession(Identity(1, 0, 0), LOUD), MediaSession(Identity(2, 0, 0), playout=0.0)
    speaker.use(PCMA, 8, None)
    data = speaker.tick(0.0, None)[0]
    assert parse_rtp_untrusted(data).payload_type == 8
    listener.receive_untrusted(0.0, data, Path.DATAGRAM)
    listener.advance(1.0)
    assert listener.heard[:160] == PCMA.decode(PCMA.encode(LOUD[:160]))
    assert listener.received[0].path is Path.DATAGRAM


def test_on_hold_nothing_is_sent_and_afterwards_nothing_is_missed() -> None:
    session = MediaSession(Identity(1, 0, 0), LOUD, loop=True)
    before = said(session, 2)
    session.use(PCMU, 0, None, silent=True)
    assert said(session, 5, 2) == []
    session.use(PCMU, 0, None)
    after = said(session, 1, 7)
    assert after[0].sequence == before[-1].sequence + 1  # no loss
    assert after[0].timestamp == before[-1].timestamp + 6 * 160  # but time has passed
    assert after[0].marker
    assert session.numbers.held == 5


def test_digits_are_not_sent_to_somebody_who_does_not_know_them() -> None:
    session = MediaSession(Identity(1, 0, 0), LOUD, loop=True)
    session.use(PCMU, 0, None)
    session.dial("1")
    assert {packet.payload_type for packet in said(session, 20)} == {0}
    with pytest.raises(ValueError, match="up to 64"):
        session.dial("?")


def test_reports_come_every_two_seconds_and_say_what_was_received() -> None:
    alice, bob = MediaSession(Identity(1, 0, 0, "a"), LOUD, loop=True), MediaSession(Identity(2, 0, 0, "b"))
    for n in range(10):
        for number, packet in enumerate(alice.tick(n * 0.02, None)):
            if n != 5:
                bob.receive_untrusted(n * 0.02 + 0.05 + number, packet, None)
    first = alice.report(0.2)
    assert first is not None
    assert alice.report(0.2 + RTCP_INTERVAL / 2) is None
    bob.receive_report_untrusted(0.25, first)
    answer = bob.report(1.25)
    assert answer is not None
    block = parse_rtcp_untrusted(answer).blocks[0]
    assert (block.ssrc, block.lost, block.fraction) == (1, 1, 25)
    alice.receive_report_untrusted(1.3, answer)
    assert alice.round_trip == pytest.approx(0.1, abs=0.001)
    assert alice.remote_loss == pytest.approx(0.1, abs=0.01)
    bye = alice.report(1.3, bye=True)
    assert bye is not None
    assert parse_rtcp_untrusted(bye).bye


def test_another_source_is_another_stream() -> None:
    session = MediaSession(Identity(1, 0, 0))
    for n in range(5):
        session.receive_untrusted(n * 0.02, RtpPacket(0, n, n * 160, 7, bytes(160)).build(), None)
    for n in range(5):
        data = RtpPacket(0, 900 + n, 2_000_000_000 + n * 160, 8, bytes(160)).build()
        session.receive_untrusted(0.1 + n * 0.02, data, None)
    session.advance(2.0)
    assert session.reception is not None
    assert (session.reception.ssrc, session.reception.lost) == (8, 0)
    assert (session.counts.played, session.counts.lost, session.counts.restarts) == (20, 0, 1)


@given(
    st.lists(st.binary(max_size=60), max_size=20),
    st.sampled_from([b"", b"\x80\x00", b"\x80\x65", b"\x80\xc8"]),
)
def test_any_datagrams_are_media_or_remote_errors(datagrams: list[bytes], start: bytes) -> None:
    session = MediaSession(Identity(1, 0, 0), LOUD)
    for n, data in enumerate(datagrams):
        for receive in (
            lambda now, data: session.receive_untrusted(now, data, None),
            session.receive_report_untrusted,
        ):
            try:
                receive(n * 0.02, start + data)
            except RemoteProtocolError:
                continue
    assert len(said(session, 2)) == 2
    session.advance(100.0)
