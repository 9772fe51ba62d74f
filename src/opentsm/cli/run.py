"""``opentsm run``: one unmodified program whose only way out is a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Annotated

import typer

from opentsm.cli import reaching
from opentsm.client.address import parse_servers
from opentsm.client.keeper import Keeper
from opentsm.client.run import Reach, run
from opentsm.client.tun import DEFAULT_NAME, check_name
from opentsm.config.model import LogFormat, LogLevel
from opentsm.errors import ConfigError
from opentsm.server import logs

app = typer.Typer(help="Run one program whose only way out is a tunnel.")


@app.command()
def main(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL...] -- PROGRAM [ARGUMENT...]",
            help=f"Servers (tls://HOST:PORT; default: ${reaching.SERVER_VARIABLE}), and what to run.",
        ),
    ],
    user: reaching.User = None,
    password_file: reaching.PasswordFile = None,
    password_prompt: reaching.PasswordPrompt = False,
    ca: reaching.Ca = None,
    pin: reaching.Pin = None,
    insecure: reaching.Insecure = False,
    certificate: reaching.Certificate = None,
    proxy: reaching.ProxyOption = None,
    family: reaching.Family = "both",
    ddt: reaching.Ddt = True,
    auto: reaching.Auto = False,
    media_ports: reaching.MediaPorts = None,
    media_ef: reaching.MediaEf = False,
    redundancy: reaching.RedundancyOption = "auto",
    congestion_control: reaching.CongestionControl = None,
    pcap: reaching.Pcap = None,
    coding: reaching.CodingOption = "auto",
    name: Annotated[str, typer.Option(help="Name of the device, inside.")] = DEFAULT_NAME,
    dns: Annotated[bool, typer.Option("--dns/--no-dns", help="Use the name servers inside.")] = True,
    log_level: Annotated[LogLevel, typer.Option(help="Least severe line written.")] = LogLevel.WARNING,
) -> None:
    """Run PROGRAM in a network of its own, which has a tunnel and nothing else. The exit code is PROGRAM's.

    No root is needed where the kernel has user namespaces. Options of PROGRAM come after `--`.
    """
    servers, program = split(words, os.environ.get(reaching.SERVER_VARIABLE))
    how = reaching.reach(
        servers,
        user=user,
        password_file=password_file,
        password_prompt=password_prompt,
        ca=ca,
        pin=pin,
        insecure=insecure,
        certificate=certificate,
        proxy=proxy,
        family=family,
        ddt=ddt,
        auto=auto,
        pcap=pcap,
        coding=coding,
        media_ports=media_ports,
        media_ef=media_ef,
        redundancy=redundancy,
        congestion_control=congestion_control,
    )
    parse_servers(servers)  # a mistake is told before anything is made
    logs.configure(log_level, LogFormat.TEXT)
    raise typer.Exit(_run(how, program, check_name(name), dns))


def split(words: list[str], default: str | None) -> tuple[list[str], list[str]]:
    """Servers, and the program with its arguments.

    Args:
        words: the command line's; the servers are those in front that look like an address.
        default: servers to use when none is given, separated by spaces.

    Raises:
        ConfigError: one of the two is missing.
    """
    count = next((i for i, word in enumerate(words) if "://" not in word), len(words))
    servers, program = words[:count], words[count:]
    if not program:
        raise ConfigError("no program to run", hint="opentsm run tls://HOST:443 -- PROGRAM")
    servers = servers or (default or "").split()
    if not servers:
        raise ConfigError(
            f"no server: {program[0]!r} is taken for the program",
            hint=f"opentsm run tls://HOST:443 -- PROGRAM, or set {reaching.SERVER_VARIABLE}",
        )
    return servers, program


def _run(how: Reach, program: list[str], name: str, dns: bool) -> int:
    keeper = Keeper.start(program, name=name)  # first: it forks, and there are no threads yet
    with contextlib.closing(keeper):
        return asyncio.run(run(how, keeper, dns=dns))
