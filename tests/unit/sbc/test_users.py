from __future__ import annotations

from pathlib import Path

import pytest

from opentsm.errors import ConfigError
from opentsm.sbc.digest import ha1
from opentsm.sbc.users import Users, account_line, parse_users


def test_a_file_gives_each_user_the_algorithms_it_has(tmp_path: Path) -> None:
    path = tmp_path / "users"
    lines = [
        "# SIP accounts",
        account_line("alice", "example.org", "pw", "MD5"),
        account_line("alice", "example.org", "pw", "SHA-256"),
        account_line("bob", "example.org", "pw", "MD5"),
        account_line("eve", "elsewhere", "pw", "MD5"),
    ]
    path.write_text("\n".join(lines))
    users = Users.from_file(path, "example.org")
    assert users.ha1("alice", "SHA-256") == ha1("SHA-256", "alice", "example.org", "pw")
    assert users.ha1("bob", "MD5") is not None
    assert users.ha1("bob", "SHA-256") is None
    assert users.knows("bob")
    assert not users.knows("eve")


@pytest.mark.parametrize("line", ["alice:pw", "alice:r:xyz", ":r:" + "0" * 32, "a:r:" + "g" * 32])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ConfigError, match=r"users:2: .*name:realm:hash"):
        parse_users(f"\n{line}\n", "r", source="users")


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Users.from_file(tmp_path / "none", "r")
