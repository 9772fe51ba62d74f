from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.lab.impairment import GilbertElliott, Settings
from opentsm.lab.units import format_settings, parse_changes


def test_settings_are_typed_as_people_say_them() -> None:
    words = "delay=40ms jitter=0.01s loss=1% rate=2mbit queue-bytes=32kb burst=0.5%/25% mtu=1280 udp=drop"
    assert parse_changes(words.split()) == {
        "delay": pytest.approx(0.04),
        "jitter": 0.01,
        "loss": 0.01,
        "rate": 2e6,
        "queue_bytes": 32_000,
        "burst": GilbertElliott(0.005, 0.25),
        "mtu": 1280,
        "udp": "drop",
    }


def test_limits_can_be_taken_away() -> None:
    assert parse_changes(["rate=none", "mtu=off", "burst=none", "loss=0", "delay=0"]) == {
        "rate": None,
        "mtu": None,
        "burst": None,
        "loss": 0.0,
        "delay": 0.0,
    }


@pytest.mark.parametrize(
    ("wrong", "help_"),
    [
        ("delay=40", "40ms"),
        ("rate=2", "2mbit"),
        ("loss=1x", "1%"),
        ("burst=1%", "ENTER/LEAVE"),
        ("speed=9", "names:"),
        ("delay", "NAME=VALUE"),
        ("keep_order=perhaps", "yes or no"),
        ("loss=1.2.3%", "1%"),
    ],
)
def test_a_mistake_is_answered_with_an_example(wrong: str, help_: str) -> None:
    with pytest.raises(ValueError, match=help_):
        parse_changes([wrong])


def test_a_perfect_wire_is_called_so() -> None:
    assert format_settings(Settings()) == "perfect"


@given(
    delay=st.integers(0, 1000),
    loss=st.integers(0, 100),
    rate=st.one_of(st.none(), st.integers(1, 10_000)),
    burst=st.one_of(st.none(), st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))),
    order=st.booleans(),
)
def test_what_is_shown_can_be_typed_again(
    delay: int, loss: int, rate: int | None, burst: tuple[int, int, int] | None, order: bool
) -> None:
    settings = Settings(
        delay=delay / 1000,
        loss=loss / 100,
        rate=None if rate is None else rate * 1000.0,
        burst=None if burst is None else GilbertElliott(burst[0] / 100, burst[1] / 100, 0.0, burst[2] / 100),
        keep_order=order,
        udp="reject",
    )
    again = Settings(**parse_changes(format_settings(settings).split()))
    assert again.delay == pytest.approx(settings.delay)
    assert again.loss == pytest.approx(settings.loss)
    assert (again.rate, again.keep_order, again.udp) == (settings.rate, order, "reject")
    assert (again.burst is None) == (burst is None)
