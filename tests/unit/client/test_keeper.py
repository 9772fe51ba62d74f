"""Whose ids a program gets that `opentsm run` starts; what its end is told as."""

from __future__ import annotations

import os
import pwd
import signal

import pytest

from opentsm.client import keeper
from opentsm.client.keeper import Caller, caller
from opentsm.client.run import check_root
from opentsm.errors import PlatformError


def test_under_sudo_it_is_the_user_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    account = next(one for one in pwd.getpwall() if one.pw_uid)
    environment = {"SUDO_UID": str(account.pw_uid), "SUDO_GID": str(account.pw_gid)}
    expected = Caller(account.pw_uid, account.pw_gid, account.pw_name, account.pw_dir)
    assert caller(environment) == expected
    assert caller({"SUDO_UID": "4242424", "SUDO_GID": "4242424"}) == Caller(4242424, 4242424)


@pytest.mark.parametrize(
    "environment",
    [{}, {"SUDO_UID": "0", "SUDO_GID": "0"}, {"SUDO_UID": "1000"}, {"SUDO_UID": "-1", "SUDO_GID": "x"}],
)
def test_root_without_sudo_stays_root(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "getgid", lambda: 0)
    assert caller(environment) == Caller(0, 0)


def test_who_is_not_root_cannot_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 1000)
    assert caller({"SUDO_UID": "1001", "SUDO_GID": "1001"}) == Caller(1000, 1000)


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (7 << 8, 7), (signal.SIGTERM, 143), (signal.SIGKILL, 137)]
)
def test_exit_codes_are_the_shells(status: int, code: int) -> None:
    assert keeper._exit_code(status) == code


def test_who_is_not_root_is_told_both_ways_out() -> None:
    check_root(0)
    with pytest.raises(PlatformError, match=r"sudo.*opentsm run URL -- PROGRAM"):
        check_root(1000)
