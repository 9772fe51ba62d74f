"""``opentsm passwd``: the file of accounts that the server checks passwords and tokens against."""

from __future__ import annotations

import getpass
import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Annotated

import typer

from opentsm.errors import ConfigError
from opentsm.limits import MAX_PASSWORD
from opentsm.server.auth.edit import delete_account, set_account
from opentsm.server.auth.passwords import hash_password
from opentsm.server.auth.tokens import hash_token, make_token

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def passwd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of accounts; made if missing.")],
    user: Annotated[str, typer.Argument(metavar="USER", help="Name of the account.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the account.")] = False,
    token: Annotated[
        bool, typer.Option("--token", help="Make a random token and show it once (for a token-file).")
    ] = False,
    address: Annotated[
        list[str] | None,
        typer.Option(help="Fixed inner address; one of each family, '' for none. Default: leave as it is."),
    ] = None,
) -> None:
    """Add an account to FILE or change its password, which is asked for, or read from standard input.

    Each line of the file is `name:hash` or `name:hash:key=value,...`; the hash is argon2id (passwords) or
    SHA-256 (tokens). A file holds passwords or tokens, not both. The file is replaced in one step with
    mode 0600, and a running server takes it up at the next attempt.
    """
    if delete and (token or address is not None):
        raise typer.BadParameter("--delete goes with nothing else")
    if delete:
        _delete(file, user)
        return
    attributes = None if address is None else _attributes(address)
    fresh = make_token() if token else None
    secret = hash_token(fresh.encode()) if fresh is not None else _hash(_read_password())
    new = set_account(file, user, secret, attributes)
    typer.echo(f"{file}: {user} {'added' if new else 'changed'}", err=True)
    if fresh is not None:
        typer.echo("The token, which is stored nowhere and not shown again:", err=True)
        typer.echo(fresh)


def _delete(file: Path, user: str) -> None:
    if not delete_account(file, user):
        raise ConfigError(f"there is no account {user!r}", source=str(file))
    typer.echo(f"{file}: {user} removed", err=True)


def _attributes(addresses: list[str]) -> dict[str, str]:
    """Fixed addresses by family; empty texts take away what was there."""
    found: dict[str, str] = {}
    for text in filter(None, addresses):
        try:
            parsed = ip_address(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not an IP address") from None
        key = "address" if isinstance(parsed, IPv4Address) else "address6"
        if key in found:
            raise typer.BadParameter("an account has at most one fixed address of each family")
        found[key] = str(parsed)
    return found


def _read_password() -> bytes:
    """Twice from the terminal, unseen; or the first line of standard input."""
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline(MAX_PASSWORD + 2)
        return line.rstrip(b"\r\n")
    first = getpass.getpass("Password: ")
    if first != getpass.getpass("Once more: "):
        raise ConfigError("the two are not the same; nothing was changed")
    return first.encode()


def _hash(password: bytes) -> str:
    try:
        return hash_password(password)
    except ValueError as error:
        raise ConfigError(str(error)) from None
