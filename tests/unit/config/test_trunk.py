"""Trunks and the SBC's core side in a configuration."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from opentsm.config import ConfigErrors, loads

REALM = 'core = "userspace"\naddresses = ["10.64.0.1/16"]'
SBC = """
[sbc.calls]
realm = "core"
domain = "example.org"
address = "10.64.0.2"
users-file = "sip-users"
core-address = "192.0.2.10"
"""
TRUNK = """
[trunk.provider]
sbc = "calls"
address = "192.0.2.20"
"""


@pytest.fixture
def text(minimal: str) -> str:
    return minimal.replace('core = "none"', REALM) + SBC + TRUNK


def test_defaults(text: str) -> None:
    settings = loads(text)
    sbc, trunk = settings.sbcs["calls"], settings.trunks["provider"]
    assert trunk.sbc is sbc
    assert settings.trunks_of(sbc) == (trunk,)
    assert (sbc.core_address, sbc.core_port) == (ip_address("192.0.2.10"), 5060)
    assert (sbc.core_transports, sbc.core_media_ports) == (("udp", "tcp"), (40000, 49999))
    assert (trunk.port, trunk.transport, trunk.calls_in, trunk.username) == (5060, "udp", True, None)


def test_what_goes_there_and_who_it_is(text: str) -> None:
    more = 'sources = "192.0.2.16/28"\nnumbers = ["+", "00"]\ndomains = "*"\ncalls-in = "off"\n'
    trunk = loads(text + more).trunks["provider"]
    assert trunk.sources == (ip_network("192.0.2.16/28"),)
    assert (trunk.numbers, trunk.domains, trunk.calls_in) == (("+", "00"), ("*",), False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('core-address = "192.0.2.10"\n', "", "sbc calls has no core-address from which it could be reached"),
        ('"192.0.2.20"', '"2001:db8::20"', "2001:db8::20 cannot be reached from 192.0.2.10"),
        ('"192.0.2.10"', '"10.64.0.1"', "10.64.0.1 is an inner address"),
        (TRUNK, TRUNK + 'transport = "tls"\n', "'tls' is not one of udp, tcp"),
        (TRUNK, TRUNK + 'username = "me"\n', "an account is a name and a password"),
        (TRUNK, TRUNK + 'password-file = "p"\n', "an account is a name and a password"),
        (TRUNK, TRUNK + 'numbers = "a b"\n', "is not the beginning of a number or name"),
        (TRUNK, TRUNK.replace('"calls"', '"other"'), "there is no sbc 'other'"),
        (SBC, SBC + 'core-transports = "tcp"\n', "sbc calls does not speak udp there"),
        (SBC, SBC + 'core-media-ports = "5000-6000"\n', "port 5060 of SIP lies among the media ports"),
        (SBC, SBC + 'address6 = "10.64.0.3"\n', "10.64.0.3 is of the same family as 10.64.0.2"),
        (SBC, SBC + 'address6 = "fd00::2"\n', "fd00::2 is outside of the prefixes of realm core"),
    ],
)
def test_what_cannot_work(text: str, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loads(text.replace(old, new))
    assert said in str(caught.value)


def test_with_core_tun_the_kernel_leads_to_trunks(text: str) -> None:
    tun = text.replace('core = "userspace"', 'core = "tun"\ntun = "tsm0"')
    assert "provider" in loads(tun.replace('core-address = "192.0.2.10"\n', "")).trunks
