"""A development server without any file: certificates, addresses and an echo service made on the spot.

On the loopback addresses it lets anybody in; on any other it makes an account with a random password.
"""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from opentsm.admin import certificates
from opentsm.config import Settings, loads
from opentsm.server.auth.edit import set_account
from opentsm.server.auth.passwords import hash_password
from opentsm.types import IpAddress

PORT: Final = 4443
"""Default port: needs no privilege."""

USER: Final = "dev"
_ECHO: Final = "10.64.0.1"

_TEXT: Final = """\
[server]
admin-socket = "admin.sock"
store = "server.db"

[authentication]
{authentication}

[realm.dev]
core = "userspace"
addresses = ["10.64.0.1/16", "fd00:64::1/64"]
echo = 7

[tls-profile.dev]
certificate = "server.pem"
key = "server.key"

[tscf-port.dev]
address = "{address}"
port = {port}
tls-profile = "dev"

[tscf-address-pool.dev]
ranges = ["10.64.1.0/24", "fd00:64:0:0:1::/96"]

[tscf-interface.dev]
realm = "dev"
ports = ["dev"]
address-pools = ["dev"]
assigned-services = ["SIP", "DDT"]
"""


@dataclass(frozen=True, slots=True)
class Development:
    """A prepared development server.

    Args:
        settings: what to run.
        folder: where its certificates and its admin socket are.
        password: of the account ``dev``; None: anybody is let in.
    """

    settings: Settings
    folder: Path
    password: str | None

    def connect_command(self, host: str, port: int) -> str:
        """The command line of a client for it."""
        where = f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"
        words = ["opentsm", "connect", where, "--ca", str(self.folder / "ca.pem"), "--ping"]
        if self.password is not None:
            words += ["--user", USER, "--password-prompt"]
        return shlex.join(words)

    @property
    def echo(self) -> str:
        """The inner address whose port 7 answers with what it is sent."""
        return _ECHO


def state_folder() -> Path:
    """Where a development server keeps its files (XDG base directories: state)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "opentsm" / "dev"


def prepare(folder: Path, address: IpAddress, port: int = PORT) -> Development:
    """Make what is missing in ``folder``, and the settings.

    Args:
        address: to listen on; a wildcard listens on all of its family.
        port: 0: the system picks one.

    Raises:
        ConfigError: files in the folder cannot be used.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _certify(folder, address)
    password = None
    authentication = "anonymous = true"
    if not address.is_loopback:
        password = secrets.token_urlsafe(12)
        set_account(folder / "passwords", USER, hash_password(password.encode()), None)
        authentication = 'methods = ["password"]\npassword-file = "passwords"'
    text = _TEXT.format(authentication=authentication, address=address, port=port)
    return Development(loads(text, source="(development server)", base=folder), folder, password)


def _certify(folder: Path, address: IpAddress) -> None:
    """A CA that stays, and a fresh server certificate for every start: addresses come and go."""
    now = datetime.now(UTC)
    if not (folder / "ca.pem").exists():
        certificates.write(
            certificates.create_authority(now), folder, certificates.AUTHORITY_STEM, force=True
        )
    authority = certificates.load_authority(folder)
    addresses = {ip_address("127.0.0.1"), ip_address("::1")}
    if not address.is_unspecified:
        addresses.add(address)
    names = sorted({"localhost", os.uname().nodename.lower()})
    issued = certificates.issue_server(authority, now, names=names, addresses=sorted(addresses, key=str))
    certificates.write(issued, folder, "server", force=True)
