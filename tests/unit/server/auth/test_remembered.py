"""A password that was right is known again for a while, and nothing else is."""

from __future__ import annotations

from opentsm.server.auth.remembered import LIFETIME, Remembered


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_the_same_password_for_the_same_stored_hash_is_known() -> None:
    remembered = Remembered(Clock())
    assert not remembered.knows("al", "hash", b"pw")
    remembered.was_right("al", "hash", b"pw")
    assert remembered.knows("al", "hash", b"pw")
    assert not remembered.knows("al", "hash", b"pw2")
    assert not remembered.knows("al", "hashp", b"w"), "where one ends and the other begins counts"
    assert not remembered.knows("al", "another hash", b"pw"), "the password was changed"
    assert not remembered.knows("bo", "hash", b"pw")


def test_it_is_forgotten_after_its_time() -> None:
    clock = Clock()
    remembered = Remembered(clock)
    remembered.was_right("al", "hash", b"pw")
    clock.now += LIFETIME - 1
    assert remembered.knows("al", "hash", b"pw")
    clock.now += 1
    assert not remembered.knows("al", "hash", b"pw")


def test_the_oldest_makes_room() -> None:
    remembered = Remembered(Clock(), most=3)
    for name in ("a", "b", "c", "a", "d"):
        remembered.was_right(name, "hash", b"pw")
    assert [name for name in "abcd" if remembered.knows(name, "hash", b"pw")] == ["a", "c", "d"]


def test_what_is_kept_is_no_password() -> None:
    remembered = Remembered(Clock())
    remembered.was_right("al", "hash", b"hunter2")
    assert b"hunter2" not in repr(vars(remembered)).encode()
