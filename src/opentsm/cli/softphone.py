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
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opentsm.cli import reaching
from opentsm.client.phone.call import Call, CallSettings
from opentsm.client.phone.codecs import G711
from opentsm.client.phone.core import TRANSPORTS, Account
from opentsm.client.phone.message import SIP_PORT
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.playout import parse_playout
from opentsm.client.phone.report import CallReport
from opentsm.client.phone.speech import speech
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
Json = Annotated[bool, typer.Option("--json", help="A JSON object instead of tables.")]


@dataclass(frozen=True, slots=True)
class TunnelOptions:
    """How the server is reached; see ``reaching``."""

    user: reaching.User = None
    password_file: reaching.PasswordFile = None
    password_prompt: reaching.PasswordPrompt = False
    ca: reaching.Ca = None
    pin: reaching.Pin = None
    insecure: reaching.Insecure = False
    certificate: reaching.Certificate = None
    proxy: reaching.ProxyOption = None
    family: reaching.Family = "both"
    redundancy: reaching.RedundancyOption = "auto"
    congestion_control: reaching.CongestionControl = None
    pcap: reaching.Pcap = None
    coding: reaching.CodingOption = "auto"

    def arguments(self, servers: list[str]) -> dict[str, Any]:
        """For ``connect``. The phone itself turns the media switch; nothing is to be found by looking on."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return reaching.reach(servers, **chosen, ddt=True, auto=False).options


@dataclass(frozen=True, slots=True)
class SipOptions:
    """Who we are at which SIP server; what is None is found out from the tunnel."""

    sip_user: Annotated[
        str | None, typer.Option(help="User at the SIP server; default: the tunnel's user.")
    ] = None
    sip_password_file: Annotated[
        FilePath | None, typer.Option(help="File with the SIP password; default: the tunnel's password.")
    ] = None
    sip_server: Annotated[
        str | None, typer.Option(help="HOST:PORT inside; default: what the TSM server names.")
    ] = None
    domain: Annotated[str | None, typer.Option(help="SIP domain; default: the SIP server's address.")] = None
    direct: Annotated[
        bool, typer.Option("--direct", help="No SIP server: calls go straight to inner addresses.")
    ] = False
    transport: Annotated[
        str, typer.Option(help="What SIP goes by inside: udp (large requests by tcp), or tcp.")
    ] = "udp"

    def who(self, tunnel: dict[str, Any]) -> tuple[str, str | None]:
        """User and password: those of the tunnel unless said otherwise.

        Raises:
            ConfigError: there is no user, or the password cannot be read.
        """
        if self.transport not in TRANSPORTS:
            raise typer.BadParameter("udp or tcp", param_hint="--transport")
        password = tunnel.get("password")
        if self.sip_password_file is not None:
            password = _read(self.sip_password_file).decode(errors="replace").rstrip("\r\n")
        name = self.sip_user or tunnel.get("username")
        if name is None:
            raise ConfigError("no SIP user", hint="give --user NAME, or --sip-user NAME")
        return name, password


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """What is said and heard, and by which path."""

    wav: Wav = None
    record: Annotated[FilePath | None, typer.Option(help="Write what is heard to this WAV file.")] = None
    mode: Annotated[str, typer.Option(help="Media switch at the beginning: stream, datagram or auto.")] = (
        "stream"
    )
    ddt: Annotated[bool, typer.Option("--ddt", help="The same as --mode datagram.")] = False
    playout: Playout = "60ms"
    as_json: Json = False

    def settings(self, *, echo: bool = False, codecs: tuple[str, ...] = G711) -> CallSettings:
        """Of a call.

        Raises:
            ConfigError: the WAV file cannot be played.
        """
        return CallSettings(
            samples=None if echo else load_voice(self.wav),
            loop=self.wav is None,
            echo=echo,
            playout=playout_seconds(self.playout),
            mode=parse_mode(self.mode, ddt=self.ddt),
            codecs=codecs,
        )


@asynccontextmanager
async def open_phone(
    servers: list[str], tunnel: TunnelOptions, sip: SipOptions
) -> AsyncIterator[tuple[Tunnel, Phone]]:
    """A tunnel, and a phone on it that is registered (unless calls go directly)."""
    arguments = tunnel.arguments(servers)
    user, password = sip.who(arguments)
    async with connect(servers, **arguments) as up:
        server = None if sip.direct else _sip_server(up, sip.sip_server)
        host = str(up.inner_address) if server is None else server[0]
        account = Account(user, sip.domain or host, password)
        async with Phone(up, account, server=server, transport=sip.transport) as phone:
            if server is not None:
                await phone.register()
            yield up, phone


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


def load_voice(file: FilePath | None) -> array[int]:
    """What a WAV file says, or the built-in voice."""
    return speech() if file is None else read_wav(_read(file), str(file))


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
        "codec": report.codec,
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
