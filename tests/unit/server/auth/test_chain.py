"""Authenticators put together: order, fall-through, limits, plug-ins, and what a configuration gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from opentsm.config.model import Authentication, AuthMethod
from opentsm.engine.admission import AttemptLimiter
from opentsm.errors import ConfigError
from opentsm.server.auth import (
    Anonymous,
    AuthenticationFailed,
    Authenticator,
    Chain,
    Credentials,
    Identity,
    Limited,
    load_authenticator,
    make_authenticator,
)
from opentsm.server.auth import plugins as plugins_module
from opentsm.server.auth.tokens import hash_token
from opentsm.types import Code

WriteAccounts = Callable[..., Path]


class Fixed:
    """Answers everybody alike, and remembers that it was asked."""

    def __init__(self, answer: Identity | Exception) -> None:
        self.answer = answer
        self.asked = 0
        self.closed = False

    async def authenticate(self, credentials: Credentials) -> Identity:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed = True


def yes(name: str) -> Fixed:
    return Fixed(Identity(name=name, method="test"))


def no(reason: str, code: Code = Code.UNAUTHORIZED) -> Fixed:
    return Fixed(AuthenticationFailed(code, reason))


async def failure(authenticator: Authenticator, credentials: Credentials) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        await authenticator.authenticate(credentials)
    return caught.value


async def test_the_first_that_knows_the_client_decides() -> None:
    last = yes("too late")
    identity = await Chain([no("not-offered"), yes("alice"), last]).authenticate(Credentials())
    assert identity.name == "alice"
    assert last.asked == 0


async def test_the_reason_that_says_most_is_reported() -> None:
    chain = Chain([no("not-offered"), no("wrong-password"), no("not-offered")])
    assert (await failure(chain, Credentials())).reason == "wrong-password"


@pytest.mark.parametrize("links", [[], [no("not-offered")]])
async def test_a_chain_that_knows_nobody_refuses(links: list[Fixed]) -> None:
    refusal = await failure(Chain(links), Credentials())
    assert (refusal.code, refusal.reason) == (Code.UNAUTHORIZED, "not-offered")


async def test_load_opens_no_weaker_way_in() -> None:
    weaker = Anonymous()
    refusal = await failure(Chain([no("busy", Code.RATE_LIMITED), weaker]), Credentials())
    assert refusal.code is Code.RATE_LIMITED


async def test_a_broken_link_lets_nobody_in_and_harms_no_other() -> None:
    with capture_logs() as logs:
        assert (
            await Chain([Fixed(KeyError("bug")), yes("alice")]).authenticate(Credentials())
        ).name == "alice"
        refusal = await failure(Chain([Fixed(KeyError("bug"))]), Credentials())
    assert (refusal.code, refusal.reason) == (Code.UNAUTHORIZED, "authenticator-error")
    assert [entry["log_level"] for entry in logs] == ["error", "error"]


async def test_anonymous_takes_who_shows_nothing_but_no_mistyped_password() -> None:
    assert (await Anonymous().authenticate(Credentials(username="guest"))).name == "anonymous"
    chain = Chain([no("wrong-password"), Anonymous()])
    refusal = await failure(chain, Credentials(username="alice", password=b"sesam"))
    assert refusal.reason == "wrong-password"


def from_source(host: str, password: bytes = b"x") -> Credentials:
    return Credentials(username="alice", password=password, source=(host, 40000))


async def test_a_source_that_fails_too_often_has_to_wait_and_others_do_not() -> None:
    now = 1000.0
    inner = no("wrong-password")
    limited = Limited(inner, AttemptLimiter(attempts=3, per_seconds=60.0), lambda: now)
    for _ in range(3):
        assert (await failure(limited, from_source("192.0.2.1"))).reason == "wrong-password"
    refusal = await failure(limited, from_source("192.0.2.1"))
    assert (refusal.code, refusal.reason) == (Code.RATE_LIMITED, "too-many-attempts")
    assert refusal.retry_after is not None
    assert inner.asked == 3
    assert (await failure(limited, from_source("192.0.2.2"))).reason == "wrong-password"
    now += refusal.retry_after
    assert (await failure(limited, from_source("192.0.2.1"))).reason == "wrong-password"


async def test_success_and_being_too_busy_are_not_counted_against_a_source() -> None:
    limiter = AttemptLimiter(attempts=1, per_seconds=60.0)
    good = Limited(yes("alice"), limiter, lambda: 0.0)
    busy = Limited(no("busy", Code.RATE_LIMITED), limiter, lambda: 0.0)
    for _ in range(5):
        assert (await good.authenticate(from_source("192.0.2.1"))).name == "alice"
        assert (await failure(busy, from_source("192.0.2.1"))).reason == "busy"


def settings(write_accounts: WriteAccounts, tokens: Path, *, anonymous: bool = False) -> Authentication:
    tokens.write_text(f"trunk:{hash_token(b'token')}\n")
    return Authentication(
        methods=(AuthMethod.CERTIFICATE, AuthMethod.PASSWORD, AuthMethod.TOKEN),
        password_file=write_accounts(alice="sesame"),
        token_file=tokens,
        anonymous=anonymous,
    )


def assembled(what: Authentication, **more: list[Authenticator]) -> Limited:
    return make_authenticator(
        what, limiter=AttemptLimiter(), clock=lambda: 0.0, plugins=more.get("plugins", [])
    )


async def test_a_configuration_with_every_method(write_accounts: WriteAccounts, tmp_path: Path) -> None:
    authenticator = assembled(settings(write_accounts, tmp_path / "tokens"))
    by_password = await authenticator.authenticate(Credentials(username="alice", password=b"sesame"))
    by_token = await authenticator.authenticate(Credentials(password=b"token"))
    assert [(who.name, who.method) for who in (by_password, by_token)] == [
        ("alice", "password"),
        ("trunk", "token"),
    ]
    assert (await failure(authenticator, Credentials())).reason == "not-offered"
    authenticator.close()


async def test_plug_ins_come_after_the_methods_and_before_anonymous(
    write_accounts: WriteAccounts, tmp_path: Path
) -> None:
    plugin = yes("from the directory")
    authenticator = assembled(settings(write_accounts, tmp_path / "tokens", anonymous=True), plugins=[plugin])
    assert (
        await authenticator.authenticate(Credentials(username="alice", password=b"sesame"))
    ).name == "alice"
    assert plugin.asked == 0
    assert (await authenticator.authenticate(Credentials())).name == "from the directory"
    authenticator.close()
    assert plugin.closed


async def test_a_configuration_without_methods_refuses_unless_it_says_anonymous() -> None:
    assert (await failure(assembled(Authentication()), Credentials())).code is Code.UNAUTHORIZED
    identity = await assembled(Authentication(anonymous=True)).authenticate(Credentials())
    assert identity.method == "anonymous"


@pytest.mark.parametrize("method", [AuthMethod.PASSWORD, AuthMethod.TOKEN])
def test_a_method_without_its_file_says_what_to_set(method: AuthMethod) -> None:
    with pytest.raises(ConfigError, match=f"set {method.value}-file"):
        assembled(Authentication(methods=(method,)))


def make_from_options(options: Mapping[str, object]) -> Authenticator:
    """A plug-in's factory, found by its entry point below."""
    if "name" not in options:
        raise KeyError("name")
    return yes(str(options["name"]))


def make_nothing(options: Mapping[str, object]) -> object:
    return object()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as installed distributions would bring them."""
    points = {
        name: EntryPoint(name, f"{__name__}:{target}", plugins_module.GROUP)
        for name, target in {
            "directory": "make_from_options",
            "broken": "not_there",
            "empty": "make_nothing",
        }.items()
    }
    monkeypatch.setattr(plugins_module, "available", lambda: points)


@pytest.mark.usefixtures("installed")
async def test_a_plug_in_is_found_by_name_and_given_its_options() -> None:
    authenticator = load_authenticator("directory", {"name": "alice"})
    assert (await authenticator.authenticate(Credentials())).name == "alice"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ldpa", "directory"),
        ("directory", "KeyError"),
        ("broken", "not_there"),
        ("empty", "cannot authenticate"),
    ],
)
def test_a_plug_in_that_cannot_be_used_says_why(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_authenticator(name, {})
