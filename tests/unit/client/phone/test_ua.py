from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone import sdp
from opentsm.client.phone.events import (
    Answered,
    Changed,
    Ended,
    Established,
    Incoming,
    Registered,
    RegistrationFailed,
    Ringing,
    Unregistered,
)
from opentsm.client.phone.leg import RING_LIMIT
from opentsm.client.phone.message import parse_sip_untrusted, response
from opentsm.client.phone.transaction import GIVE_UP
from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress
from tests.unit.client.phone.conversation import (
    ALICE,
    BOB,
    SERVER,
    Network,
    answering,
    established,
    kinds,
    local,
)

BOB_URI = "sip:bob@10.64.0.3"
STRANGER = ("10.64.0.66", 5060)
"""Somebody who does not listen to what is answered."""


def pair(lose: set[int] | None = None) -> Network:
    """Alice and Bob without a server between them."""
    network = Network(lambda number, data: number in (lose or set()))
    network.add("alice", ALICE)
    network.add("bob", BOB)
    return network


def ended(network: Network, address: SocketAddress) -> Ended:
    found = [event for event in network.events[address] if isinstance(event, Ended)]
    assert len(found) == 1, network.events[address]
    return found[0]


def whole_call(network: Network) -> None:
    """Alice calls, Bob takes it, they talk for ten seconds, Alice hangs up."""
    answering(network, BOB)
    alice = network.agents[ALICE]
    call = alice.call(network.now, BOB_URI, local(ALICE))
    network.run(40, until=lambda: all(established(events) for events in network.events.values()))
    network.run(10)
    alice.hang_up(network.now, call)
    network.run()


def test_a_call_from_ring_to_bye() -> None:
    network = pair()
    whole_call(network)
    assert kinds(network.events[ALICE]) == ["Ringing", "Established", "Ended"]
    assert kinds(network.events[BOB]) == ["Incoming", "Established", "Ended"]
    media = next(e.remote for e in network.events[ALICE] if isinstance(e, Established))
    assert (media.address, media.port, media.rtcp) == (BOB[0], 30000, (BOB[0], 30001))
    assert media.codec is not None
    assert (media.codec[0].encoding, media.events) == ("PCMU", 101)
    assert (ended(network, ALICE).by, ended(network, BOB).by) == ("local", "remote")
    assert network.log == [
        "INVITE sip:bob@10.64.0.3 SIP/2.0",
        "SIP/2.0 180 Ringing",
        "SIP/2.0 200 OK",
        "ACK sip:bob@10.64.0.3:5060 SIP/2.0",
        "BYE sip:bob@10.64.0.3:5060 SIP/2.0",
        "SIP/2.0 200 OK",
    ]
    assert all(agent.deadline is None for agent in network.agents.values())  # nothing is left behind


def by_tcp() -> Network:
    network = Network()
    network.add("alice", ALICE, transport="tcp")
    network.add("bob", BOB, transport="tcp")
    return network


def test_a_call_by_tcp_has_every_message_once_and_says_so_in_via_and_contact() -> None:
    network = by_tcp()
    whole_call(network)
    assert network.by_tcp == network.log
    assert len(network.log) == 6
    invite = network.seen[0]
    assert b"\r\nVia: SIP/2.0/TCP 10.64.0.2:5060;branch=" in invite
    assert b"\r\nContact: <sip:alice@10.64.0.2:5060;transport=tcp>\r\n" in invite
    assert all(agent.deadline is None for agent in network.agents.values())


def test_a_udp_phone_answers_by_tcp_what_came_by_tcp_and_goes_where_the_contact_says() -> None:
    network = Network()
    network.add("alice", ALICE, transport="tcp")
    network.add("bob", BOB)
    answering(network, BOB)
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(40, until=lambda: all(established(events) for events in network.events.values()))
    bobs = next(event.call for event in network.events[BOB] if isinstance(event, Incoming))
    network.agents[BOB].hang_up(network.now, bobs)
    network.run()
    assert network.by_tcp == network.log
    assert ended(network, ALICE).by == "remote"


def long_named(without_tcp: bool) -> Network:
    """A caller whose name alone makes a request too large for a datagram."""
    network = Network()
    network.without_tcp = without_tcp
    network.add("alice" + "e" * 180, ALICE)
    network.add("bob", BOB)
    return network


def test_a_large_request_goes_by_tcp_and_small_ones_of_the_same_call_do_not() -> None:
    """RFC 3261 section 18.1.1."""
    network = long_named(without_tcp=False)
    whole_call(network)
    assert ended(network, BOB).code == 200
    large = [data for data in network.seen if len(data) > 1300 and data.startswith(b"INVITE")]
    assert large
    assert all(b"SIP/2.0/TCP" in data for data in large)
    assert [line.split()[0] for line in network.by_tcp][:3] == ["INVITE", "SIP/2.0", "SIP/2.0"]
    assert not any(line.startswith(("ACK", "BYE")) for line in network.by_tcp)


def test_a_large_request_goes_by_udp_where_nobody_takes_tcp() -> None:
    network = long_named(without_tcp=True)
    whole_call(network)
    assert network.by_tcp == []
    assert ended(network, BOB).code == 200
    invite = network.seen[0]
    assert len(invite) > 1300
    assert b"SIP/2.0/UDP" in invite


def test_without_a_connection_a_call_by_tcp_fails_at_once() -> None:
    network = by_tcp()
    network.without_tcp = True
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(1.0)
    assert ended(network, ALICE).code in (0, 408, 503)


@pytest.mark.parametrize("lost", range(1, 13))
def test_any_single_message_may_be_lost(lost: int) -> None:
    network = pair({lost})
    whole_call(network)
    for address in (ALICE, BOB):
        assert established(network.events[address])
        assert ended(network, address).code == 200
    assert all(agent.deadline is None for agent in network.agents.values())


@given(st.sets(st.integers(1, 40), max_size=12))
def test_whatever_is_lost_both_ends_finish(lost: set[int]) -> None:
    """With a dozen losses the call may fail, but no side hangs for ever, and no side ends twice."""
    network = pair(lost)
    whole_call(network)
    network.run(600)
    assert ended(network, ALICE).reason
    if any(isinstance(event, Incoming) for event in network.events[BOB]):
        assert len([e for e in network.events[BOB] if isinstance(e, Ended)]) <= 1
    assert network.agents[ALICE].deadline is None


def test_the_called_side_may_hang_up() -> None:
    network = pair()
    answering(network, BOB)
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(5)
    call = next(event.call for event in network.events[BOB] if isinstance(event, Incoming))
    network.agents[BOB].hang_up(network.now, call)
    network.run()
    assert (ended(network, ALICE).by, ended(network, BOB).by) == ("remote", "local")


@pytest.mark.parametrize("lost", [None, 3, 4, 5, 6, 7])
def test_a_caller_may_give_up(lost: int | None) -> None:
    network = pair(set() if lost is None else {lost})
    alice = network.agents[ALICE]
    call = alice.call(network.now, BOB_URI, local(ALICE))
    network.run(3, until=lambda: "Ringing" in kinds(network.events[ALICE]))
    alice.hang_up(network.now, call, reason="changed my mind")
    network.run()
    assert ended(network, ALICE) == Ended(call, 487, "changed my mind", "local")
    assert ended(network, BOB).code == 487
    assert not established(network.events[BOB])


def test_giving_up_waits_for_the_first_sign_of_life() -> None:
    """CANCEL before any response would be nobody's (RFC 3261 section 9.1)."""
    network = pair({1})
    alice = network.agents[ALICE]
    call = alice.call(network.now, BOB_URI, local(ALICE))
    alice.hang_up(network.now, call)
    network.run()
    assert network.log.index("CANCEL sip:bob@10.64.0.3 SIP/2.0") > network.log.index("SIP/2.0 180 Ringing")
    assert ended(network, BOB).code == 487


def test_cancel_and_answer_crossing_end_with_bye() -> None:
    network = pair()
    alice, bob = network.agents[ALICE], network.agents[BOB]
    call = alice.call(network.now, BOB_URI, local(ALICE))
    network.run(3, until=lambda: "Ringing" in kinds(network.events[ALICE]))
    incoming = next(event.call for event in network.events[BOB] if isinstance(event, Incoming))
    alice.hang_up(network.now, call)
    bob.accept(network.now, incoming, local(BOB, 30000))
    network.run()
    assert any(line.startswith("BYE") for line in network.log)
    assert ended(network, ALICE).by == "local"
    assert ended(network, BOB).by == "remote"


def test_busy() -> None:
    network = pair()
    network.agents[BOB].busy = True
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run()
    assert (ended(network, ALICE).code, ended(network, ALICE).reason) == (486, "Busy Here")
    assert network.events[BOB] == []


def test_decline() -> None:
    network = pair()
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(3)
    call = next(event.call for event in network.events[BOB] if isinstance(event, Incoming))
    network.agents[BOB].reject(network.now, call)
    network.run()
    assert ended(network, ALICE).code == 603


def test_a_call_that_nobody_hears_of_ends() -> None:
    network = Network()
    alice = network.add("alice", ALICE)
    alice.call(network.now, BOB_URI, local(ALICE))
    network.run(GIVE_UP + 1)
    assert ended(network, ALICE) == Ended(ended(network, ALICE).call, 408, "no answer", "local")
    assert len(network.log) == 7  # at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s (RFC 3261 section 17.1.1.2)


def test_a_call_that_nobody_answers_ends() -> None:
    network = pair()
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(RING_LIMIT + GIVE_UP + 1)
    assert ended(network, ALICE).code == 480
    assert ended(network, BOB).code in (480, 487)


def test_a_200_that_is_never_acknowledged_ends_with_bye() -> None:
    network = Network(lambda number, data: data.startswith(b"ACK"))
    network.add("alice", ALICE)
    network.add("bob", BOB)
    answering(network, BOB)
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run()
    assert network.log.count("SIP/2.0 200 OK") > 5
    assert ended(network, BOB).reason == "the other side never acknowledged"
    assert ended(network, ALICE).by == "remote"


def test_options() -> None:
    network = pair()
    asked = network.agents[ALICE].options(network.now, BOB_URI)
    nobody = network.agents[ALICE].options(network.now, "sip:carol@10.64.0.9")
    network.run()
    assert network.events[ALICE] == [Answered(asked, 200), Answered(nobody, 408)]


# -- re-INVITE -----------------------------------------------------------------------------------------------


def test_hold_and_resume_are_answered() -> None:
    network = pair()
    answering(network, BOB)
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(5)
    answers = [reinvite(network, f"a={direction}") for direction in ("sendonly", "inactive", "sendrecv")]
    assert [b"a=recvonly" in answers[0], b"a=inactive" in answers[1], b"a=sendrecv" in answers[2]] == [
        True
    ] * 3
    changes = [event.remote.on_hold for event in network.events[BOB] if isinstance(event, Changed)]
    assert changes == [True, True, False]
    versions = [re.search(rb"o=- 7 (\d+)", answer) for answer in answers]
    assert [v and v.group(1) for v in versions] == [b"2", b"3", b"4"]  # RFC 3264 section 8


def test_a_reinvite_without_common_formats_is_refused_and_the_call_goes_on() -> None:
    network = pair()
    answering(network, BOB)
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(5)
    assert reinvite(network, "a=sendrecv", formats="96") == b""
    assert "SIP/2.0 488 Not Acceptable Here" in network.log
    assert not any(isinstance(event, Ended | Changed) for event in network.events[BOB])


_number = iter(range(1000, 2000))


def reinvite(network: Network, direction: str, formats: str = "0 101") -> bytes:
    """A re-INVITE written by hand into Alice's dialog; the body of Bob's answer."""
    ack = next(m for m in network.seen if m.startswith(b"ACK"))
    text = ack.decode().split("\r\n\r\n")[0].replace("ACK", "INVITE").splitlines()
    lines = [
        re.sub(r"CSeq: \d+", f"CSeq: {next(_number)}", line) for line in text if "Content-Length" not in line
    ]
    lines = [re.sub(r"branch=\w+", f"branch=z9hG4bKre{next(_number)}", line) for line in lines]
    body = f"v=0\r\nc=IN IP4 {ALICE[0]}\r\nm=audio 20000 RTP/AVP {formats}\r\n"
    body += f"a=rtpmap:101 telephone-event/8000\r\n{direction}\r\n"
    lines += [
        f"Contact: <sip:alice@{ALICE[0]}>",
        "Content-Type: application/sdp",
        f"Content-Length: {len(body)}",
    ]
    before = len(network.seen)
    network.send(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), ALICE, BOB)
    network.run(0.2)
    found = [m for m in network.seen[before:] if m.startswith((b"SIP/2.0 200", b"SIP/2.0 488"))]
    return found[0].partition(b"\r\n\r\n")[2]


def test_a_second_call_in_a_forked_answer_is_taken_note_of_and_ended() -> None:
    """Two phones pick up: one call stays, the other gets ACK and BYE (RFC 3261 section 13.2.2.4)."""
    network = Network()
    alice = network.add("alice", ALICE, SERVER)
    said: list[tuple[str, str]] = []

    def fork(now: float, data: bytes, source: SocketAddress) -> list[tuple[bytes, SocketAddress]]:
        message = parse_sip_untrusted(data)
        said.append((message.method, message.to_tag))
        if message.method != "INVITE":
            return [(response(message, 200, ""), source)] if message.method == "BYE" else []
        body = sdp.answer(local(BOB), sdp.parse_sdp_untrusted(message.body)) or b""
        contact = ("Contact", f"<sip:bob@{BOB[0]}>")
        return [(response(message, 200, tag, [contact], body), source) for tag in ("one", "two")]

    network.servers[SERVER] = fork
    alice.call(network.now, "bob", local(ALICE))
    network.run(1)
    assert [m for m in said if m[0] != "INVITE"] == [("ACK", "one"), ("ACK", "two"), ("BYE", "two")]
    assert established(network.events[ALICE])


# -- registration and credentials ----------------------------------------------------------------------------


class Registrar:
    """Asks for credentials with the given algorithm and checks them by its own arithmetic."""

    def __init__(self, algorithm: str, *, password: str = "secret", nonce_lives: int = 1000) -> None:
        self.algorithm = algorithm
        self.password = password
        self.nonce_lives = nonce_lives
        self.asked: list[int | None] = []
        self._nonce = 0
        self._used = 0

    def __call__(self, now: float, data: bytes, source: SocketAddress) -> list[tuple[bytes, SocketAddress]]:
        message = parse_sip_untrusted(data)
        if message.method == "ACK":
            return []
        shown = dict(re.findall(r'(\w+)="?([^",]*)"?', message.header("Authorization")))
        stale = bool(shown) and (shown["nonce"] != str(self._nonce) or self._used >= self.nonce_lives)
        if not shown or stale or shown["response"] != self._expected(message.method, shown):
            self._nonce += 1
            self._used = 0
            challenge = f'Digest realm="r, \\"x\\"", nonce="{self._nonce}", qop="auth,auth-int"'
            challenge += f", algorithm={self.algorithm}{', stale=true' if stale else ''}"
            return [(response(message, 401, "reg", [("WWW-Authenticate", challenge)]), source)]
        self._used += 1
        self.asked.append(message.number("Expires"))
        headers = [
            ("Contact", f"{message.header('Contact')};expires={min(60, message.number('Expires') or 0)}")
        ]
        return [(response(message, 200, "reg", headers), source)]

    def _expected(self, method: str, shown: dict[str, str]) -> str:
        def digest(text: str) -> str:
            return hashlib.new({"MD5": "md5", "SHA-256": "sha256"}[self.algorithm], text.encode()).hexdigest()

        a1 = digest(f'alice:r, "x":{self.password}')
        a2 = digest(f"{method}:{shown['uri']}")
        return digest(f"{a1}:{shown['nonce']}:{shown['nc']}:{shown['cnonce']}:auth:{a2}")


def registering(registrar: Registrar, password: str = "secret") -> Network:
    network = Network()
    network.add("alice", ALICE, SERVER, password=password)
    network.servers[SERVER] = registrar
    network.agents[ALICE].register(network.now)
    return network


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_registration_with_a_challenge_and_its_refresh(algorithm: str) -> None:
    registrar = Registrar(algorithm)
    network = registering(registrar)
    network.run(100)
    assert network.events[ALICE] == [Registered(60)] * 3  # asked again at 48 s and 96 s
    assert network.log.count("SIP/2.0 401 Unknown") == 1  # the nonce is used again, and counted
    network.agents[ALICE].unregister(network.now)
    network.run(1)
    assert network.events[ALICE][-1] == Unregistered()
    assert registrar.asked[-1] == 0


def test_a_lost_connection_to_the_registrar_is_replaced_by_registering_anew() -> None:
    registrar = Registrar("MD5")
    network = Network()
    network.add("alice", ALICE, SERVER, transport="tcp", password="secret")
    network.servers[SERVER] = registrar
    agent = network.agents[ALICE]
    agent.register(network.now)
    network.run(5)
    before = len(network.log)
    agent.connection_failed(network.now, SERVER)
    network.run(5)
    assert network.log[before].startswith("REGISTER")
    assert network.by_tcp[-1].startswith("REGISTER")
    assert agent.registered


def test_a_stale_nonce_is_replaced() -> None:
    network = registering(Registrar("MD5", nonce_lives=1))
    network.run(100)
    assert network.events[ALICE] == [Registered(60)] * 3


def test_a_wrong_password_is_not_tried_for_ever() -> None:
    network = registering(Registrar("MD5"), password="wrong")
    network.run(500)
    assert network.events[ALICE] == [RegistrationFailed(401, "Unknown", None)]
    assert sum(line.startswith("REGISTER") for line in network.log) == 2


def test_a_registrar_that_is_away_is_asked_again() -> None:
    network = Network()
    network.add("alice", ALICE, SERVER)
    network.agents[ALICE].register(network.now)
    network.run(GIVE_UP + 1)
    assert network.events[ALICE] == [RegistrationFailed(408, "no answer from the SIP server", 30.0)]
    network.servers[SERVER] = Registrar("MD5")
    network.servers[SERVER] = lambda now, data, source: [
        (response(parse_sip_untrusted(data), 200, "r"), source)
    ]
    network.run(31)
    assert network.events[ALICE][-1] == Registered(300)


# -- hostile and odd -----------------------------------------------------------------------------------------


def test_a_call_without_a_common_format_is_refused() -> None:
    network = pair()
    body = b"v=0\r\nc=IN IP4 10.64.0.2\r\nm=audio 4000 RTP/SAVP 0\r\n"
    network.send(invite(body, "Content-Type: application/sdp\r\n"), ALICE, BOB)
    network.run(1)
    call = next(event.call for event in network.events[BOB] if isinstance(event, Incoming))
    network.agents[BOB].accept(network.now, call, local(BOB))
    network.run(1)
    assert network.log[-1] == "SIP/2.0 488 Not Acceptable Here"
    assert ended(network, BOB).code == 488


@pytest.mark.parametrize(
    ("extra", "body", "answer"),
    [
        ("Require: 100rel\r\n", b"", "SIP/2.0 420 Bad Extension"),
        ("Content-Type: text/plain\r\n", b"hello", "SIP/2.0 415 Unsupported Media Type"),
        ("Content-Type: application/sdp\r\n", b"hello", "SIP/2.0 400 Bad Request"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_right_code(extra: str, body: bytes, answer: str) -> None:
    network = pair()
    network.send(invite(body, extra), ALICE, BOB)
    network.run(0.2)
    assert network.log[1] == answer
    assert network.events[BOB] == []


def test_a_late_offer_is_answered_in_the_ack() -> None:
    network = pair()
    answering(network, BOB)
    network.send(invite(b""), ALICE, BOB)
    network.run(0.2)
    offered = parse_sip_untrusted(network.seen[-1])
    assert offered.code == 200
    assert not established(network.events[BOB])
    body = sdp.answer(local(ALICE), sdp.parse_sdp_untrusted(offered.body)) or b""
    ack = invite(body, "Content-Type: application/sdp\r\n", method="ACK", to_tag=offered.to_tag)
    network.send(ack.replace(b"branch=z9hG4bKtest", b"branch=z9hG4bKack"), ALICE, BOB)
    network.run(0.2)
    assert established(network.events[BOB])
    resent = network.log.count("SIP/2.0 200 OK")
    network.run(20)
    assert network.log.count("SIP/2.0 200 OK") == resent  # acknowledged: no longer repeated


def test_requests_for_dialogs_that_are_not_ours() -> None:
    network = pair()
    for method in ("BYE", "INVITE", "INFO"):
        network.send(invite(b"", method=method, to_tag="nonsense"), STRANGER, BOB)
    network.send(invite(b"", method="CANCEL").replace(b"test", b"nobody"), STRANGER, BOB)
    network.send(invite(b"", method="ACK", to_tag="nonsense").replace(b"test", b"other"), STRANGER, BOB)
    network.run(0.2)
    answers = [line for line in network.log if line.startswith("SIP/2.0")]
    assert answers == ["SIP/2.0 481 Call/Transaction Does Not Exist"] * 4
    assert network.refused == ["sip-stray-ack"]


def test_a_response_to_nothing_is_refused() -> None:
    network = pair()
    network.send(response(parse_sip_untrusted(invite(b"")), 200, "x"), ALICE, BOB)
    network.run(1)
    assert network.refused == ["sip-stray-response"]


def test_a_flood_of_invites_is_bounded() -> None:
    network = pair()
    for number in range(2000):
        network.send(invite(b"").replace(b"test", f"t{number}".encode()), STRANGER, BOB)
    network.run(1)
    incoming = [event for event in network.events[BOB] if isinstance(event, Incoming)]
    assert len(incoming) == 64
    assert "SIP/2.0 486 Busy Here" in network.log
    assert set(network.refused) == {"sip-too-many-transactions"}
    network.run(400)
    network.send(invite(b"").replace(b"test", b"after"), STRANGER, BOB)
    network.run(1)
    assert isinstance(network.events[BOB][-1], Incoming)  # and afterwards all is well


@given(st.binary(max_size=200), st.integers(0, 600), st.integers(0, 8))
def test_a_damaged_invite_never_raises_anything_else(junk: bytes, at: int, cut: int) -> None:
    network = pair()
    body = sdp.offer(local(ALICE))
    whole = invite(body, "Content-Type: application/sdp\r\n")
    data = whole[:at] + junk + whole[at + cut :]
    try:
        network.agents[BOB].receive_untrusted(network.now, data, ALICE)
        network.pump()
        for event in network.events[BOB]:
            assert isinstance(event, Incoming)
            network.agents[BOB].accept(network.now, event.call, local(BOB))
    except RemoteProtocolError:
        pass
    network.run(400)
    whole_call_after(network)


def whole_call_after(network: Network) -> None:
    """Whatever was said before, a good call still works."""
    network.events[BOB].clear()
    network.events[ALICE].clear()
    answering(network, BOB)
    call = network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(5)
    assert established(network.events[ALICE])
    network.agents[ALICE].hang_up(network.now, call)
    network.run()
    assert kinds(network.events[ALICE]) == ["Ringing", "Established", "Ended"]


def invite(body: bytes, extra: str = "", *, method: str = "INVITE", to_tag: str = "") -> bytes:
    tag = f";tag={to_tag}" if to_tag else ""
    head = (
        f"{method} {BOB_URI} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP {ALICE[0]}:{ALICE[1]};branch=z9hG4bKtest;rport\r\n"
        f"From: <sip:alice@example.org>;tag=a\r\nTo: <sip:bob@example.org>{tag}\r\n"
        f"Call-ID: call\r\nCSeq: 1 {method}\r\nContact: <sip:alice@{ALICE[0]}:{ALICE[1]}>\r\n"
        f"{extra}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_ringing_is_told_once_per_sign() -> None:
    network = pair()
    network.agents[ALICE].call(network.now, BOB_URI, local(ALICE))
    network.run(10)
    assert [event.code for event in network.events[ALICE] if isinstance(event, Ringing)] == [180]
