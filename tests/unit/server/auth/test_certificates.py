"""Client certificates: whom they name, and what hostile ones do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from opentsm.admin.certificates import create_authority, issue_client, issue_server
from opentsm.errors import RemoteProtocolError
from opentsm.server.auth import AuthenticationFailed, ClientCertificate, Credentials
from opentsm.server.auth.certificates import MAX_CERTIFICATE, certificate_name_untrusted

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())


def made(
    *,
    common: Sequence[str] = (),
    san: Sequence[x509.GeneralName] = (),
    usage: Sequence[x509.ObjectIdentifier] = (),
) -> bytes:
    """A certificate of our own making, in DER; nothing of its chain matters here."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common])
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


async def reason_for(credentials: Credentials) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await ClientCertificate().authenticate(credentials)
    return caught.value.reason


@pytest.mark.parametrize(
    ("der", "name"),
    [
        (made(common=["alice"]), "alice"),
        (made(common=["alice"], usage=[ExtendedKeyUsageOID.CLIENT_AUTH]), "alice"),
        (made(common=["alice"], san=[x509.DNSName("phone.example")]), "phone.example"),
        (
            made(common=["a"], san=[x509.DNSName("phone.example"), x509.RFC822Name("al@example")]),
            "al@example",
        ),
        (made(san=[x509.UniformResourceIdentifier("sip:al@example")]), None),
        (made(san=[x509.UniformResourceIdentifier("urn%3aal")]), "urn%3aal"),
    ],
)
async def test_the_name_comes_from_the_alternative_names_then_from_the_common_name(
    der: bytes, name: str | None
) -> None:
    credentials = Credentials(certificate=der)
    if name is None:
        assert await reason_for(credentials) == "bad-certificate"
    else:
        identity = await ClientCertificate().authenticate(credentials)
        assert (identity.name, identity.method) == (name, "certificate")


async def test_a_certificate_of_our_own_authority_names_its_account() -> None:
    issued = issue_client(create_authority(NOW), NOW, name="alice")
    der = issued.certificate.public_bytes(Encoding.DER)
    identity = await ClientCertificate().authenticate(Credentials(certificate=der, username="alice"))
    assert identity.name == "alice"


async def test_a_servers_certificate_is_no_clients() -> None:
    issued = issue_server(create_authority(NOW), NOW, names=["host.example"])
    der = issued.certificate.public_bytes(Encoding.DER)
    assert await reason_for(Credentials(certificate=der)) == "bad-certificate"


async def test_a_certificate_does_not_speak_in_another_name() -> None:
    der = made(common=["alice"])
    assert await reason_for(Credentials(certificate=der, username="bob")) == "name-mismatch"


async def test_without_a_certificate_nothing_is_offered() -> None:
    assert await reason_for(Credentials(username="alice", password=b"sesame")) == "not-offered"


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x82",
        b"\x00" * 4096,
        b"\x30" * (MAX_CERTIFICATE + 1),
        made(),
        made(common=[" "]),
        made(common=["a:b"]),
        made(common=["evil\nlog line"]),
        made(common=["alice\x00.example"]),
        # A version that does not exist, for which cryptography has an exception of its own.
        made(common=["alice"]).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"),
        made(common=["alice"])[:-1],
        made(common=["alice"])[: len(made(common=["alice"])) // 2],
    ],
)
def test_certificates_that_name_nobody_are_the_peers_error(der: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        certificate_name_untrusted(der)
    assert caught.value.reason == "bad-certificate"


@pytest.mark.fuzz
@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_bent_certificate_raises_nothing_else(at: int, value: int, cut: bool) -> None:
    """One byte changed, or the end cut off, anywhere: a name or the peer's error, and nothing else."""
    good = made(common=["alice"], san=[x509.DNSName("phone.example")])
    at %= len(good)
    bent = good[:at] if cut else good[:at] + bytes([value]) + good[at + 1 :]
    try:
        name = certificate_name_untrusted(bent)
    except RemoteProtocolError:
        return
    assert name
    assert name.isprintable()
