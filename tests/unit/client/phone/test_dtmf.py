from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.dtmf import Event, Keys, parse_event_untrusted, slots
from opentsm.client.phone.rtp import RtpPacket
from opentsm.errors import RemoteProtocolError

digits_st = st.text("0123456789*#ABCD", max_size=10)


def sent(digits: str) -> list[RtpPacket]:
    """The event packets of some digits, numbered and stamped as a session does."""
    packets: list[RtpPacket] = []
    begun = 0
    for tick, slot in enumerate(slots(digits)):
        if slot.event is not None:
            begun = tick * 160 if slot.begin else begun
            packets.append(RtpPacket(101, len(packets), begun, 1, slot.event.build(), slot.begin))
    return packets


def heard(packets: list[RtpPacket]) -> str:
    keys = Keys()
    for packet in packets:
        keys.heard(packet, parse_event_untrusted(packet.payload))
    return keys.digits


def test_a_digit_grows_and_ends_three_times() -> None:
    events = [parse_event_untrusted(packet.payload) for packet in sent("5")]
    assert [event.duration for event in events] == [160 * n for n in range(1, 9)] + [1280, 1280]
    assert [event.end for event in events] == [False] * 7 + [True] * 3
    assert {event.code for event in events} == {5}
    assert [packet.marker for packet in sent("5")] == [True] + [False] * 9
    assert len({packet.timestamp for packet in sent("5")}) == 1  # RFC 4733 section 2.2: when it began


def test_the_voice_is_silent_while_a_key_is_down_only() -> None:
    speech = [slot.speech for slot in slots("1")]
    assert speech == [False] * 8 + [True] * 5


@given(digits_st, st.data())
def test_every_digit_is_heard_once_if_one_of_its_packets_arrives(digits: str, data: st.DataObject) -> None:
    packets = sent(digits)
    by_digit: dict[int, list[RtpPacket]] = {}
    for packet in packets:
        by_digit.setdefault(packet.timestamp, []).append(packet)
    kept = [p for group in by_digit.values() for p in data.draw(st.lists(st.sampled_from(group), min_size=1))]
    assert heard(kept) == digits
    assert heard(packets) == digits


def test_a_late_repetition_of_an_earlier_digit_is_no_new_one() -> None:
    packets = sent("12")
    assert heard([*packets, packets[0]]) == "12"


@pytest.mark.parametrize("digits", ["x", "1" * 65, "1 2"])
def test_keys_that_no_phone_has_are_refused(digits: str) -> None:
    with pytest.raises(ValueError, match="up to 64"):
        list(slots(digits))


def test_events_that_are_no_digits_are_not_heard() -> None:
    assert Keys().heard(RtpPacket(101, 0, 0, 1), Event(16, 160)) is None


def test_half_an_event_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="dtmf-truncated"):
        parse_event_untrusted(b"\x01\x0a\x00")
