"""The development authority: certificates that TLS stacks take, files that are safe."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError

from opentsm.admin.certificates import (
    LEAF_LIFETIME,
    Issued,
    create_authority,
    file_stem,
    issue_client,
    issue_server,
    load_authority,
    write,
)
from opentsm.errors import ConfigError

NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Issued:
    return create_authority(NOW)


def verify_server(leaf: Issued, authority: Issued, name: x509.GeneralName, at: datetime = NOW) -> None:
    """As a TLS client does (RFC 5280 path validation); raises VerificationError."""
    policy = PolicyBuilder().store(Store([authority.certificate])).time(at)
    assert isinstance(name, x509.DNSName | x509.IPAddress)
    policy.build_server_verifier(name).verify(leaf.certificate, [])


def test_clients_take_the_server_under_all_its_names_and_no_other(authority: Issued) -> None:
    addresses = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    leaf = issue_server(authority, NOW, names=["a.example", "b.example"], addresses=addresses)
    for name in ("a.example", "b.example"):
        verify_server(leaf, authority, x509.DNSName(name))
    for address in addresses:
        verify_server(leaf, authority, x509.IPAddress(address))
    with pytest.raises(VerificationError):
        verify_server(leaf, authority, x509.DNSName("c.example"))
    with pytest.raises(VerificationError):
        verify_server(leaf, create_authority(NOW), x509.DNSName("a.example"))


def test_the_server_takes_a_clients_certificate_and_no_servers(authority: Issued) -> None:
    verifier: ClientVerifier = (
        PolicyBuilder().store(Store([authority.certificate])).time(NOW).build_client_verifier()
    )
    client = issue_client(authority, NOW, name="alice")
    usage = client.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(VerificationError):
        verifier.verify(issue_server(authority, NOW, names=["a.example"]).certificate, [])


def test_lifetimes_forgive_a_slow_clock_and_end(authority: Issued) -> None:
    leaf = issue_server(authority, NOW, names=["a.example"])
    name = x509.DNSName("a.example")
    verify_server(leaf, authority, name, NOW - timedelta(minutes=59))
    verify_server(leaf, authority, name, NOW + LEAF_LIFETIME - timedelta(minutes=1))
    with pytest.raises(VerificationError):
        verify_server(leaf, authority, name, NOW + LEAF_LIFETIME + timedelta(minutes=1))


def test_no_leaf_outlives_its_authority(authority: Issued) -> None:
    late = authority.certificate.not_valid_after_utc - timedelta(days=30)
    leaf = issue_server(authority, late, names=["a.example"])
    assert leaf.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(ValueError, match="expired"):
        issue_client(authority, late + timedelta(days=31), name="alice")


def test_a_long_dns_name_is_no_obstacle(authority: Issued) -> None:
    name = ".".join(["label" * 8] * 3) + ".example"
    verify_server(issue_server(authority, NOW, names=[name]), authority, x509.DNSName(name))


def test_a_server_that_is_called_nothing_gets_no_certificate(authority: Issued) -> None:
    with pytest.raises(ValueError, match="name or an address"):
        issue_server(authority, NOW, names=[])


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb"])
def test_a_client_needs_a_name_that_fits(authority: Issued, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        issue_client(authority, NOW, name=name)


def test_files_are_loaded_by_openssl_and_keys_are_private(authority: Issued, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    leaf = issue_server(authority, NOW, names=["a.example"])
    certificate, key = write(leaf, folder, "server")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(p.name for p in folder.iterdir()) == ["server.key", "server.pem"]


def test_the_pin_is_the_hash_of_the_leaf(authority: Issued, tmp_path: Path) -> None:
    leaf = issue_server(authority, NOW, names=["a.example"])
    certificate, _ = write(leaf, tmp_path, "server")
    first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    assert leaf.pin == first.fingerprint(SHA256()).hex()


def test_nothing_is_replaced_unless_told_to(authority: Issued, tmp_path: Path) -> None:
    first, second = (issue_client(authority, NOW, name="alice") for _ in range(2))
    certificate, key = write(first, tmp_path, "alice")
    certificate.unlink()
    with pytest.raises(ConfigError, match="--force"):
        write(second, tmp_path, "alice")
    assert key.read_bytes() == first.key_pem
    assert not certificate.exists()
    write(second, tmp_path, "alice", force=True)
    assert key.read_bytes() == second.key_pem


def test_an_authority_comes_back_from_its_files(authority: Issued, tmp_path: Path) -> None:
    write(authority, tmp_path, "ca")
    leaf = issue_server(load_authority(tmp_path), NOW, names=["a.example"])
    verify_server(leaf, authority, x509.DNSName("a.example"))


def test_a_folder_without_a_usable_authority_says_what_to_do(authority: Issued, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opentsm certs init"):
        load_authority(tmp_path)
    write(authority, tmp_path, "ca")
    (tmp_path / "ca.key").write_bytes(create_authority(NOW).key_pem)
    with pytest.raises(ConfigError, match="not the key"):
        load_authority(tmp_path)
    (tmp_path / "ca.key").write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_authority(tmp_path)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "ca", "a\nb"])
def test_names_do_not_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(ConfigError):
        file_stem(name)
