"""The embedded SBC in a configuration: what comes out, and every way in which it can be wrong."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from opentsm.config import ConfigErrors, Effect, check_files, diff, loads

REALM = 'core = "userspace"\naddresses = ["10.64.0.1/16"]\necho = 7'
SBC = """
[sbc.calls]
realm = "core"
domain = "example.org"
address = "10.64.0.2"
users-file = "sip-users"
"""


@pytest.fixture
def text(minimal: str) -> str:
    return minimal.replace('core = "none"', REALM) + SBC


def problems(text: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, source="f")
    return str(caught.value)


def test_defaults(text: str) -> None:
    settings = loads(text, source="/etc/opentsm/server.toml")
    sbc = settings.sbcs["calls"]
    assert sbc.realm is settings.realms["core"]
    assert settings.sbc_of(sbc.realm) is sbc
    assert (sbc.address, sbc.port, sbc.media_ports) == (ip_address("10.64.0.2"), 5060, (20000, 39999))
    assert (sbc.anchoring, sbc.cdr_file, sbc.database) == (True, None, None)
    assert sbc.users_file == Path("/etc/opentsm/sip-users")


def test_the_user_planes_own_address_will_do(text: str) -> None:
    assert loads(text.replace('"10.64.0.2"', '"10.64.0.1"')).sbcs["calls"].address == ip_address("10.64.0.1")


def test_a_realm_without_addresses_takes_any(minimal: str) -> None:
    assert "calls" in loads(minimal + SBC).sbcs


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"10.64.0.2"',
            '"10.64.1.9"',
            "f:28: sbc calls: 10.64.1.9 is in pool office (choose another, or take",
        ),
        ('"10.64.0.2"', '"10.65.0.2"', "10.65.0.2 is outside of the prefixes of realm core (10.64.0.0/16)"),
        ('"10.64.0.2"', '"fd00::2"', "fd00::2 is outside of the prefixes of realm core"),
        ('"10.64.0.2"', '"sbc.example.org"', "sbc calls: address: 'sbc.example.org'"),
        ('"example.org"', '"sip:example org"', "is not a SIP domain, as in sip:alice@DOMAIN"),
        ('users-file = "sip-users"', "", "sbc calls has no users-file"),
        ('realm = "core"\ndomain', 'realm = "cor"\ndomain', "there is no realm 'cor' (did you mean 'core'?)"),
        (SBC, SBC + "port = 30000\n", "port 30000 of SIP lies among the media ports 20000-39999"),
        (SBC, SBC + "port = 0\n", "0 is out of range: 1 to 65535"),
        (SBC, SBC + 'media-ports = "20000"\n', "'20000' is no range of ports: FIRST-LAST within 1024-65535"),
        (SBC, SBC + 'media-ports = "20000-20002"\n', "at least 4 ports"),
        (SBC, SBC + 'media-ports = "80-20002"\n', "is no range of ports"),
        (SBC, SBC + 'media-ports = "a-b"\n', "is no range of ports"),
        (SBC, SBC + "media-ports = 5\n", "is no"),
        (SBC, SBC + SBC.replace("calls", "two").replace("0.2", "0.3"), "realm core has sbc calls already"),
        (SBC, SBC + SBC.replace("calls", "two"), "sbc calls has 10.64.0.2 already"),
        (
            'address = "10.64.0.2"',
            'address = "10.64.0.1"\nport = 7',
            "port 7 is the realm's echo service on the same address",
        ),
        (
            SBC,
            SBC + '[realm.other]\ncore = "none"\naddresses = "10.64.0.2/32"\n',
            "realm other has 10.64.0.2 already",
        ),
    ],
)
def test_what_does_not_fit_is_said(text: str, old: str, new: str, said: str) -> None:
    assert old in text
    assert said in problems(text.replace(old, new))


def test_a_tun_realms_address_is_the_kernels(text: str) -> None:
    tun = text.replace('core = "userspace"', 'core = "tun"\ntun = "tsm0"')
    assert "calls" in loads(tun).sbcs
    said = problems(tun.replace('"10.64.0.2"', '"10.64.0.1"'))
    assert "10.64.0.1 is the kernel's, because the realm's core is tun (give the SBC an address" in said


def test_every_change_waits_for_a_restart(text: str) -> None:
    new = text.replace("example.org", "example.net") + "anchoring = off\n".replace("off", '"off"')
    for one in (diff(loads(text), loads(new)), diff(loads(text), loads(text.replace(SBC, "")))):
        assert one
        assert {change.effect for change in one} == {Effect.RESTART}


def test_its_files_are_checked(text: str, tmp_path: Path) -> None:
    for name in ("server.pem", "server.key"):
        (tmp_path / name).touch()
    settings = loads(text + 'database = "nowhere/sbc.db"\n', base=tmp_path)
    with pytest.raises(ConfigErrors) as caught:
        check_files(settings)
    said = str(caught.value)
    assert "sbc calls users-file" in said
    assert "sbc calls database" in said
    assert "there is no such directory" in said
