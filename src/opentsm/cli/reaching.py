"""Options by which ``opentsm up`` and ``opentsm run`` reach a server: those of ``opentsm connect``."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import typer

from opentsm.client.run import Reach
from opentsm.errors import ConfigError
from opentsm.types import PathMode, Service

User = Annotated[str | None, typer.Option(envvar="OPENTSM_USER", help="User name.")]
PasswordFile = Annotated[
    FilePath | None, typer.Option(envvar="OPENTSM_PASSWORD_FILE", help="File with the password.")
]
PasswordPrompt = Annotated[bool, typer.Option("--password-prompt", help="Ask for the password.")]
Ca = Annotated[FilePath | None, typer.Option(envvar="OPENTSM_CA", help="Authorities to trust (PEM).")]
Pin = Annotated[
    str | None, typer.Option(envvar="OPENTSM_PIN", help="SHA-256 of the only certificate to accept.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept any certificate. For tests.")]
Certificate = Annotated[FilePath | None, typer.Option(help="Client certificate and key (PEM).")]
ProxyOption = Annotated[str | None, typer.Option(help="http://HOST:PORT or socks5://HOST:PORT.")]
Family = Annotated[str, typer.Option(help="Inner addresses: ipv4, ipv6 or both.")]
Ddt = Annotated[
    bool,
    typer.Option("--ddt/--no-ddt", help="Media that is seen moves to the datagram tunnel by itself."),
]
Auto = Annotated[bool, typer.Option("--auto", help="Media takes the better path, by loss, delay and jitter.")]
Pcap = Annotated[FilePath | None, typer.Option(help="Write inner packets to this file.")]

SERVER_VARIABLE: Final = "OPENTSM_SERVER"


def reach(
    servers: list[str],
    *,
    user: str | None,
    password_file: FilePath | None,
    password_prompt: bool,
    ca: FilePath | None,
    pin: str | None,
    insecure: bool,
    certificate: FilePath | None,
    proxy: str | None,
    family: str,
    ddt: bool,
    auto: bool,
    pcap: FilePath | None,
) -> Reach:
    """The options as arguments of ``connect``.

    Raises:
        ConfigError: a file cannot be read.
    """
    options: dict[str, Any] = {
        "username": user,
        "password": _password(password_file, password_prompt),
        "ca": ca,
        "pin_sha256": pin,
        "verify": not insecure and (pin is None or ca is not None),
        "client_cert": certificate,
        "proxy": proxy,
        "families": family,
        "services": [Service.DDT] if ddt else [],
        "pcap": pcap,
    }
    media = PathMode.STREAM if not ddt else PathMode.AUTO if auto else PathMode.DATAGRAM
    return Reach(tuple(servers), options, media)


def _password(file: FilePath | None, prompt: bool) -> str | None:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read the password file {file}: {error.strerror}") from error
    return str(typer.prompt("Password", hide_input=True)) if prompt else None
