"""``opentsm up``: a tunnel for the whole machine, through a TUN device."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from opentsm.cli import reaching
from opentsm.client.host import HostOptions, parse_route
from opentsm.client.run import Reach, Stage, until_signal, up
from opentsm.client.statistics import Statistics
from opentsm.client.tun import DEFAULT_NAME, TunDevice, check_name
from opentsm.client.tunnel import Tunnel
from opentsm.config.model import LogFormat, LogLevel
from opentsm.server import logs
from opentsm.types import Path

app = typer.Typer(help="A tunnel for the whole machine.")

REFRESH_PER_SECOND: Final = 2
"""How often the live line is written: quick enough to see a switch, slow enough to read."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@app.command()
def main(
    servers: Annotated[
        list[str],
        typer.Argument(metavar="URL...", envvar=reaching.SERVER_VARIABLE, help="tls://HOST:PORT, in order."),
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
    name: Annotated[str, typer.Option(help="Name of the device.")] = DEFAULT_NAME,
    route: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="Reach this through the tunnel, too.")
    ] = None,
    default_route: Annotated[
        bool, typer.Option("--default-route", help="Reach everything through the tunnel.")
    ] = False,
    dns: Annotated[bool, typer.Option("--dns", help="Use the name servers inside.")] = False,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Default: info; warning on a terminal, which has the live line.")
    ] = None,
) -> None:
    """Give this machine a tunnel until Ctrl-C or SIGTERM; then everything is as it was. Needs root.

    By default only the inner network is reached through it. Media that is seen on the way moves to the
    datagram tunnel by itself.
    """
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
    routes = tuple(parse_route(text) for text in route or ())
    options = HostOptions(check_name(name), routes, default_route, dns)
    console = Console(stderr=True, highlight=False)
    level = LogLevel.WARNING if console.is_terminal else LogLevel.INFO
    asyncio.run(_run(how, options, console, log_level or level))


async def _run(how: Reach, options: HostOptions, console: Console, level: LogLevel) -> None:
    line = LiveLine(options.name)
    with (
        Live(get_renderable=line.text, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True)
        if console.is_terminal
        else nullcontext()
    ):
        logs.configure(level, LogFormat.TEXT)  # in here, so that what is logged appears above the line
        await until_signal(up(how, options, _stage(line, console)), SIGNALS)
    console.print(f"{options.name} is down.", soft_wrap=True)


def _stage(line: LiveLine, console: Console) -> Stage:
    def show(tunnel: Tunnel, device: TunDevice) -> None:
        line.show(tunnel, device)
        console.print(f"{line.name} is up: {_inner(tunnel)}, server {tunnel.server}.", soft_wrap=True)

    return show


class LiveLine:
    """One line on the terminal: address, path, packets, loss, delay.

    Args:
        name: of the device.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._shown: tuple[Tunnel, TunDevice] | None = None

    def show(self, tunnel: Tunnel, device: TunDevice) -> None:
        """From now on, of this tunnel."""
        self._shown = (tunnel, device)

    def text(self) -> Text:
        """The line as it is now."""
        if self._shown is None:
            return Text(f"{self.name}  connecting")
        tunnel, device = self._shown
        if tunnel.state != "active":
            return Text(f"{self.name}  {tunnel.state}  {tunnel.last_error}")
        return Text(live_line(self.name, _inner(tunnel), tunnel.statistics(), [f.path for f in device.flows]))


def live_line(name: str, inner: str, statistics: Statistics, media: Sequence[Path]) -> str:
    """The line. ``media``: the path of each media flow; without any, loss and delay are the stream's."""
    by_datagram = sum(path is Path.DATAGRAM for path in media)
    path = statistics.datagram if by_datagram else statistics.stream
    where = f"media {by_datagram} datagram, {len(media) - by_datagram} stream" if media else "no media"
    sent = statistics.stream.tx_packets + statistics.datagram.tx_packets
    received = statistics.stream.rx_packets + statistics.datagram.rx_packets
    delay = "-" if path.delay_ms is None else f"{path.delay_ms:.0f} ms"
    return (
        f"{name}  {inner}  {where}  sent {sent:,}  received {received:,}  "
        f"loss {path.loss_percent:.1f} %  delay {delay}"
    )


def _inner(tunnel: Tunnel) -> str:
    return ", ".join(map(str, tunnel.inner_addresses))
