"""``opentsm certs``: certificates without another tool."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from opentsm.admin import certificates
from opentsm.admin.certificates import Issued
from opentsm.errors import ConfigError
from opentsm.types import IpAddress

app = typer.Typer(
    help="Make certificates: a development CA, then certificates for servers and clients, all in one folder.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the CA and of what it issues.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="What the CA calls itself.")] = "OpenTSM development CA",
    force: Force = False,
) -> None:
    """Make a certificate authority in DIR. With --force, everything it has issued becomes worthless."""
    authority = _made(lambda: certificates.create_authority(_now(), name=name))
    certificate, key = certificates.write(authority, folder, certificates.AUTHORITY_STEM, force=force)
    _report(
        authority,
        certificate,
        key,
        f"Give clients {certificate}, and keep {key} to yourself.",
        f"Next, a certificate for the server: opentsm certs server {folder} --name HOST --address IP",
    )


@app.command()
def server(
    folder: Folder,
    name: Annotated[list[str] | None, typer.Option(help="DNS name clients use; repeatable.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="IP address clients use; repeatable.")] = None,
    file: Annotated[str, typer.Option(help="Name of the files, without .pem.")] = "server",
    force: Force = False,
) -> None:
    """Make a server certificate for all the names and addresses under which clients reach the server."""
    if not name and not address:
        raise typer.BadParameter("give --name HOST or --address IP, as clients will call the server")
    addresses = [_address(text) for text in address or ()]
    stem = certificates.file_stem(file)
    authority = certificates.load_authority(folder)
    issued = _made(
        lambda: certificates.issue_server(authority, _now(), names=name or (), addresses=addresses)
    )
    certificate, key = certificates.write(issued, folder, stem, force=force)
    _report(
        issued,
        certificate,
        key,
        "In the server's tls-profile:",
        f'  certificate = "{certificate}"',
        f'  key = "{key}"',
        f"A client trusts it by the CA {folder / 'ca.pem'}, or by the pin of this one certificate:",
        f"  {issued.pin}",
    )


@app.command()
def client(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The account's name; the server sees it as the identity.")],
    force: Force = False,
) -> None:
    """Make a client certificate; with it a client needs no password."""
    stem = certificates.file_stem(name)
    authority = certificates.load_authority(folder)
    issued = _made(lambda: certificates.issue_client(authority, _now(), name=name))
    certificate, key = certificates.write(issued, folder, stem, force=force)
    _report(
        issued,
        certificate,
        key,
        f"Take {certificate}, {key} and {folder / 'ca.pem'} to the client, by a way nobody can listen to.",
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _address(text: str) -> IpAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an IP address; names go to --name") from None


def _made(make: Callable[[], Issued]) -> Issued:
    """Names come from the command line, so what is wrong with them is for a person."""
    try:
        return make()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _report(issued: Issued, certificate: Path, key: Path, *words: str) -> None:
    """Say what was made, until when it is good, and what to do with it."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    end = issued.certificate.not_valid_after_utc
    console.print(f"{certificate}  certificate, valid until {end:%Y-%m-%d}")
    console.print(f"{key}  private key (only you can read it)")
    for line in words:
        console.print(line)
