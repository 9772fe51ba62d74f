from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.rtcp import (
    Report,
    ReportBlock,
    SenderInfo,
    build_rtcp,
    delay_units,
    ntp_time,
    parse_rtcp_untrusted,
    round_trip,
)
from opentsm.errors import RemoteProtocolError

u32 = st.integers(0, 0xFFFFFFFF)
blocks = st.builds(
    ReportBlock, u32, st.integers(0, 255), st.integers(-(1 << 23), (1 << 23) - 1), u32, u32, u32, u32
)
reports = st.builds(
    Report,
    u32,
    st.none() | st.builds(SenderInfo, st.integers(0, (1 << 64) - 1), u32, u32, u32),
    st.lists(blocks, max_size=3).map(tuple),
    st.booleans(),
)


@given(reports, st.text(max_size=300))
def test_what_is_built_is_parsed(report: Report, cname: str) -> None:
    assert parse_rtcp_untrusted(build_rtcp(report, cname)) == report


def test_round_trip_of_rfc_3550_figure_2() -> None:
    """A = 0xb710:8000 (46864.500 s), LSR = 0xb705:2000 (46853.125 s), DLSR = 5.250 s: 6.125 s."""
    block = ReportBlock(1, 0, 0, 0, 0, last_sr=0xB7052000, delay=0x00054000)
    assert round_trip(46864.500, block) == 6.125
    assert SenderInfo(ntp_time(46853.125), 0, 0, 0).middle == 0xB7052000
    assert delay_units(5.250) == 0x00054000


def test_round_trip_across_the_wrap_of_its_clock() -> None:
    """The middle 32 bits come round every 18 hours."""
    sent = 65535.990
    block = ReportBlock(1, 0, 0, 0, 0, SenderInfo(ntp_time(sent), 0, 0, 0).middle, delay_units(0.5))
    assert round_trip(sent + 0.6, block) == pytest.approx(0.1, abs=1e-4)


def test_a_round_trip_that_cannot_be_is_none() -> None:
    assert round_trip(100.0, ReportBlock(1, 0, 0, 0, 0)) is None
    lying = ReportBlock(1, 0, 0, 0, 0, SenderInfo(ntp_time(99.0), 0, 0, 0).middle, delay_units(5.0))
    assert round_trip(100.0, lying) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "rtcp-size"),
        ("80c80000" + "00", "rtcp-size"),
        ("40c90001" + "00000001", "rtcp-version"),
        ("81c90001" + "00000001", "rtcp-truncated"),
        ("80c90009" + "00000001", "rtcp-truncated"),
        ("80c80001" + "00000001", "rtcp-truncated"),
        ("80ca0001" + "00000001", "rtcp-no-report"),
    ],
)
def test_what_is_no_report_has_a_name(text: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_rtcp_untrusted(bytes.fromhex(text))
    assert caught.value.reason == reason


@given(st.binary(max_size=120), reports, st.integers(0, 60))
def test_any_bytes_are_a_report_or_a_remote_error(junk: bytes, report: Report, at: int) -> None:
    whole = build_rtcp(report, "x")
    for data in (junk, whole[:at] + junk, whole[:at] + junk[: len(whole) - at] + whole[at + len(junk) :]):
        try:
            parse_rtcp_untrusted(data)
        except RemoteProtocolError:
            continue
