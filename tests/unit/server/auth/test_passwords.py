"""Password files: who gets in, what a change of the file does, and what happens under load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import argon2
import pytest
from structlog.testing import capture_logs

from opentsm.errors import ConfigError
from opentsm.limits import MAX_PASSWORD
from opentsm.server.auth import AuthenticationFailed, Credentials, PasswordFile
from opentsm.server.auth import passwords as module
from opentsm.server.auth.passwords import HASHER, check_hash, hash_password, matches
from opentsm.server.auth.slots import Slots
from opentsm.types import Code

WriteAccounts = Callable[..., Path]


def shown(username: str, password: str | bytes) -> Credentials:
    data = password.encode() if isinstance(password, str) else password
    return Credentials(username=username, password=data, source=("192.0.2.7", 40000))


async def refused(authenticator: PasswordFile, credentials: Credentials) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        await authenticator.authenticate(credentials)
    return caught.value


async def test_the_right_password_gives_the_identity_with_its_fixed_addresses(
    write_accounts: WriteAccounts,
) -> None:
    file = write_accounts(alice="sesame:address=10.8.0.17,address6=2001:db8::17,trunk=yes", bob="other")
    identity = await PasswordFile(file).authenticate(shown("alice", "sesame"))
    assert (identity.name, identity.method) == ("alice", "password")
    assert identity.addresses == (ip_address("10.8.0.17"), ip_address("2001:db8::17"))
    assert identity.attributes["trunk"] == "yes"


@pytest.mark.parametrize(
    ("username", "password", "reason"),
    [
        ("alice", "Sesame", "wrong-password"),
        ("alice", "other", "wrong-password"),
        ("mallory", "sesame", "unknown-user"),
        ("ALICE", "sesame", "unknown-user"),
        ("# who may come in", "sesame", "unknown-user"),
        ("alice", "", "not-offered"),
        ("", "sesame", "not-offered"),
    ],
)
async def test_everything_else_is_refused_with_one_and_the_same_code(
    write_accounts: WriteAccounts, username: str, password: str, reason: str
) -> None:
    failure = await refused(
        PasswordFile(write_accounts(alice="sesame", bob="other")), shown(username, password)
    )
    assert failure.code is Code.UNAUTHORIZED
    assert failure.reason == reason


async def test_an_unknown_name_costs_one_check_like_a_wrong_password(
    write_accounts: WriteAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []

    def count(secret: str, password: bytes) -> bool:
        checks.append(secret)
        return matches(secret, password)

    monkeypatch.setattr(module, "matches", count)
    authenticator = PasswordFile(write_accounts(alice="sesame"))
    await refused(authenticator, shown("mallory", "guess"))
    await refused(authenticator, shown("alice", "guess"))
    assert len(checks) == 2
    # The same cost: the unknown name was checked against a hash with the parameters of the real ones.
    assert argon2.extract_parameters(checks[0]) == argon2.extract_parameters(checks[1])


async def test_somebody_elses_password_with_an_unknown_name_lets_nobody_in(
    write_accounts: WriteAccounts,
) -> None:
    # The unknown name is checked against alice's hash, and the password is alice's.
    failure = await refused(PasswordFile(write_accounts(alice="sesame")), shown("mallory", "sesame"))
    assert failure.reason == "unknown-user"


async def test_an_empty_file_refuses_everybody(tmp_path: Path) -> None:
    empty = tmp_path / "accounts"
    empty.write_text("")
    assert (await refused(PasswordFile(empty), shown("alice", "sesame"))).reason == "unknown-user"


@pytest.mark.parametrize("password", [b"\0" * MAX_PASSWORD, b"\xff\xfe", b"x" * (MAX_PASSWORD + 1), b"%s\n:"])
async def test_odd_passwords_are_only_wrong(write_accounts: WriteAccounts, password: bytes) -> None:
    failure = await refused(PasswordFile(write_accounts(alice="sesame")), shown("alice", password))
    assert failure.reason == "wrong-password"


async def test_a_changed_file_counts_from_the_next_attempt_on(write_accounts: WriteAccounts) -> None:
    authenticator = PasswordFile(write_accounts(alice="old"))
    await authenticator.authenticate(shown("alice", "old"))
    write_accounts(alice="new", bob="too")
    assert (await refused(authenticator, shown("alice", "old"))).reason == "wrong-password"
    assert (await authenticator.authenticate(shown("bob", "too"))).name == "bob"


async def test_a_broken_file_changes_nothing_and_is_reported_once(write_accounts: WriteAccounts) -> None:
    file = write_accounts(alice="sesame")
    authenticator = PasswordFile(file)
    file.write_text("alice:no hash at all\n")
    with capture_logs() as logs:
        await authenticator.authenticate(shown("alice", "sesame"))
        await authenticator.authenticate(shown("alice", "sesame"))
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert len(errors) == 1
    assert f"{file}:1:" in errors[0]["error"]


async def test_a_file_that_vanishes_changes_nothing_and_its_return_counts(
    write_accounts: WriteAccounts,
) -> None:
    file = write_accounts(alice="sesame")
    authenticator = PasswordFile(file)
    file.unlink()
    with capture_logs():
        await authenticator.authenticate(shown("alice", "sesame"))
    write_accounts(bob="back")
    assert (await authenticator.authenticate(shown("bob", "back"))).name == "bob"
    assert (await refused(authenticator, shown("alice", "sesame"))).reason == "unknown-user"


GOOD = "$argon2id$v=19$m=8,t=1,p=1$" + "c2FsdHNhbHQ" + "$" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("alice", 1, "name:secret"),
        (f"ok:{GOOD}\nalice:secret", 2, "argon2id"),
        (f"alice:{GOOD}\n\nalice:{GOOD}", 3, "second time"),
        (f" alice:{GOOD}", 1, "space"),
        (f"al\x00ice:{GOOD}", 1, "control characters"),
        (f":{GOOD}", 1, "empty"),
        ("n" * 256 + f":{GOOD}", 1, "255 bytes"),
        (f"alice:{GOOD}:address=10.0.0.256", 1, "10.0.0.256"),
        (f"alice:{GOOD}:address6=10.0.0.1", 1, "10.0.0.1"),
        (f"alice:{GOOD}:nonsense", 1, "key=value"),
        (f"alice:{GOOD.replace('m=8', 'm=4194304')}", 1, "262144 KiB"),
        (f"alice:{GOOD.replace('t=1', 't=99')}", 1, "16 passes"),
        (f"alice:{GOOD.replace('p=1', 'p=255')}", 1, "8 lanes"),
        (f"alice:{GOOD.replace('argon2id', 'argon2i')}", 1, "argon2id"),
    ],
)
def test_a_file_that_cannot_be_used_says_line_and_why(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    file = tmp_path / "accounts"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        PasswordFile(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert says in str(caught.value)


def test_a_missing_file_and_one_that_is_no_text_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opentsm passwd"):
        PasswordFile(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        PasswordFile(tmp_path / "binary")


async def test_under_load_checks_are_bounded_and_the_rest_is_told_to_come_back(
    write_accounts: WriteAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand clients at once: two checks run, three wait, 995 hear `busy` and cost nothing."""
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(secret: str, password: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert gate.wait(60)
        with lock:
            running -= 1
        return True

    monkeypatch.setattr(module, "matches", slow)
    slots = Slots(running=2, waiting=3)
    authenticator = PasswordFile(write_accounts(alice="sesame"), slots=slots)
    tries = [asyncio.create_task(authenticator.authenticate(shown("alice", "sesame"))) for _ in range(1000)]
    pending = set(tries)
    while len(pending) > 5:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    gate.set()
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    busy = [outcome for outcome in outcomes if isinstance(outcome, AuthenticationFailed)]
    assert len(busy) == 995 == slots.turned_away
    assert {(failure.code, failure.reason) for failure in busy} == {(Code.RATE_LIMITED, "busy")}
    assert all(failure.retry_after for failure in busy)
    assert most <= 2
    # And there is room again.
    assert (await authenticator.authenticate(shown("alice", "sesame"))).name == "alice"
    authenticator.close()


async def test_clients_that_hang_up_do_not_make_room_for_more_checks_than_allowed(
    write_accounts: WriteAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, started = threading.Event(), threading.Semaphore(0)

    def slow(secret: str, password: bytes) -> bool:
        started.release()
        return gate.wait(60)

    monkeypatch.setattr(module, "matches", slow)
    authenticator = PasswordFile(write_accounts(alice="sesame"), slots=Slots(running=1, waiting=0))
    first = asyncio.create_task(authenticator.authenticate(shown("alice", "sesame")))
    assert await asyncio.to_thread(started.acquire, timeout=60)
    first.cancel()
    await asyncio.sleep(0)
    # The hung-up client's check still runs, so there is no room.
    assert (await refused(authenticator, shown("alice", "sesame"))).reason == "busy"
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await authenticator.authenticate(shown("alice", "sesame"))).name == "alice"
    authenticator.close()


async def test_a_client_that_hangs_up_while_waiting_leaves_the_queue(
    write_accounts: WriteAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, started = threading.Event(), threading.Semaphore(0)

    def slow(secret: str, password: bytes) -> bool:
        started.release()
        return gate.wait(60)

    monkeypatch.setattr(module, "matches", slow)
    authenticator = PasswordFile(write_accounts(alice="sesame"), slots=Slots(running=1, waiting=1))
    first = asyncio.create_task(authenticator.authenticate(shown("alice", "sesame")))
    assert await asyncio.to_thread(started.acquire, timeout=60)
    waiting = asyncio.create_task(authenticator.authenticate(shown("alice", "sesame")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    third = asyncio.create_task(authenticator.authenticate(shown("alice", "sesame")))
    gate.set()
    assert [(await task).name for task in (first, third)] == ["alice", "alice"]
    authenticator.close()


def test_stored_hashes_are_argon2id_of_full_strength_and_salted() -> None:
    first, second = hash_password(b"sesame"), hash_password(b"sesame")
    assert first.startswith("$argon2id$")
    assert first != second
    assert check_hash(first) is None
    assert matches(first, b"sesame")
    assert not matches(first, b"sesam")
    assert not HASHER.check_needs_rehash(first)


@pytest.mark.parametrize("password", [b"", b"x" * (MAX_PASSWORD + 1)])
def test_passwords_no_client_could_send_are_not_stored(password: bytes) -> None:
    with pytest.raises(ValueError, match="password must"):
        hash_password(password)


def test_neither_a_password_nor_a_hash_shows_in_a_repr() -> None:
    assert "sesame" not in repr(shown("alice", "sesame"))
