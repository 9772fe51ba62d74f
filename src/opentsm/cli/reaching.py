"""Options by which ``opentsm up`` and ``opentsm run`` reach a server: those of ``opentsm connect``."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import typer

from opentsm.client.hostmedia import MediaOptions
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
MediaPorts = Annotated[
    list[str] | None,
    typer.Option(metavar="FIRST-LAST", help="These ports of programs here carry media and nothing else."),
]
MediaEf = Annotated[bool, typer.Option("--media-ef", help="What programs mark as voice (DSCP EF) is media.")]
CodingOption = Annotated[
    str,
    typer.Option(
        "--coding",
        help="On the datagram tunnel: auto (by loss), off, or 0 to 2 earlier frames with each; no-fec and "
        "no-compression after commas.",
    ),
]
RedundancyOption = Annotated[
    str,
    typer.Option(
        "--redundancy",
        help="Media on several streams: fan-out:N, load-balance:N, off, or auto (while UDP is blocked and "
        "the stream late).",
    ),
]
CongestionControl = Annotated[
    str | None, typer.Option(help="Of the streams: bbr, cubic, ...; default: the kernel's.")
]
Pcap = Annotated[FilePath | None, typer.Option(help="Write inner packets to this file.")]

SERVER_VARIABLE: Final = "OPENTSM_SERVER"

MAX_PORT_RANGES: Final = 16
"""As in the user plane, which looks at each of them for each packet."""


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
    coding: str = "auto",
    media_ports: list[str] | None = None,
    media_ef: bool = False,
    redundancy: str = "auto",
    congestion_control: str | None = None,
) -> Reach:
    """The options as arguments of ``connect``.

    Raises:
        ConfigError: a file cannot be read, or a range of ports is none.
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
        "coding": coding,
        "redundancy": redundancy,
        "congestion_control": congestion_control,
    }
    mode = PathMode.STREAM if not ddt else PathMode.AUTO if auto else PathMode.DATAGRAM
    return Reach(tuple(servers), options, MediaOptions(mode, parse_ports(media_ports or []), media_ef))


def parse_ports(texts: list[str]) -> tuple[tuple[int, int], ...]:
    """Ranges of ports as people write them: ``10000-20000``, or one port.

    Raises:
        ConfigError: it is none, or there are too many.
    """
    ranges: list[tuple[int, int]] = []
    for text in texts:
        low, dash, high = text.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            first = last = 0
        if not 1 <= first <= last <= 65535:
            raise ConfigError(f"--media-ports {text}: not a range of ports", hint="write it like 10000-20000")
        ranges.append((first, last))
    if len(ranges) > MAX_PORT_RANGES:
        raise ConfigError(f"more than {MAX_PORT_RANGES} times --media-ports", hint="join ranges")
    return tuple(ranges)


def _password(file: FilePath | None, prompt: bool) -> str | None:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read the password file {file}: {error.strerror}") from error
    return str(typer.prompt("Password", hide_input=True)) if prompt else None
