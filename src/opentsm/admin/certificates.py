"""A small certificate authority for development, laboratories and single servers.

ECDSA P-256 throughout: every TLS stack has it and its handshakes are cheap. The files of one folder:

    ca.pem  ca.key                   the authority; servers and clients are given ca.pem, nobody ca.key
    server.pem  server.key           the server's chain (its certificate, then the authority's) and its key
    NAME.pem  NAME.key               a client's
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from opentsm.errors import ConfigError
from opentsm.types import IpAddress

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
"""Longer than the installations it is for; replacing it means touching every client."""

LEAF_LIFETIME: Final = timedelta(days=397)
"""The most that common TLS clients take for a server, a year and a month."""

BACKDATE: Final = timedelta(hours=1)
"""Certificates begin this much before now, for clients whose clocks are behind."""

AUTHORITY_STEM: Final = "ca"
MAX_COMMON_NAME: Final = 64
"""Characters of a Common Name (RFC 5280 appendix A: ub-common-name)."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key.

    Args:
        certificate: the certificate itself.
        key: its private key.
        issuers: the certificates above it that belong in its file, nearest first.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def chain_pem(self) -> bytes:
        """The certificate and its issuers, as a TLS server presents them."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (self.certificate, *self.issuers))

    @property
    def key_pem(self) -> bytes:
        """The key in unencrypted PKCS #8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def pin(self) -> str:
        """SHA-256 of the certificate's DER in hexadecimal: what a client may pin instead of a CA."""
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def create_authority(now: datetime, *, name: str = "OpenTSM development CA") -> Issued:
    """A new authority that signs leaves only (path length 0).

    Args:
        now: the time, with its zone.
        name: its Common Name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(key, name, name, now, AUTHORITY_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return Issued(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    authority: Issued, now: datetime, *, names: Sequence[str], addresses: Sequence[IpAddress] = ()
) -> Issued:
    """A certificate for a TSM server.

    Args:
        authority: who signs.
        now: the time, with its zone.
        names: DNS names under which clients reach it.
        addresses: IP addresses under which clients reach it.

    Raises:
        ValueError: neither a name nor an address, or one that cannot stand in a certificate.
    """
    san = [*(x509.DNSName(name) for name in names), *(x509.IPAddress(address) for address in addresses)]
    if not san:
        raise ValueError("a server certificate needs a name or an address")
    # Clients read the alternative names only; a long DNS name need not fit where nobody looks.
    common = next((n for n in [*names, *map(str, addresses)] if len(n) <= MAX_COMMON_NAME), "OpenTSM server")
    return _issue_leaf(authority, now, common, san, ExtendedKeyUsageOID.SERVER_AUTH)


def issue_client(authority: Issued, now: datetime, *, name: str) -> Issued:
    """A certificate for a client; its name is the Common Name, and the account on the server.

    Raises:
        ValueError: the name cannot stand in a certificate.
    """
    return _issue_leaf(authority, now, name, [], ExtendedKeyUsageOID.CLIENT_AUTH)


def _issue_leaf(
    authority: Issued,
    now: datetime,
    common: str,
    san: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    end = min(LEAF_LIFETIME, issuer.not_valid_after_utc - now)
    if end <= timedelta(0):
        raise ValueError("the authority has expired; make a new one with `opentsm certs init --force`")
    builder = _builder(key, common, issuer.subject, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer_key, critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return Issued(builder.sign(authority.key, hashes.SHA256()), key, (issuer,))


def _builder(
    key: ec.EllipticCurvePrivateKey, common: str, issuer: str | x509.Name, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    subject = _name(common)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_name(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    if not common.strip() or len(common) > MAX_COMMON_NAME or not common.isprintable():
        raise ValueError(
            f"{common!r} cannot be the name in a certificate: 1 to {MAX_COMMON_NAME} visible characters"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# -- files ----------------------------------------------------------------------------------------------


def file_stem(name: str) -> str:
    """The name of the files for somebody.

    Raises:
        ConfigError: it would be hidden, lie in another folder, or be the authority's own.
    """
    if not name or name.startswith(".") or "/" in name or not name.isprintable() or name == AUTHORITY_STEM:
        raise ConfigError(
            f"{name!r} cannot be the name of a file here", hint="use letters, digits, - . _ @, and not `ca`"
        )
    return name


def write(issued: Issued, folder: Path, stem: str, *, force: bool = False) -> tuple[Path, Path]:
    """Write ``STEM.pem`` and ``STEM.key`` (the key with mode 0600), the key first.

    Returns:
        The two paths.

    Raises:
        ConfigError: one of them exists and ``force`` was not given.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    for path in (certificate, key):
        if path.exists() and not force:
            raise ConfigError("this file exists already", source=str(path), hint="--force replaces it")
    _write_file(key, issued.key_pem, 0o600)
    _write_file(certificate, issued.chain_pem, 0o644)
    return certificate, key


def _write_file(path: Path, content: bytes, mode: int) -> None:
    """Write beside and move over, so that no reader ever sees half a file or a key with open rights."""
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def load_authority(folder: Path) -> Issued:
    """The authority of a folder.

    Raises:
        ConfigError: there is none, or its files cannot be used.
    """
    certificate, key = folder / f"{AUTHORITY_STEM}.pem", folder / f"{AUTHORITY_STEM}.key"
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
    except FileNotFoundError as error:
        hint = f"make one with `opentsm certs init {folder}`"
        raise ConfigError("there is no authority here", source=str(error.filename), hint=hint) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the authority cannot be read: {error}", source=str(folder)) from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != parsed.public_key():
        raise ConfigError("ca.key is not the key of ca.pem", source=str(folder))
    return Issued(parsed, loaded)
