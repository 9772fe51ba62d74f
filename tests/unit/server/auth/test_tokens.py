"""Static tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from opentsm.errors import ConfigError
from opentsm.server.auth import AuthenticationFailed, Credentials, TokenFile
from opentsm.server.auth.tokens import MAX_TOKENS, hash_token, make_token
from opentsm.types import Code


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(
        f"trunk:{hash_token(b'long and random')}:address=10.8.0.5\nother:{hash_token(b'another')}\n"
    )
    return file


@pytest.mark.parametrize("username", ["", "trunk"])
async def test_the_token_alone_says_who_it_is(token_file: Path, username: str) -> None:
    shown = Credentials(username=username, password=b"long and random")
    identity = await TokenFile(token_file).authenticate(shown)
    assert (identity.name, identity.method) == ("trunk", "token")
    assert identity.attributes == {"address": "10.8.0.5"}


@pytest.mark.parametrize(
    ("username", "password", "reason"),
    [
        ("", b"", "not-offered"),
        ("", b"long and randon", "unknown-token"),
        ("other", b"long and random", "name-mismatch"),
        # The stored form is no token: a stolen file opens nothing.
        ("", hash_token(b"long and random").encode(), "unknown-token"),
    ],
)
async def test_everything_else_is_refused(
    token_file: Path, username: str, password: bytes, reason: str
) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        await TokenFile(token_file).authenticate(Credentials(username=username, password=password))
    assert (caught.value.code, caught.value.reason) == (Code.UNAUTHORIZED, reason)


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {make_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43


def test_a_password_hash_in_a_token_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# tokens\nalice:$argon2id$v=19$m=65536,t=3,p=1$c2FsdA$aGFzaA\n")
    with pytest.raises(ConfigError, match=r":2: .*SHA-256"):
        TokenFile(file)


def test_the_number_of_tokens_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("".join(f"t{i}:{hash_token(b'%d' % i)}\n" for i in range(MAX_TOKENS + 1)))
    with pytest.raises(ConfigError, match=f"more than {MAX_TOKENS}"):
        TokenFile(file)
