"""``opentsm connect``: make a tunnel and show it live."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from opentsm.cli import reaching
from opentsm.cli.reaching import CodingOption
from opentsm.client.notifications import Notification
from opentsm.client.sockets import InnerSocket
from opentsm.client.statistics import PathStatistics
from opentsm.client.testcall import Leg, TestCall, echo_address
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import ConfigError
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, PathMode, Service

app = typer.Typer(help="Make a tunnel and show it live.")

REFRESH: Final = 0.5
"""Seconds between two looks at the tunnel: quick enough to see a switch, slow enough to read."""

NEWS_SHOWN: Final = 6
"""Notifications on the screen."""

KEYS: Final = {"s": PathMode.STREAM, "d": PathMode.DATAGRAM, "a": PathMode.AUTO}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for, beyond the tunnel itself."""

    mode: PathMode
    ddt: bool
    ping: bool
    target: str | None
    seconds: float | None
    flip: float | None
    json: bool


@app.command()
def main(
    servers: Annotated[list[str], typer.Argument(metavar="URL...", help="tls://HOST:PORT, tried in order.")],
    user: Annotated[str | None, typer.Option(help="User name.")] = None,
    password_file: Annotated[FilePath | None, typer.Option(help="File with the password.")] = None,
    password_prompt: Annotated[bool, typer.Option("--password-prompt", help="Ask for the password.")] = False,
    ca: Annotated[FilePath | None, typer.Option(help="Authorities to trust (PEM).")] = None,
    pin: Annotated[str | None, typer.Option(help="SHA-256 of the only certificate to accept.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Accept any certificate. For tests.")] = False,
    certificate: Annotated[FilePath | None, typer.Option(help="Client certificate and key (PEM).")] = None,
    proxy: Annotated[str | None, typer.Option(help="http://HOST:PORT or socks5://HOST:PORT.")] = None,
    family: Annotated[str, typer.Option(help="Inner addresses: ipv4, ipv6 or both.")] = "both",
    ddt: Annotated[bool, typer.Option("--ddt", help="Have the datagram tunnel made.")] = False,
    mode: Annotated[str, typer.Option(help="Switch of the test call: stream, datagram, auto.")] = "stream",
    ping: Annotated[bool, typer.Option("--ping", help="Test call to the server's inner echo.")] = False,
    ping_to: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Test call to this echo.")] = None,
    flip: Annotated[float | None, typer.Option(help="Flip the switch every so many seconds.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after so long.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of tables.")] = False,
    redundancy: reaching.RedundancyOption = "auto",
    congestion_control: reaching.CongestionControl = None,
    pcap: Annotated[FilePath | None, typer.Option(help="Write inner packets to this file.")] = None,
    coding: CodingOption = "auto",
    message_log: Annotated[FilePath | None, typer.Option(help="Write control messages to this file.")] = None,
) -> None:
    """Make a tunnel and show it live, until Ctrl-C (or q). Keys s, d, a: the test call's switch."""
    if mode.upper() not in PathMode.__members__:
        raise typer.BadParameter("stream, datagram or auto", param_hint="--mode")
    switch = PathMode[mode.upper()]
    wants_ddt, wants_call = ddt or switch is not PathMode.STREAM, ping or ping_to is not None
    wishes = Wishes(switch, wants_ddt, wants_call, ping_to, seconds, flip, as_json)
    options: dict[str, Any] = {
        "username": user,
        "password": _password(password_file, password_prompt),
        "ca": ca,
        "pin_sha256": pin,
        "verify": not insecure and (pin is None or ca is not None),
        "client_cert": certificate,
        "proxy": proxy,
        "families": family,
        "services": [Service.DDT],
        "redundancy": redundancy,
        "congestion_control": congestion_control,
        "pcap": pcap,
        "coding": coding,
        "message_log": message_log,
    }
    asyncio.run(_run(servers, options, wishes))


async def _run(servers: list[str], options: dict[str, Any], wishes: Wishes) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    try:
        async with connect(servers, **options) as tunnel:
            await Session(tunnel, wishes, over).run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Session:
    """One run of the command, from the tunnel's being up to the summary."""

    def __init__(self, tunnel: Tunnel, wishes: Wishes, over: asyncio.Event) -> None:
        self._tunnel = tunnel
        self._wishes = wishes
        self._over = over
        self._console = Console(highlight=False)
        self._socket: InnerSocket | None = None
        self._call: TestCall | None = None
        self._news: list[str] = []

    async def run(self) -> None:
        listening = self._tunnel.on_notification(self._on_notification)
        self._begin()
        tasks = [spawn("tunnel end", self._watch_end())]
        if self._call is not None:
            tasks.append(spawn("test call", self._ping(self._call)))
        if self._wishes.flip:
            tasks.append(spawn("flip", self._flip(self._wishes.flip)))
        try:
            await self._show()
        finally:
            await cancel(*tasks)
            listening.cancel()
            self._summary()

    def _begin(self) -> None:
        if self._wishes.ping:
            self._socket = self._tunnel.socket()
            self._socket.set_mode(self._wishes.mode)
            self._socket.bind()
            self._call = TestCall(self._socket, _target(self._wishes.target) or echo_address(self._tunnel))
        elif self._wishes.ddt:
            self._tunnel.want_ddt()

    # -- what runs beside the screen ----------------------------------------------------------------------

    async def _watch_end(self) -> None:
        await self._tunnel.wait_closed()
        self._over.set()

    async def _ping(self, call: TestCall) -> None:
        try:
            await call.run(self._wishes.seconds)
        finally:
            self._over.set()

    async def _flip(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            if self._socket is not None:
                on = self._socket.mode is PathMode.STREAM
                self._turn(PathMode.DATAGRAM if on else PathMode.STREAM)

    def _turn(self, mode: PathMode) -> None:
        if self._socket is not None and not self._socket.closed:
            self._socket.set_mode(mode)
            self._say(f"switch: {mode.name.lower()}")

    def _on_notification(self, notification: Notification, _: Any) -> None:
        self._say(_sentence(notification), kind=notification.kind)

    def _say(self, text: str, *, kind: str = "") -> None:
        if self._wishes.json:
            _print_json({"event": kind or "switch", "text": text})
        elif not self._console.is_terminal and kind != "path-decided":
            self._console.print(text, soft_wrap=True)
        self._news = [*self._news, text][-NEWS_SHOWN:]

    # -- the screen ---------------------------------------------------------------------------------------

    async def _show(self) -> None:
        end = self._wishes.seconds if self._call is None else None
        with suppress(TimeoutError):
            async with asyncio.timeout(end):
                if self._wishes.json or not self._console.is_terminal:
                    await self._show_plainly()
                else:
                    with self._keys(), Live(self._screen(), console=self._console, transient=True) as live:
                        await self._show_live(live)

    async def _show_plainly(self) -> None:
        if self._wishes.json:
            _print_json({"event": "up", **_identity(self._tunnel)})
        else:
            for name, value in _identity(self._tunnel).items():
                shown = ", ".join(value) if isinstance(value, list) else value
                self._console.print(f"{name.replace('_', ' ')}: {shown or 'none'}", soft_wrap=True)
        await self._over.wait()

    async def _show_live(self, live: Live) -> None:
        while not self._over.is_set():
            live.update(self._screen())
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH):
                    await self._over.wait()

    def _screen(self) -> Group:
        parts: list[Any] = [_identity_table(self._tunnel), _path_table(self._tunnel)]
        if self._call is not None and self._socket is not None:
            parts.append(_call_table(self._call, self._socket))
        keys = "keys: s stream, d datagram, a auto, q quit" if self._call is not None else "keys: q quit"
        return Group(*parts, *self._news, f"[dim]{keys}[/dim]")

    @contextmanager
    def _keys(self) -> Iterator[None]:
        """Single keys, without Enter, while the screen is shown."""
        if not sys.stdin.isatty():
            yield
            return
        import termios  # not there on every system; only a terminal needs it
        import tty

        loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        tty.setcbreak(fd)
        loop.add_reader(fd, self._on_key)
        try:
            yield
        finally:
            loop.remove_reader(fd)
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def _on_key(self) -> None:
        key = sys.stdin.read(1).lower()
        if key in ("q", ""):
            self._over.set()
        elif key in KEYS:
            self._turn(KEYS[key])

    # -- the end ------------------------------------------------------------------------------------------

    def _summary(self) -> None:
        if self._wishes.json:
            _print_json({"event": "summary", **_numbers(self._tunnel, self._call)})
            return
        self._console.print(_path_table(self._tunnel))
        if self._call is not None and self._socket is not None:
            self._console.print(_call_table(self._call, self._socket))


def _password(file: FilePath | None, prompt: bool) -> str | None:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read the password file {file}: {error.strerror}") from error
    return str(typer.prompt("Password", hide_input=True)) if prompt else None


def _target(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{text!r} is no address for a test call", hint="write HOST:PORT: 10.0.0.1:7")
    return host.strip("[]"), int(port)


def _identity(tunnel: Tunnel) -> dict[str, Any]:
    return {
        "server": str(tunnel.server),
        "inner_addresses": [str(address) for address in tunnel.inner_addresses],
        "observed_address": _endpoint(tunnel.observed_address),
        "local_address": _endpoint(tunnel.local_address),
        "tsid": f"{tunnel.tsid:016x}",
        "services": [getattr(service, "label", str(service)) for service in tunnel.services],
    }


def _identity_table(tunnel: Tunnel) -> Table:
    table = Table.grid(padding=(0, 2))
    given = _identity(tunnel)
    nat = given["observed_address"] != given["local_address"]
    table.add_row("server", given["server"], "state", f"{tunnel.state} {_trouble(tunnel)}".strip())
    table.add_row("inner address", ", ".join(given["inner_addresses"]), "tunnel", given["tsid"])
    table.add_row("seen as", f"{given['observed_address']}{' (NAT)' if nat else ''}", "DDT", tunnel.ddt_state)
    table.add_row("services", ", ".join(given["services"]) or "none", "coding", _coding(tunnel))
    table.add_row("streams", str(tunnel.streams), "redundancy", str(tunnel.redundancy))
    return table


def _coding(tunnel: Tunnel) -> str:
    """What goes with media on the datagram tunnel, and what came of it."""
    numbers = tunnel.statistics().coding
    if not numbers:
        return "none"
    kind = " with FEC" if numbers["fec"] else ""
    headers = ", headers compressed" if numbers["compress"] else ""
    recovered = numbers["recovered"] + numbers["repaired"]
    return f"factor {numbers['factor']}{kind}, {recovered} recovered{headers}"


def _trouble(tunnel: Tunnel) -> str:
    return f"({tunnel.last_error.splitlines()[0]})" if tunnel.last_error and tunnel.state != "active" else ""


def _path_table(tunnel: Tunnel) -> Table:
    table = Table("path", "state", "packets in", "out", "loss", "delay", "jitter", "queue", "dropped")
    numbers = tunnel.statistics()
    for path in (numbers.stream, *numbers.further, numbers.datagram):
        table.add_row(*_path_row(path))
    return table


def _path_row(path: PathStatistics) -> tuple[str, ...]:
    return (
        path.path.name.lower(),
        "up" if path.up else "-",
        str(path.rx_packets),
        str(path.tx_packets),
        f"{path.loss_percent:.2f} %",
        _ms(path.delay_ms),
        _ms(path.jitter_ms),
        f"{path.queue_bytes} B",
        str(path.dropped),
    )


def _call_table(call: TestCall, socket: InnerSocket) -> Table:
    title = f"test call: switch {socket.mode.name.lower()}, now on {socket.path.name.lower()}"
    table = Table("sent on", "sent", "echoed", "lost", "delay", "jitter", "worst", title=title)
    for path, leg in call.legs.items():
        loss = f"{leg.lost} ({leg.loss_percent:.2f} %)"
        delays = (leg.delay_ms, leg.jitter_ms, leg.worst_ms) if leg.received else (None, None, None)
        table.add_row(path.name.lower(), str(leg.sent), str(leg.received), loss, *map(_ms, delays))
    return table


def _numbers(tunnel: Tunnel, call: TestCall | None) -> dict[str, Any]:
    numbers = tunnel.statistics()
    found: dict[str, Any] = {"state": tunnel.state, "ddt": tunnel.ddt_state}
    for path in (numbers.stream, numbers.datagram):
        found[path.path.name.lower()] = asdict(path) | {"path": path.path.name.lower()}
    found["coding"] = dict(numbers.coding)
    found["redundancy"] = str(numbers.redundancy)
    found["further"] = [asdict(path) | {"path": path.path.name.lower()} for path in numbers.further]
    if call is not None:
        found["test_call"] = {path.name.lower(): _leg(leg) for path, leg in call.legs.items()}
        found["test_call"]["duplicates"] = call.duplicates
    return found


def _leg(leg: Leg) -> dict[str, Any]:
    return asdict(leg) | {"loss_percent": leg.loss_percent}


def _sentence(notification: Notification) -> str:
    """A notification for people: its kind, and what it carries."""
    parts = []
    for name in ("available", "redundancy", "up", "reason", "text", "path", "decision", "protection"):
        value = getattr(notification, name, None)
        if value not in (None, ""):
            shown = value.name.lower() if isinstance(value, Path) else value
            parts.append(str(shown) if name in ("decision", "text", "protection") else f"{name} {shown}")
    return f"{notification.kind}: {', '.join(parts)}" if parts else notification.kind


def _endpoint(address: tuple[str, int] | None) -> str:
    if address is None:
        return "unknown"
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, separators=(",", ":"), default=str), flush=True)
