"""Client certificates: who the certificate is for.

The TLS layer has verified the chain against the interface's CA and the key against the certificate before
any of this runs. What is left is the name. It comes from the Subject Alternative Name (e-mail, then DNS,
then URI: the first there is), and from the Common Name only where there is none of these (RFC 6125
section 6.4.4 gives names in this order of trust).
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from opentsm.errors import RemoteProtocolError

from .account_file import check_name
from .model import NOT_OFFERED, Credentials, Identity, denied

MAX_CERTIFICATE: Final = 64 * 1024
"""Bytes of one DER certificate that we look into; honest ones have one or two KiB."""

_SAN_ORDER: Final = (x509.RFC822Name, x509.DNSName, x509.UniformResourceIdentifier)


class ClientCertificate:
    """The verified TLS client certificate as proof of identity.

    A user name sent along must be the certificate's: one client cannot speak in another's name.
    """

    method: Final = "certificate"

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``."""
        if credentials.certificate is None:
            raise denied(NOT_OFFERED)
        try:
            name = certificate_name_untrusted(credentials.certificate)
        except RemoteProtocolError:
            raise denied("bad-certificate") from None
        if credentials.username and credentials.username != name:
            raise denied("name-mismatch")
        return Identity(name=name, method=self.method)


def certificate_name_untrusted(der: bytes) -> str:
    """Whom a certificate names.

    Args:
        der: the certificate, its chain already verified.

    Raises:
        RemoteProtocolError: it cannot be read, is not for clients, or names nobody.
    """
    if len(der) > MAX_CERTIFICATE:
        raise RemoteProtocolError("bad-certificate", "too large")
    # cryptography parses lazily, and what it raises on odd DER differs by field: all of it is news
    # about the peer.
    try:
        certificate = x509.load_der_x509_certificate(der)
        usable, names = _for_clients(certificate), _names(certificate)
    except Exception as error:
        raise RemoteProtocolError("bad-certificate", type(error).__name__) from error
    if not usable:
        raise RemoteProtocolError("bad-certificate", "not meant for clients")
    if not names or check_name(names[0]) is not None:
        raise RemoteProtocolError("bad-certificate", "names nobody")
    return names[0]


def _for_clients(certificate: x509.Certificate) -> bool:
    """Whether its extended key usage, where there is one, allows TLS clients (RFC 5280 section 4.2.1.12)."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _names(certificate: x509.Certificate) -> list[str]:
    """Names in the order in which they count."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [str(name) for kind in _SAN_ORDER for name in san.get_values_for_type(kind)]
    except x509.ExtensionNotFound:
        found = []
    return found or [
        str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
