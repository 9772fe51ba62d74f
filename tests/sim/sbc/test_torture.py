"""Every message of RFC 4475, with another call in progress that must not notice."""

from __future__ import annotations

import pytest

from opentsm.sbc.headers import name_addr_untrusted
from tests.sim.sbc.test_hostile import MALLORY, _codes, _in_call, _still_works
from tests.sim.sbc.torture import ALL, REGISTRATIONS, TRANSACTION


@pytest.mark.parametrize("name", ALL)
def test_each_message_has_its_outcome_and_harms_nobody(name: str) -> None:
    case = ALL[name]
    world, alice, bob, leg = _in_call()
    bob.lenient = world.network.phones[MALLORY].lenient = True
    bob.behaviour = "busy"
    before, events = len(bob.requests), world.events.copy()
    codes = _codes(world, case.data)
    world.network.run(1.2)
    assert tuple(codes) == case.codes
    assert len(bob.requests) - before == case.reaches
    if case.event:
        assert world.events[case.event] > events[case.event]
    if not case.reaches:
        assert sum(world.events.values()) > sum(events.values()), "what goes wrong has a name"
    _still_works(world, alice, bob, leg)


def test_the_whole_set_is_here() -> None:
    assert len(ALL) + len(REGISTRATIONS) == 49


@pytest.mark.parametrize("name", REGISTRATIONS)
def test_contacts_that_are_hard_to_read(name: str) -> None:
    _, contact, code = REGISTRATIONS[name]
    world, alice, bob, leg = _in_call()
    mallory = world.network.phones[MALLORY]
    mallory.register(contact=contact)
    world.network.run(1)
    assert mallory.registered[-1] == code
    if code == "200":
        bound = {binding.contact for binding in world.core.bindings("mallory@example.org")}
        assert name_addr_untrusted(contact).uri in bound
    _still_works(world, alice, bob, leg)


def test_headers_of_a_contact_do_not_become_part_of_a_request_uri() -> None:
    world, alice, _, _ = _in_call()
    mallory = world.network.phones[MALLORY]
    mallory.register(expires=0)
    mallory.register(contact=REGISTRATIONS["regescrt"][1])
    world.network.run(1)
    alice.outside("MESSAGE", "mallory")
    world.network.run(1)
    assert str(mallory.requests[-1].uri) == "sip:user@10.64.0.66"


def test_a_branch_that_is_only_the_cookie_tells_nothing_apart() -> None:
    world, _, bob, _ = _in_call()
    data = TRANSACTION["badbranch"].data
    _codes(world, data)
    _codes(world, data.replace(b"odd.0ha0isndaksdj", b"another-call-id"))
    assert bob.received.count("OPTIONS") == 2
    _codes(world, data)
    assert bob.received.count("OPTIONS") == 2, "the same one again is the same one"
