"""Opus in SDP, in RTP and to the ear, where its library is installed."""

from __future__ import annotations

from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone import codecs, opus, sdp
from opentsm.client.phone.g711 import PCMA, PCMU
from opentsm.client.phone.media import Identity, MediaSession
from opentsm.client.phone.rtp import RtpPacket, parse_rtp_untrusted
from opentsm.client.phone.speech import speech
from opentsm.errors import ConfigError, RemoteProtocolError
from opentsm.lab.hearing import aligned, pesq, why_no_pesq

installed = pytest.mark.skipif(opus.why_not() is not None, reason=str(opus.why_not()))

LOCAL = sdp.Local("10.64.1.2", 20000, 20001, session=7, codecs=codecs.ORDERS["opus"])


def offered(text: str) -> sdp.Media | None:
    lines = ["v=0", "c=IN IP4 10.64.1.9", *text.splitlines()]
    return sdp.parse_sdp_untrusted("\r\n".join(lines).encode()).audio


def ends(event_type: int | None = 102) -> tuple[MediaSession, MediaSession]:
    """Two sessions that have agreed on Opus; the time stamps will soon wrap."""
    speaker = MediaSession(Identity(1, 0, (1 << 32) - 1920), speech())
    listener = MediaSession(Identity(2, 0, 0), playout=0.06)
    for session in (speaker, listener):
        session.use(opus.OPUS, 107, event_type)
    return speaker, listener


@installed
def test_the_offer_names_it_as_rfc_7587_says_and_g711_besides() -> None:
    lines = sdp.offer(LOCAL).decode().splitlines()
    assert "m=audio 20000 RTP/AVP 107 0 8 101 102" in lines
    assert "a=rtpmap:107 opus/48000/2" in lines
    assert "a=rtpmap:0 PCMU/8000" in lines
    assert "a=rtpmap:101 telephone-event/8000" in lines
    assert "a=rtpmap:102 telephone-event/48000" in lines


@installed
def test_both_sides_agree_on_the_first_that_both_can_speak() -> None:
    answer = sdp.answer(LOCAL, sdp.parse_sdp_untrusted(sdp.offer(LOCAL)))
    assert answer is not None
    chosen = sdp.parse_sdp_untrusted(answer).audio
    assert chosen is not None
    assert chosen.codec == (opus.OPUS, 107)
    assert chosen.events == 102
    media = offered(
        "m=audio 4000 RTP/AVP 8 96 101\na=rtpmap:96 opus/48000/2\na=rtpmap:101 telephone-event/8000"
    )
    assert media is not None
    assert media.codec == (PCMA, 8)  # the caller would rather have it
    assert media.events == 101


@installed
@pytest.mark.parametrize("wrong", ["opus/48000", "opus/8000/2", "opus/48000/1", "opus"])
def test_what_only_looks_like_it_is_not_taken(wrong: str) -> None:
    media = offered(f"m=audio 4000 RTP/AVP 96 0\na=rtpmap:96 {wrong}")
    assert media is not None
    assert media.codec == (PCMU, 0)


@installed
def test_events_on_another_clock_are_not_used() -> None:
    media = offered(
        "m=audio 4000 RTP/AVP 96 101\na=rtpmap:96 opus/48000/2\na=rtpmap:101 telephone-event/8000"
    )
    assert media is not None
    assert (media.codec, media.events) == ((opus.OPUS, 96), None)


@installed
def test_speech_through_two_sessions_sounds_better_than_g711() -> None:
    speaker, listener = ends()
    stamps, octets, frames = [], 0, len(speech()) // 160
    for n in range(frames):
        for data in speaker.tick(n * 0.02, None):
            packet = parse_rtp_untrusted(data)
            stamps.append(packet.timestamp)
            octets += len(packet.payload)
            listener.receive_untrusted(n * 0.02 + 0.03, data, None)
    listener.advance(frames * 0.02 + 1)
    assert stamps[:3] == [(1 << 32) - 1920, (1 << 32) - 960, 0]
    counts = listener.counts
    assert (counts.played, counts.late, counts.lost, counts.restarts) == (2 * frames, 0, 0, 0)
    assert octets < frames * 160 / 3
    assert listener.reception is not None
    assert listener.reception.jitter_ms < 0.1
    if why_no_pesq() is None:
        score = pesq(speech(), aligned(speech(), listener.heard, 0))
        assert score is not None
        assert score > 4.1


@installed
def test_digits_last_as_long_on_its_clock() -> None:
    speaker, listener = ends()
    speaker.dial("5")
    events = []
    for n in range(12):
        for data in speaker.tick(n * 0.02, None):
            packet = parse_rtp_untrusted(data)
            if packet.payload_type == 102:
                events.append(packet)
            listener.receive_untrusted(n * 0.02, data, None)
    assert listener.keys.digits == "5"
    assert {packet.timestamp for packet in events} == {(1 << 32) - 1920}
    assert int.from_bytes(events[-1].payload[2:4]) == 7680  # 160 ms at 48 kHz


@installed
def test_g711_is_not_understood_on_a_clock_that_is_not_its_own() -> None:
    _, listener = ends()
    with pytest.raises(RemoteProtocolError, match="rtp-payload-type"):
        listener.receive_untrusted(0.0, RtpPacket(0, 1, 0, 9, bytes(160)).build(), None)


@installed
@given(st.binary(max_size=300))
def test_rubbish_raises_one_error_only(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert len(opus.OPUS.coder().decode(data)) <= opus.LONGEST


@installed
def test_a_packet_that_is_none_has_a_name() -> None:
    with pytest.raises(RemoteProtocolError, match="rtp-opus"):
        opus.OPUS.coder().decode(b"\xff" * 30)


def test_g711_is_the_usual_order_and_always_there() -> None:
    assert codecs.order("g711") == ("PCMU", "PCMA")
    with pytest.raises(ValueError, match="g711 or opus"):
        codecs.order("mp3")


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(codecs.CODECS, "OPUS", raising=False)
    with pytest.raises(ConfigError, match=r"opentsm\[opus\]"):
        codecs.order("opus")
    media = offered("m=audio 4000 RTP/AVP 96 0\na=rtpmap:96 opus/48000/2")
    assert media is not None
    assert media.codec == (PCMU, 0)


def test_silence_is_coded_too() -> None:
    if opus.why_not() is not None:
        pytest.skip(str(opus.why_not()))
    coder = opus.OPUS.coder()
    assert max(map(abs, coder.decode(coder.encode(array("h", bytes(320)))))) < 10
