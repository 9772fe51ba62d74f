"""The embedded SBC: registrar, record-routing proxy and media rules for calls between tunnelled clients.

Reading order: ``message`` and ``headers`` (text to values), ``transactions`` (who repeats what), ``routing``
(where to), ``proxy`` and ``forking`` (there and back), ``registrar`` and ``location`` (who is where),
``sdp``, ``media``, ``callcontrol`` (what it means for calls), ``core`` (all of it, without I/O), ``service``
(with).
"""

from __future__ import annotations

from .parties import ANY_USER, Client, IdentityOf
from .service import SbcService, Tunnels
from .settings import CoreSide, SbcSettings, Trunk
from .users import Credentials, Users, account_line

__all__ = [
    "ANY_USER",
    "Client",
    "CoreSide",
    "Credentials",
    "IdentityOf",
    "SbcService",
    "SbcSettings",
    "Trunk",
    "Tunnels",
    "Users",
    "account_line",
]
