"""``opentsm call-test``: speech to the server's echo on each path, and what a caller would hear of it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from opentsm.cli.groups import grouped
from opentsm.cli.softphone import (
    Json,
    Playout,
    TunnelOptions,
    Wav,
    duration,
    host_port,
    load_voice,
    playout_seconds,
    print_json,
)
from opentsm.client.phone.calltest import ECHO_PORT, PathVerdict, run_call_test
from opentsm.client.testcall import echo_address
from opentsm.client.tunnel import connect
from opentsm.types import Path

app = typer.Typer(help="Test the line to a server, on each path.")


@app.command()
@grouped
def call_test(
    servers: Annotated[list[str], typer.Argument(metavar="URL...", help="tls://HOST:PORT, tried in order.")],
    tunnel: TunnelOptions,
    echo: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Inner echo service; default: the server's own.")
    ] = None,
    seconds: Annotated[str, typer.Option(help="How long each path is tested.")] = "8s",
    playout: Playout = "60ms",
    wav: Wav = None,
    as_json: Json = False,
) -> None:
    """Send speech to the server's echo by the stream, then by the datagram tunnel, and judge both."""
    wanted = None if echo is None else host_port(echo, ECHO_PORT, "--echo")
    samples, length = load_voice(wav), duration(seconds, "--seconds") or 8.0
    options = tunnel.arguments(servers)
    verdicts = asyncio.run(_run(servers, options, wanted, samples, length, playout_seconds(playout)))
    if as_json:
        print_json({"event": "call-test", "paths": [verdict.as_dict() for verdict in verdicts]})
    else:
        _print(verdicts)
    if all(verdict.mos is None for verdict in verdicts):
        raise typer.Exit(1)


async def _run(
    servers: list[str],
    options: dict[str, Any],
    echo: Any,
    samples: Any,
    seconds: float,
    playout: float | None,
) -> list[PathVerdict]:
    async with connect(servers, **options) as tunnel:
        target = echo or echo_address(tunnel)
        offered = tunnel.ddt_available is not False
        paths = (Path.STREAM, Path.DATAGRAM) if offered else (Path.STREAM,)
        verdicts = await run_call_test(tunnel, target, samples, seconds=seconds, playout=playout, paths=paths)
    if not offered:
        verdicts.append(PathVerdict("datagram", note="the server does not offer DDT"))
    return verdicts


def _print(verdicts: list[PathVerdict]) -> None:
    table = Table("path", "verdict", "MOS", "lost", "late", "round trip", "95 %", "jitter")
    for verdict in verdicts:
        table.add_row(*_row(verdict))
    console = Console(highlight=False)
    console.print(table)
    for verdict in verdicts:
        if verdict.note:
            console.print(f"{verdict.path}: {verdict.note}", soft_wrap=True)
    heard = [verdict for verdict in verdicts if verdict.mos is not None]
    if len(heard) == 2:
        better = max(heard, key=lambda verdict: verdict.mos or 0.0)
        console.print(f"Better for calls here: {better.path}.")


def _row(verdict: PathVerdict) -> tuple[str, ...]:
    if verdict.mos is None:
        return (verdict.path, verdict.word, *["-"] * 6)
    return (
        verdict.path,
        verdict.word,
        f"{verdict.mos:.2f}",
        f"{verdict.lost_percent:.1f} %",
        f"{verdict.late_percent:.1f} %",
        f"{verdict.round_trip_ms:.1f} ms",
        f"{verdict.round_trip_p95_ms:.1f} ms",
        f"{verdict.jitter_ms:.1f} ms",
    )
