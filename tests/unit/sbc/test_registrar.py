"""What a REGISTER may say, and what becomes of it."""

from __future__ import annotations

from itertools import count

import pytest

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.digest import Nonces, ha1, response
from opentsm.sbc.headers import credentials_untrusted, essentials_untrusted
from opentsm.sbc.hop import Hop
from opentsm.sbc.location import MAX_CONTACTS, Location
from opentsm.sbc.message import Request
from opentsm.sbc.parties import Client
from opentsm.sbc.registrar import Outcome, Registrar
from opentsm.sbc.settings import SbcSettings
from opentsm.sbc.users import Users

HOP = Hop("udp", ("10.64.0.1", 5060), ("10.64.0.2", 5060))
ALICE = Client("alice", 1, 1, ("10.64.0.2",))


class Desk:
    """A registrar, and a phone that knows the password."""

    def __init__(self, algorithms: tuple[str, ...] = ("SHA-256", "MD5")) -> None:
        settings = SbcSettings(domain="example.org", address="10.64.0.1")
        self.location = Location()
        users = Users.from_passwords("example.org", {"alice": "pw"}, algorithms)
        self.registrar = Registrar(settings, self.location, users, Nonces(b"k"), lambda: "tag")
        self.numbers = count(1)

    def ask(self, *headers: tuple[str, str], now: float = 100.0, sequence: int | None = None) -> Outcome:
        number = next(self.numbers) if sequence is None else sequence
        request = Request("REGISTER", "sip:example.org")
        request.headers = [
            ("Via", f"SIP/2.0/UDP 10.64.0.2;branch=z9hG4bK{number}"),
            ("From", "<sip:alice@example.org>;tag=1"),
            ("To", "<sip:alice@example.org>"),
            ("Call-ID", "r"),
            ("CSeq", f"{number} REGISTER"),
            *headers,
        ]
        return self.registrar.register(now, HOP, request, essentials_untrusted(request), ALICE)

    def register(self, *headers: tuple[str, str], now: float = 100.0, sequence: int | None = None) -> Outcome:
        challenge = self.ask(now=now).response.lines("WWW-Authenticate")[0]
        params = credentials_untrusted(challenge)
        digest = response(
            params["algorithm"],
            ha1(params["algorithm"], "alice", "example.org", "pw"),
            nonce=params["nonce"],
            count="00000001",
            cnonce="c",
            method="REGISTER",
            uri="sip:example.org",
        )
        value = (
            f'Digest username="alice", realm="example.org", nonce="{params["nonce"]}", uri="sip:example.org",'
            f' qop=auth, nc=00000001, cnonce="c", response="{digest}", algorithm={params["algorithm"]}'
        )
        return self.ask(("Authorization", value), *headers, now=now, sequence=sequence)


def contacts(outcome: Outcome) -> list[str]:
    return outcome.response.lines("Contact")


def test_a_binding_is_granted_and_listed() -> None:
    desk = Desk()
    outcome = desk.register(("Contact", "Alice <sip:alice@10.64.0.2:5070;ob>;q=0.5"), ("Expires", "120"))
    assert (outcome.response.code, outcome.event) == (200, "registered")
    assert contacts(outcome) == ["<sip:alice@10.64.0.2:5070;ob>;q=0.5;expires=120"]
    assert contacts(desk.register(now=160.0)) == ["<sip:alice@10.64.0.2:5070;ob>;q=0.5;expires=60"]


@pytest.mark.parametrize(
    ("asked", "granted"), [("99999999999", 7200), ("x", 600), ("", 600), ("60", 60), ("100000", 7200)]
)
def test_times_are_held_to_the_settings(asked: str, granted: int) -> None:
    outcome = Desk().register(("Contact", "<sip:a@x>"), ("Expires", asked))
    assert contacts(outcome) == [f"<sip:a@x>;expires={granted}"]


def test_too_short_is_423_with_the_least() -> None:
    outcome = Desk().register(("Contact", "<sip:a@x>;expires=5"))
    assert outcome.response.code == 423
    assert outcome.response.get("Min-Expires") == "60"


def test_one_bad_contact_means_none_is_taken() -> None:
    desk = Desk()
    for bad in ("<http://x>", "<sip:a@x>;q=2", "<sip:a@x", f"<sip:{'a' * 600}@x>"):
        with pytest.raises(RemoteProtocolError):
            desk.register(("Contact", f"<sip:good@x>, {bad}"))
    assert desk.location.of("alice@example.org") == []
    twice = desk.register(("Contact", "<sip:a@x>"), ("Contact", "<sip:a@x>"))
    assert twice.response.code == 400


def test_an_older_register_does_not_undo_a_newer_one() -> None:
    desk = Desk()
    desk.register(("Contact", "<sip:a@x>"), sequence=50)
    late = desk.register(("Contact", "<sip:a@x>;expires=0"), sequence=49)
    assert late.response.code == 500
    assert len(desk.location.of("alice@example.org")) == 1


def test_star_removes_all_and_only_with_zero() -> None:
    desk = Desk()
    desk.register(("Contact", "<sip:a@x>, <sip:b@x>"))
    assert desk.register(("Contact", "*"), ("Expires", "60")).response.code == 400
    outcome = desk.register(("Contact", "*"), ("Expires", "0"))
    assert (outcome.response.code, contacts(outcome)) == (200, [])


def test_an_instance_keeps_its_place_when_its_address_changes() -> None:
    desk = Desk()
    instance = ';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>";reg-id=1'
    for port in (5060, 5070):
        outcome = desk.register(
            ("Contact", f"<sip:a@10.64.0.2:{port}>{instance}"),
            ("Supported", "path, outbound"),
            ("Path", "<sip:p;lr>"),
        )
    assert contacts(outcome) == [f"<sip:a@10.64.0.2:5070>{instance};expires=600"]
    assert outcome.response.get("Require") == "outbound"
    assert outcome.response.get("Path") == "<sip:p;lr>"
    (binding,) = desk.location.of("alice@example.org")
    assert binding.path == ("<sip:p;lr>",)


def test_more_contacts_than_one_user_may_have_replace_the_oldest() -> None:
    desk = Desk()
    for number in range(MAX_CONTACTS + 3):
        desk.register(("Contact", f"<sip:a{number}@x>"), now=100.0 + number)
    kept = {b.contact for b in desk.location.of("alice@example.org")}
    assert kept == {f"sip:a{number}@x" for number in range(3, MAX_CONTACTS + 3)}


@pytest.mark.parametrize(
    ("stored", "offered"),
    [(("MD5",), ["MD5"]), (("MD5", "SHA-256"), ["SHA-256", "MD5"]), ((), ["SHA-256", "MD5"])],
)
def test_a_phone_is_offered_what_its_user_has_a_hash_for(stored: tuple[str, ...], offered: list[str]) -> None:
    challenges = Desk(stored).ask().response.lines("WWW-Authenticate")
    assert [credentials_untrusted(value)["algorithm"] for value in challenges] == offered


def test_an_old_nonce_is_answered_with_stale() -> None:
    desk = Desk()
    value = (
        'Digest username="alice", realm="example.org", nonce="0.00", uri="sip:x", qop=auth, nc=00000001, '
        'cnonce="c", response="0", algorithm=MD5'
    )
    outcome = desk.ask(("Authorization", value))
    assert outcome.event == "register-stale"
    assert "stale=true" in outcome.response.lines("WWW-Authenticate")[0]
