"""TLS profiles: files to profiles of the user plane, made anew only when their content has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from opentsm.config.model import TlsProfile
from opentsm.errors import ConfigError
from opentsm.userplane import Plane


@dataclass(frozen=True, slots=True)
class Material:
    """What a profile's files hold."""

    profile: TlsProfile
    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime

    @property
    def fingerprint(self) -> bytes:
        settings = f"{self.profile.client_auth.value} {self.profile.tls12}".encode()
        parts = (self.chain, self.key, self.client_ca or b"", settings)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def read_material(profile: TlsProfile) -> Material:
    """Read the files of a profile.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    chain = _read(profile.certificate)
    leaf = _leaf(chain, profile.certificate)
    key = _read(profile.key)
    if _public(key, profile.key) != leaf.public_key().public_bytes(*_PUBLIC):
        text = f"this is not the key of {profile.certificate}"
        raise ConfigError(text, source=str(profile.key), hint="name the certificate's own key")
    client_ca = None
    if profile.client_ca is not None:
        client_ca = _read(profile.client_ca)
        _leaf(client_ca, profile.client_ca)
    return Material(profile, chain, key, client_ca, leaf.not_valid_after_utc)


_PUBLIC: Final = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _leaf(pem: bytes, path: Path) -> x509.Certificate:
    """The first certificate of a file."""
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError):
        hint = "make one with `opentsm certs`"
        raise ConfigError("there is no PEM certificate in it", source=str(path), hint=hint) from None


def _public(pem: bytes, path: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        hint = "`openssl pkey` takes the password away"
        raise ConfigError("the key is protected by a password", source=str(path), hint=hint) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("there is no PEM private key in it", source=str(path)) from None
    return key.public_key().public_bytes(*_PUBLIC)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from None


class TlsStore:
    """The profiles of a server by name.

    The user plane keeps a profile for ever, so one is made only for content it has not seen.
    """

    def __init__(self, plane: Plane) -> None:
        self.expiry: dict[str, datetime] = {}
        self._plane = plane
        self._by_fingerprint: dict[bytes, int] = {}
        self._by_name: dict[str, int] = {}

    def load(self, materials: Iterable[Material]) -> None:
        """Take over what the files hold now: all of it or, when something is wrong, nothing.

        Raises:
            ConfigError: a certificate, key or CA cannot be used.
        """
        held = list(materials)
        ids = {material.profile.name: self._made(material) for material in held}
        self._by_name = ids
        self.expiry = {material.profile.name: material.expires for material in held}

    def profile(self, profile: TlsProfile) -> int:
        """The user plane's id of a loaded profile."""
        return self._by_name[profile.name]

    def _made(self, material: Material) -> int:
        known = self._by_fingerprint.get(material.fingerprint)
        if known is not None:
            return known
        profile = material.profile
        try:
            made = self._plane.core.server_tls(
                chain_pem=material.chain,
                key_pem=material.key,
                client_ca_pem=material.client_ca,
                client_auth=profile.client_auth.value,
                tls12=profile.tls12,
            )
        except ValueError as error:
            text = f"tls-profile {profile.name} cannot be used: {error}"
            raise ConfigError(text, source=str(profile.certificate)) from None
        self._by_fingerprint[material.fingerprint] = made
        return made
