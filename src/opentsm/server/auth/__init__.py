"""Who is this client? Ways to find out, one interface for all of them.

Reading order: ``model`` (what goes in and comes out), ``chain`` (how ways are put together), then any of
``passwords``, ``certificates``, ``tokens``, ``plugins``; ``assembly`` builds what a configuration asks for.
"""

from __future__ import annotations

from .assembly import make_authenticator
from .certificates import ClientCertificate
from .chain import Anonymous, Chain, Limited
from .model import AuthenticationFailed, Authenticator, Credentials, Identity
from .passwords import PasswordFile
from .plugins import load_authenticator
from .tokens import TokenFile

__all__ = [
    "Anonymous",
    "AuthenticationFailed",
    "Authenticator",
    "Chain",
    "ClientCertificate",
    "Credentials",
    "Identity",
    "Limited",
    "PasswordFile",
    "TokenFile",
    "load_authenticator",
    "make_authenticator",
]
