"""What ``opentsm call``, ``answer`` and ``call-test`` share: options, a phone on a tunnel, a live line."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opentsm.client.phone.call import Call
from opentsm.client.phone.core import TRANSPORTS, Account
from opentsm.client.phone.message import SIP_PORT
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.playout import parse_playout
from opentsm.client.phone.report import CallReport
from opentsm.client.phone.wav import read_wav, write_wav
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import ConfigError
from opentsm.types import PathMode, SocketAddress

REFRESH: Final = 0.5
"""Seconds between two looks at a call."""

KEYS: Final = {"s": PathMode.STREAM, "d": PathMode.DATAGRAM, "a": PathMode.AUTO}

Server = Annotated[
    list[str],
    typer.Option("--server", envvar="OPENTSM_SERVER", help="tls://HOST:PORT; repeatable, in order."),
]
Playout = Annotated[str, typer.Option(help="Play-out buffer: 60ms, 0.1s, or adaptive.")]
Wav = Annotated[FilePath | None, typer.Option(help="WAV file to say; default: a built-in voice.")]
Record = Annotated[FilePath | None, typer.Option(help="Write what is heard to this WAV file.")]
Mode = Annotated[str, typer.Option(help="Media switch at the beginning: stream, datagram or auto.")]
Json = Annotated[bool, typer.Option("--json", help="A JSON object instead of tables.")]
SipUser = Annotated[str | None, typer.Option(help="User at the SIP server; default: the tunnel's user.")]
SipPasswordFile = Annotated[
    FilePath | None, typer.Option(help="File with the SIP password; default: the tunnel's password.")
]
SipServer = Annotated[str | None, typer.Option(help="HOST:PORT inside; default: what the TSM server names.")]
Domain = Annotated[str | None, typer.Option(help="SIP domain; default: the SIP server's address.")]
Direct = Annotated[
    bool, typer.Option("--direct", help="No SIP server: calls go straight to inner addresses.")
]


SipTransport = Annotated[
    str, typer.Option("--transport", help="What SIP goes by inside: udp (large requests by tcp), or tcp.")
]


@dataclass(frozen=True, slots=True)
class SipOptions:
    """What the command line says about SIP; None: to be found out from the tunnel."""

    user: str | None
    password: str | None
    server: str | None
    domain: str | None
    direct: bool
    transport: str = "udp"


def sip_options(
    tunnel_options: dict[str, Any],
    *,
    user: str | None,
    password_file: FilePath | None,
    server: str | None,
    domain: str | None,
    direct: bool,
    transport: str,
) -> SipOptions:
    """The SIP account, which is that of the tunnel unless said otherwise."""
    if transport not in TRANSPORTS:
        raise typer.BadParameter("udp or tcp", param_hint="--transport")
    password = tunnel_options.get("password")
    if password_file is not None:
        password = _read(password_file).decode(errors="replace").rstrip("\r\n")
    name = user or tunnel_options.get("username")
    if name is None:
        raise ConfigError("no SIP user", hint="give --user NAME, or --sip-user NAME")
    return SipOptions(name, password, server, domain, direct, transport)


@asynccontextmanager
async def open_phone(
    servers: list[str], tunnel_options: dict[str, Any], sip: SipOptions
) -> AsyncIterator[tuple[Tunnel, Phone]]:
    """A tunnel, and a phone on it that is registered (unless calls go directly)."""
    async with connect(servers, **tunnel_options) as tunnel:
        server = None if sip.direct else _sip_server(tunnel, sip.server)
        host = str(tunnel.inner_address) if server is None else server[0]
        account = Account(sip.user or "", sip.domain or host, sip.password)
        async with Phone(tunnel, account, server=server, transport=sip.transport) as phone:
            if server is not None:
                await phone.register()
            yield tunnel, phone


@contextmanager
def ctrl_c(over: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command in good order."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, over.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


# -- values ------------------------------------------------------------------------------------------------


def parse_mode(text: str, *, ddt: bool = False) -> PathMode:
    if text.upper() not in PathMode.__members__:
        raise typer.BadParameter("stream, datagram or auto", param_hint="--mode")
    return PathMode.DATAGRAM if ddt else PathMode[text.upper()]


def playout_seconds(text: str) -> float | None:
    try:
        return parse_playout(text)
    except ValueError:
        raise typer.BadParameter("60ms, 0.1s or adaptive, up to 2 s", param_hint="--playout") from None


def duration(text: str | None, option: str) -> float | None:
    """``5``, ``5s``, ``500ms`` or ``2m`` in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)?", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r}: write 5s, 500ms or 2m", param_hint=option)
    return float(match.group(1)) * {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}[match.group(2)]


def load_wav(file: FilePath) -> array[int]:
    return read_wav(_read(file), str(file))


def save_wav(file: FilePath, samples: array[int]) -> None:
    try:
        file.write_bytes(write_wav(samples))
    except OSError as error:
        raise ConfigError(f"cannot write the recording to {file}: {error.strerror}") from error


def host_port(text: str, port: int, option: str) -> SocketAddress:
    """``HOST``, ``HOST:PORT`` or ``[HOST]:PORT``."""
    match = re.fullmatch(r"\[([^]]+)\](?::([0-9]{1,5}))?|([^:]+)(?::([0-9]{1,5}))?", text)
    if match is None:
        raise ConfigError(f"{text!r} is no address for {option}", hint="write HOST:PORT, as 10.64.0.1:5060")
    return match.group(1) or match.group(3), int(match.group(2) or match.group(4) or port)


def _sip_server(tunnel: Tunnel, wanted: str | None) -> SocketAddress:
    if wanted is not None:
        return host_port(wanted, SIP_PORT, "--sip-server")
    named = tunnel.configuration.lease.sip_server
    if named is None:
        raise ConfigError(
            "the TSM server names no SIP server",
            hint="give --sip-server HOST:PORT, or --direct to call inner addresses",
        )
    return str(named[0]), named[1]


def _read(file: FilePath) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


# -- what is shown -----------------------------------------------------------------------------------------


async def show(call: Call, over: asyncio.Event, *, quiet: bool) -> None:
    """The live line, with keys, until the call ends or ``over`` is set; off a terminal just the waiting."""
    console = Console(stderr=True, highlight=False)
    ended = asyncio.ensure_future(call.ended())  # noqa: TID251  # waited for right here, whatever happens
    stop = asyncio.ensure_future(over.wait())  # noqa: TID251
    try:
        if quiet or not console.is_terminal:
            await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
            return
        with keys(lambda key: _on_key(call, over, key)), Live(console=console, transient=True) as live:
            while not (ended.done() or stop.done()):
                live.update(Text(live_line(call)))
                await asyncio.wait((ended, stop), timeout=REFRESH, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        stop.cancel()


def live_line(call: Call) -> str:
    """One call in one line."""
    if not call.is_up:
        return f"{call.peer}: {'ringing' if call.ringing else 'calling'} ...   keys: q hang up"
    report = call.report()
    parts = [
        f"{call.peer} {int(call.seconds) // 60}:{int(call.seconds) % 60:02d}",
        f"on {call.path.name.lower()}",
        "ON HOLD" if call.on_hold else "",
        f"lost {report.lost_percent:.1f} %",
        f"late {report.late_percent:.1f} %",
        f"jitter {report.jitter_ms:.1f} ms",
        f"round trip {_ms(report.round_trip_ms)}",
        f"MOS {report.mos:.2f}" if report.mos is not None else "nothing heard yet",
    ]
    return " | ".join(filter(None, parts)) + "   keys: s stream, d datagram, a auto, 0-9*# dial, q hang up"


def call_table(report: CallReport, end: str) -> Table:
    table = Table(title=end, show_header=False)
    rows = {
        "peer": report.peer,
        "length": f"{report.seconds:.1f} s",
        "sent": f"{report.sent} packets ({_by_path(report.sent_by)})",
        "received": f"{report.received} packets ({_by_path(report.received_by)})",
        "lost": f"{report.lost_percent:.2f} %",
        "late": f"{report.late_percent:.2f} % (play-out buffer {report.playout_ms:.0f} ms)",
        "jitter": _ms(report.jitter_ms),
        "round trip": _ms(report.round_trip_ms),
        "MOS": "-" if report.mos is None else f"{report.mos:.2f}",
    }
    if report.keys:
        rows["keys heard"] = report.keys
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def summary(call: Call, *, as_json: bool, console: Console | None = None) -> None:
    """The call's end, for people or for programs."""
    report = call.report()
    if as_json:
        print_json({"event": "call", **report.as_dict(), "changes": _changes(call)})
        return
    end = f"{'call from' if call.incoming else 'call to'} {call.peer}: {report.end_reason or 'over'}"
    (console or Console(highlight=False)).print(call_table(report, end))


def print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, separators=(",", ":")), flush=True)


@contextmanager
def keys(handler: Callable[[str], None]) -> Iterator[None]:
    """Single keys, without Enter, where there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # not there on every system; only a terminal needs it
    import tty

    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, lambda: handler(sys.stdin.read(1).lower()))
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _on_key(call: Call, over: asyncio.Event, key: str) -> None:
    if key in ("q", ""):
        over.set()
    elif key in KEYS:
        call.set_mode(KEYS[key])
    elif call.is_up:
        with suppress(ValueError):  # not a key of a phone either
            call.dial(key)


def _changes(call: Call) -> list[dict[str, Any]]:
    first = call.changes[0].at if call.changes else 0.0
    return [{"at": round(change.at - first, 3), "what": change.what} for change in call.changes]


def _by_path(counts: Any) -> str:
    return ", ".join(f"{count} by {path}" for path, count in counts.items()) or "none"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
