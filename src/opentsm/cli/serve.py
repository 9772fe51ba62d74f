"""``opentsm serve``: run a TSM server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from opentsm.config import Settings, load
from opentsm.config.model import LogFormat, LogLevel
from opentsm.engine.addresses import Family
from opentsm.errors import ConfigError
from opentsm.server import Server, development, logs
from opentsm.server.server import check
from opentsm.types import IpAddress

DEFAULT_CONFIGURATION: Final = Path("/etc/opentsm/server.toml")

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help=f"Configuration file. Default: {DEFAULT_CONFIGURATION}"),
    ] = None,
    check_only: Annotated[bool, typer.Option("--check", help="Only check the configuration.")] = False,
    dev: Annotated[
        bool, typer.Option("--dev", help="Run a development server without any file, for trying things out.")
    ] = False,
    address: Annotated[
        str,
        typer.Option(help="With --dev: address to listen on. Not loopback: with a password."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --dev: port number; 0: the system picks one.")
    ] = development.PORT,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Instead of the configuration's log-level.")
    ] = None,
) -> None:
    """Run a TSM server until SIGTERM or Ctrl-C. SIGHUP, or a change of the file, reloads it."""
    if dev:
        if config is not None or check_only:
            raise typer.BadParameter("--dev needs no file and goes with neither CONFIG nor --check")
        _serve_development(_address(address), port, log_level or LogLevel.INFO)
        return
    file = _file(config)
    settings = load(file)
    if check_only:
        check(settings)
        typer.echo(f"{file}: good. {_summary(settings)}")
        return
    logs.configure(log_level or settings.server.log_level, settings.server.log_format)
    run(Server(settings, configuration=file).run(own_process=True))


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run the event loop, the fast one where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def _file(config: Path | None) -> Path:
    if config is not None:
        return config
    if DEFAULT_CONFIGURATION.exists():
        return DEFAULT_CONFIGURATION
    raise ConfigError(
        f"no configuration file was given, and there is no {DEFAULT_CONFIGURATION}",
        hint="`opentsm serve FILE`, or `opentsm serve --dev` to try it without one",
    )


def _address(text: str) -> IpAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an IP address") from None


def _summary(settings: Settings) -> str:
    interfaces = ", ".join(
        f"{one.name} ({', '.join(f'{p.address} port {p.port}' for p in one.ports)})"
        for one in settings.interfaces.values()
    )
    ranges = [one for pool in settings.address_pools.values() for one in pool.ranges]
    ipv4 = sum(one.size for one in ranges if one.family is Family.IPV4)
    return f"Interfaces: {interfaces}. Inner IPv4 addresses to lease: {ipv4}."


def _serve_development(address: IpAddress, port: int, level: LogLevel) -> None:
    prepared = development.prepare(development.state_folder(), address, port)
    logs.configure(level, LogFormat.TEXT)
    run(_announce_and_run(prepared, address))


async def _announce_and_run(prepared: development.Development, address: IpAddress) -> None:
    server = Server(prepared.settings)
    await server.run(on_start=lambda: _announce(prepared, address, server.port()))


def _announce(prepared: development.Development, address: IpAddress, port: int) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    host = "127.0.0.1" if address.is_unspecified and address.version == 4 else str(address)
    host = "::1" if address.is_unspecified and address.version == 6 else host
    console.print(f"A development server is running: TLS and DTLS on {address} port {port}.")
    if prepared.password is not None:
        console.print(f"Account: {development.USER}    password: {prepared.password}")
    console.print(f"UDP port 7 of {prepared.echo} (inside the tunnel) answers with what it is sent.")
    console.print("Try, in another terminal:")
    console.print(f"    {prepared.connect_command(host, port)}")
    console.print(f"    opentsm status --socket {prepared.folder / 'admin.sock'}")
    console.print("Ctrl-C ends it.")
