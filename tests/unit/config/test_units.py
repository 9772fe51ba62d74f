from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.config.units import format_duration, parse_count, parse_duration, parse_rate, parse_switch, show


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("300 s", 300),
        ("300", 300),
        (300, 300),
        (1.5, 1.5),
        ("5 min", 300),
        ("1.5min", 90),
        ("250 ms", 0.25),
        ("2 H", 7200),
        (0, 0),
        (" 90  sec ", 90),
    ],
)
def test_durations(raw: object, seconds: float) -> None:
    assert parse_duration(raw) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("raw", "rate"),
    [
        ("128 KB/s", 131_072),
        (128, 131_072),
        ("128", 131_072),
        ("1 MB/s", 1_048_576),
        ("64 kbit/s", 8_000),
        ("2 Mbit/s", 250_000),
        ("1 Gbit/s", 125_000_000),
        ("9 B/s", 9),
    ],
)
def test_rates(raw: object, rate: int) -> None:
    assert parse_rate(raw) == rate


@pytest.mark.parametrize(
    "raw", ["on", "Enabled", "yes", "true", True, "off", "DISABLED", "no", "false", False]
)
def test_switches(raw: object) -> None:
    assert parse_switch(raw) == (str(raw).lower() in ("on", "enabled", "yes", "true"))


@pytest.mark.parametrize(
    ("parse", "raw", "said"),
    [
        (parse_duration, "5 parsecs", "unit 'parsecs' is not known here; write for example 300 s, 5 min"),
        (parse_duration, "-5 s", "not a number with a unit"),
        (parse_duration, "5 s 3", "not a number with a unit"),
        (parse_duration, "", "not a number with a unit"),
        (parse_duration, "\u0663 s", "not a number with a unit"),
        (parse_duration, True, "not a number with a unit"),
        (parse_duration, [5], "not a number with a unit"),
        (parse_duration, -5, "not a sensible amount"),
        (parse_duration, float("nan"), "not a sensible amount"),
        (parse_duration, 10**400, "not a sensible amount"),
        (parse_rate, "5 min", "unit 'min' is not known here; write for example 128 KB/s"),
        (parse_count, "5 s", "not a whole number"),
        (parse_count, 5.0, "not a whole number"),
        (parse_count, True, "not a whole number"),
        (parse_switch, "maybe", "'maybe' is not a switch; write on or off"),
        (parse_switch, 1, "not a switch"),
    ],
)
def test_what_is_wrong_is_said(parse: object, raw: object, said: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=said):
        parse(raw)


@given(st.integers(0, 10**6))
def test_a_duration_written_is_read_back(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == pytest.approx(seconds)


def test_values_in_messages_are_short() -> None:
    assert show("a" * 1_000) == "'" + "a" * 56 + "..."
