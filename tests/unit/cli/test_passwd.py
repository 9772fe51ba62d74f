"""`opentsm passwd`: what it writes is what the server checks against."""

from __future__ import annotations

import io
import multiprocessing
import os
import stat
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from opentsm.cli.main import run
from opentsm.server.auth import AuthenticationFailed, Credentials, PasswordFile, TokenFile, passwords
from opentsm.server.auth.edit import set_account
from opentsm.types import IpAddress


@pytest.fixture(autouse=True)
def _quick_hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cheap argon2: how strong it is, is tested elsewhere."""
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    yield
    passwords.decoy_hash.cache_clear()


def type_in(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Standard input that is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


async def lets_in(file: Path, name: str, password: bytes) -> bool:
    try:
        await PasswordFile(file).authenticate(Credentials(username=name, password=password))
    except AuthenticationFailed:
        return False
    return True


async def test_an_account_is_added_changed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "accounts"
    type_in(monkeypatch, b"first\n")
    assert run(["passwd", str(file), "alice"]) == 0
    assert await lets_in(file, "alice", b"first")
    type_in(monkeypatch, b"other\n")
    assert run(["passwd", str(file), "bob"]) == 0
    type_in(monkeypatch, "zweites ä\r\n".encode())
    assert run(["passwd", str(file), "alice"]) == 0
    assert await lets_in(file, "alice", "zweites ä".encode())
    assert not await lets_in(file, "alice", b"first")
    assert await lets_in(file, "bob", b"other")
    assert run(["passwd", str(file), "alice", "--delete"]) == 0
    assert not await lets_in(file, "alice", "zweites ä".encode())
    assert await lets_in(file, "bob", b"other")


def test_the_file_is_private_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "accounts"
    old = os.umask(0)
    try:
        type_in(monkeypatch, b"sesame\n")
        run(["passwd", str(file), "alice"])
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"sesame" not in file.read_bytes()
    assert list(tmp_path.iterdir()) == [file]


async def addresses(file: Path) -> tuple[IpAddress, ...]:
    who = await PasswordFile(file).authenticate(Credentials(username="alice", password=b"sesame"))
    return who.addresses


async def test_fixed_addresses_are_set_kept_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "accounts"
    both = (ip_address("10.8.0.9"), ip_address("2001:db8::9"))
    for options, expected in (
        (["--address", "10.8.0.9", "--address", "2001:db8::9"], both),
        ([], both),
        (["--address", "2001:db8::9"], both[1:]),
        (["--address", ""], ()),
    ):
        type_in(monkeypatch, b"sesame\n")
        assert run(["passwd", str(file), "alice", *options]) == 0
        assert await addresses(file) == expected


def test_comments_and_other_accounts_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "accounts"
    type_in(monkeypatch, b"x\n")
    run(["passwd", str(file), "bob"])
    bob = file.read_text()
    file.write_text(f"# our people\n\n{bob}")
    type_in(monkeypatch, b"y\n")
    run(["passwd", str(file), "alice"])
    run(["passwd", str(file), "alice", "--delete"])
    assert file.read_text() == f"# our people\n\n{bob}"


async def test_a_token_is_shown_once_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens"
    assert run(["passwd", str(file), "trunk", "--token"]) == 0
    token = capsys.readouterr().out.strip()
    identity = await TokenFile(file).authenticate(Credentials(password=token.encode()))
    assert identity.name == "trunk"
    assert token not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "typed", "code"),
    [
        (["al:ice"], b"x\n", 1),
        (["#alice"], b"x\n", 1),
        (["alice\nroot"], b"x\n", 1),
        (["alice"], b"\n", 1),
        (["alice"], b"", 1),
        (["alice"], b"x" * 1025 + b"\n", 1),
        (["alice", "--delete"], b"", 1),
        (["alice", "--delete", "--token"], b"", 2),
        (["alice", "--address", "host.example"], b"x\n", 2),
        (["alice", "--address", "10.0.0.1", "--address", "10.0.0.2"], b"x\n", 2),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], typed: bytes, code: int
) -> None:
    type_in(monkeypatch, typed)
    assert run(["passwd", str(tmp_path / "accounts"), *arguments]) == code
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real", tmp_path / "accounts"
    link.symlink_to(real)
    type_in(monkeypatch, b"sesame\n")
    assert run(["passwd", str(link), "alice"]) == 0
    assert link.is_symlink()
    assert real.read_text().startswith("alice:")


def _add_many(path: Path, prefix: str) -> None:
    for number in range(25):
        set_account(path, f"{prefix}{number}", "secret")


def test_two_editors_at_once_lose_no_account(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    context = multiprocessing.get_context("spawn")
    editors = [context.Process(target=_add_many, args=(file, prefix)) for prefix in "ab"]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join(60)
    assert [editor.exitcode for editor in editors] == [0, 0]
    assert len(file.read_text().splitlines()) == 50
