"""Timers, requests, machines."""

from __future__ import annotations

import enum

from opentsm.protocol.core import Core, Machine, Outstanding, code_label, is_newer
from opentsm.protocol.states import Row, complete
from opentsm.types import Code


def test_the_deadline_is_the_earliest_timer_and_says_which() -> None:
    core = Core()
    assert core.deadline() is None
    core.arm("late", 9.0)
    core.arm("soon", 5.0)
    deadline = core.deadline()
    assert deadline is not None
    assert (deadline.at, deadline.reason) == (5.0, "soon")


def test_due_timers_come_in_order_and_once() -> None:
    core = Core()
    core.arm("b", 2.0)
    core.arm("a", 1.0)
    core.arm("c", 3.0)
    assert [core.pop_due(2.0), core.pop_due(2.0), core.pop_due(2.0)] == ["a", "b", None]
    assert core.armed("c")


def test_sequences_grow_and_wrap() -> None:
    core = Core()
    assert [core.next_sequence(), core.next_sequence()] == [1, 2]
    core._sequence = 2**32 - 1
    assert core.next_sequence() == 0


def test_an_answer_is_taken_once() -> None:
    requests: Outstanding[str] = Outstanding(2)
    requests.add(7, "seven", 1.0)
    requests.add(8, "eight", 2.0)
    assert requests.full
    assert requests.take(7) == "seven"
    assert requests.take(7) is None
    assert requests.oldest is not None
    assert requests.oldest[0] == 2.0
    assert requests.clear() == ["eight"]
    assert len(requests) == 0
    assert not requests.full


class Lamp(enum.Enum):
    OFF = "off"
    ON = "on"


class Button(enum.Enum):
    PRESS = "press"
    BREAK = "break"


class Room:
    def __init__(self) -> None:
        rows = {(Lamp.OFF, Button.PRESS): Row(Lamp.ON, "shine"), (Lamp.ON, Button.PRESS): Row(Lamp.OFF)}
        self.machine = Machine[Lamp, Button](complete(Lamp, Button, rows), Lamp.OFF)
        self.seen: list[tuple[Lamp, float, object]] = []

    def _do_shine(self, now: float, cause: object) -> None:
        self.seen.append((self.machine.state, now, cause))


def test_a_machine_moves_first_and_acts_then() -> None:
    room = Room()
    assert room.machine.step(room, Button.PRESS, 4.0, "finger")
    assert room.seen == [(Lamp.ON, 4.0, "finger")]
    assert room.machine.step(room, Button.PRESS, 5.0)
    assert room.machine.state is Lamp.OFF


def test_a_machine_says_when_it_ignores() -> None:
    room = Room()
    assert not room.machine.step(room, Button.BREAK, 1.0)
    assert room.machine.state is Lamp.OFF


def test_codes_of_a_newer_peer_have_a_name_too() -> None:
    assert (code_label(Code.NO_ADDRESS), code_label(999)) == ("no-address", "code-999")


def test_newer_is_newer_also_across_the_wrap() -> None:
    top = (1 << 32) - 1
    assert is_newer(2, 1)
    assert is_newer(0, top)
    assert not is_newer(1, 1)
    assert not is_newer(1, 2)
    assert not is_newer(top, 0)
