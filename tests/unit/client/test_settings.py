"""Addresses and arguments: what is taken, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pytest

import opentsm
from opentsm.client.address import ServerAddress, parse_server, parse_servers
from opentsm.client.settings import make_settings, parse_pin
from opentsm.errors import ConfigError
from opentsm.types import Service, Transport
from opentsm.wire.messages import AddressFamilies


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tls://host:8443", ServerAddress(Transport.TLS, "host", 8443)),
        ("tcp://192.0.2.1:5061/", ServerAddress(Transport.TCP, "192.0.2.1", 5061)),
        ("tls://[2001:db8::1]", ServerAddress(Transport.TLS, "2001:db8::1", 443)),
        ("host", ServerAddress(Transport.TLS, "host", 443)),
        ("host:444", ServerAddress(Transport.TLS, "host", 444)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: ServerAddress) -> None:
    assert parse_server(text) == address
    assert parse_server(str(address)) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dtls://host:443", "write tls://host:443"),
        ("https://host", "unknown transport 'https'"),
        ("tls://", "no host"),
        ("tls://host:0", "port 0"),
        ("tls://host:99999", "Port"),
        ("tls://alice:pw@host", "only a host and a port"),
    ],
)
def test_what_is_no_address_is_said_at_once(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opentsm.connect(text)


def test_doubles_are_tried_once() -> None:
    assert [s.host for s in parse_servers(["tls://a", "b", "a:443"])] == ["a", "b"]
    with pytest.raises(ConfigError, match="no server"):
        parse_servers([])


def test_a_pin_as_openssl_prints_it() -> None:
    printed = ":".join(["AB"] * 32)
    assert parse_pin(printed) == parse_pin("ab" * 32) == parse_pin(b"\xab" * 32) == b"\xab" * 32
    for wrong in ("ab" * 31, "zz" * 32, b"short"):
        with pytest.raises(ConfigError, match="pin_sha256"):
            parse_pin(wrong)


def test_files_and_names(tmp_path: Path) -> None:
    pem = tmp_path / "both.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    settings = make_settings("host", ca=pem, client_cert=pem, families="ipv6", services=["ddt", Service.SIP])
    assert settings.tls.ca_pem == settings.tls.key_pem == pem.read_bytes()
    assert settings.session.families is AddressFamilies.IPV6
    assert settings.session.wanted_services == (Service.DDT, Service.SIP)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ca": "/no/such/file.pem"}, "cannot read /no/such/file.pem"),
        ({"client_cert": b"-----BEGIN CERTIFICATE-----"}, "no private key"),
        ({"families": "ipv5"}, "ipv4, ipv6 or both"),
        ({"services": ["telepathy"]}, "'telepathy' is unknown"),
        ({"username": ""}, "username"),
        ({"password": "x" * 2000}, "password"),
        ({"keepalive": -1}, "keepalive"),
        ({"client_id": b"x" * 65}, "client_id"),
        ({"proxy": "gopher://host"}, "no kind of proxy"),
    ],
)
def test_arguments_that_cannot_be_are_said_at_once(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opentsm.connect("host", **arguments)  # type: ignore[arg-type]


async def test_a_certificate_that_is_none_is_said() -> None:
    with pytest.raises(ConfigError, match="TLS"):
        await opentsm.connect("tls://127.0.0.1:1", ca=b"-----BEGIN CERTIFICATE-----\nx\n")
