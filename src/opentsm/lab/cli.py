"""``opentsm lab``: bad networks for people at a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from opentsm.errors import OpenTsmError, PlatformError
from opentsm.lab import registry
from opentsm.lab.firewall import POLICIES, Firewall, Policy
from opentsm.lab.host import Host
from opentsm.lab.impairment import DIRECTIONS, Settings
from opentsm.lab.plan import Interface
from opentsm.lab.privileges import ensure_privileges, in_user_namespace
from opentsm.lab.probe import probe as run_probe
from opentsm.lab.registry import LabRecord
from opentsm.lab.report import flow_table, html_report, text_table
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.units import format_settings, parse_changes
from opentsm.lab.wan import Wan

app = typer.Typer(
    name="lab",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Bad networks on one machine: phones, firewall and NAT, a WAN with delay and loss, server, core.

\b
In one terminal:                        In another one:
  opentsm lab up                          opentsm lab shell phone1
  opentsm lab up --phones 3 --sites 2     opentsm lab set delay=40ms jitter=10ms loss=1%
                                          opentsm lab set --direction up udp=drop
                                          opentsm lab firewall tcp-443-only
                                          opentsm lab probe phone1 server --html report.html
                                          opentsm lab status

\b
phone1 -- [firewall1: NAT] == WAN emulator == [internet] -- [server] -- [core]

Works as root, and without root where the kernel allows user namespaces.
""",
)

LabOption = Annotated[str, typer.Option("--lab", help="Which lab, where several are up (see status).")]
SiteOption = Annotated[int, typer.Option("--site", min=1, help="Which site's WAN or firewall.")]
_FOREVER: Final = (signal.SIGTERM, signal.SIGHUP)


@app.command()
def up(
    sites: Annotated[int, typer.Option(min=1, help="Networks with a firewall and WAN of their own.")] = 1,
    phones: Annotated[int, typer.Option(min=1, help="Phones per site.")] = 1,
    servers: Annotated[int, typer.Option(min=1)] = 1,
    nat: Annotated[bool, typer.Option(help="IPv4 masquerade at the firewalls.")] = True,
    ipv4: Annotated[bool, typer.Option()] = True,
    ipv6: Annotated[bool, typer.Option()] = True,
    emulate: Annotated[bool, typer.Option(help="Emulated WAN; without it a plain fast wire.")] = True,
    seed: Annotated[int, typer.Option(help="The same seed gives the same losses.")] = 1,
    policy: Annotated[str, typer.Option("--firewall", help=f"One of {', '.join(POLICIES)}.")] = "everything",
    wan: Annotated[str, typer.Option(help='Settings as for `set`: "delay=40ms loss=1%".')] = "",
) -> None:
    """Build a lab and keep it until Ctrl-C.

    \b
    Examples:
      opentsm lab up
      opentsm lab up --wan "delay=40ms jitter=10ms loss=1%" --firewall tcp-443-only
      opentsm lab up --sites 2 --phones 2 --no-nat --no-ipv6
    """
    with _plain_errors():
        settings = Settings(**parse_changes(wan.split()))
        chosen = _policy(policy)
        ensure_privileges()
        spec = LabSpec(sites, phones, servers, nat, ipv4, ipv6, emulate, seed, settings)
        for number in _FOREVER:
            signal.signal(number, _leave)
        with Lab(spec) as lab:
            for site in range(1, sites + 1):
                lab.firewall(site).apply(chosen)
            typer.echo(_welcome(lab))
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    signal.pause()
        typer.echo("The lab is gone.")


@app.command(context_settings={"ignore_unknown_options": True})
def shell(
    host: Annotated[str, typer.Argument(help="phone1, firewall1, internet, server, core, ...")],
    command: Annotated[list[str] | None, typer.Argument(help="Default: your shell.")] = None,
    lab: LabOption = "",
) -> None:
    """Open a shell inside a host, or run a command there.

    \b
    Examples:
      opentsm lab shell phone1
      opentsm lab shell server -- opentsm serve -c server.toml
      opentsm lab shell phone1 -- ping -c 3 198.19.1.2
    """
    with _plain_errors():
        record = _enter(lab)
        argv = command or [os.environ.get("SHELL", "/bin/sh")]
        os.environ["PS1"] = f"[{host}] \\w # "
        arguments = ["ip", "netns", "exec", _namespace(record, host), *argv]
        os.execvp(arguments[0], arguments)


@app.command("set")
def set_(
    changes: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE ...; none: show.")] = None,
    direction: Annotated[str, typer.Option("--direction", "-d", help="up, down or both.")] = "both",
    reset: Annotated[bool, typer.Option("--reset", help="Begin from a perfect wire.")] = False,
    site: SiteOption = 1,
    lab: LabOption = "",
) -> None:
    """Change what the WAN does to packets, while they flow.

    \b
    Examples:
      opentsm lab set delay=40ms jitter=10ms loss=1%
      opentsm lab set burst=0.5%/25%              a burst of 4 every 200 packets
      opentsm lab set --direction up udp=drop     UDP dies silently, one way
      opentsm lab set udp=reject                  ... or with an ICMP answer
      opentsm lab set rate=512kbit queue_bytes=32kb
      opentsm lab set mtu=1280 mtu_signal=no      a black hole for large packets
      opentsm lab set --reset
    """
    with _plain_errors():
        wan = _wan(_choose(lab), site)
        if direction not in ("up", "down", "both"):
            raise ValueError(f"--direction is up, down or both, not {direction}")
        parsed = parse_changes(changes or [])
        if reset:
            wan.replace(direction, Settings())  # type: ignore[arg-type]
        if parsed:
            wan.set(direction, **parsed)  # type: ignore[arg-type]
        for name in DIRECTIONS:
            typer.echo(f"{name:5}{format_settings(wan.settings(name))}")


@app.command()
def firewall(
    policy: Annotated[str, typer.Argument(help=f"One of {', '.join(POLICIES)}.")] = "",
    rebind: Annotated[bool, typer.Option("--rebind", help="NAT: new outer ports for every flow.")] = False,
    flush: Annotated[bool, typer.Option("--flush", help="Forget all connections.")] = False,
    udp_timeout: Annotated[int | None, typer.Option(help="Seconds until an idle UDP mapping dies.")] = None,
    site: SiteOption = 1,
    lab: LabOption = "",
) -> None:
    """Put a firewall policy in place, or show what its rules have matched.

    \b
    Examples:
      opentsm lab firewall                        what matched so far
      opentsm lab firewall tcp-443-only           all else is dropped silently
      opentsm lab firewall tcp-443-only-reject    ... refused aloud
      opentsm lab firewall no-udp-down            one-way block
      opentsm lab firewall --rebind               every NAT mapping changes
      opentsm lab firewall --udp-timeout 5
    """
    with _plain_errors():
        record = _enter(lab)
        wall = Firewall(_namespace(record, f"firewall{site}"))
        if policy:
            wall.apply(_policy(policy))
            typer.echo(wall.text())
        if rebind:
            wall.rebind()
        if flush:
            typer.echo(f"forgotten: {wall.flush()}")
        wall.timeouts(udp=udp_timeout, udp_stream=udp_timeout)
        counters = wall.counters()
        rows = [(name, c.packets, c.bytes) for name, c in counters.items() if c.packets]
        typer.echo(text_table(rows, ("rule", "packets", "bytes")))


@app.command()
def status(lab: LabOption = "") -> None:
    """Labs that are up; with one lab, its hosts, WANs and what they did to packets."""
    with _plain_errors():
        records = registry.running_labs()
        if not records:
            typer.echo("No lab is up. Make one: opentsm lab up")
            return
        if len(records) > 1 and not lab:
            typer.echo(text_table([(r.lab, r.pid, len(r.hosts)) for r in records], ("lab", "pid", "hosts")))
            return
        record = _enter(lab)
        rows = [(name, ", ".join(record.addresses[name]), space) for name, space in record.hosts.items()]
        typer.echo(text_table(rows, ("host", "addresses", "namespace")))
        if record.emulated:
            for site in range(1, record.sites + 1):
                typer.echo(_wan_status(record, site))


@app.command()
def probe(
    phone: Annotated[str, typer.Argument()] = "phone1",
    server: Annotated[str, typer.Argument()] = "server",
    flows: Annotated[int, typer.Option(min=1, max=1000)] = 1,
    seconds: Annotated[float, typer.Option(min=0.1)] = 5.0,
    ipv6: Annotated[bool, typer.Option("--ipv6")] = False,
    report: Annotated[Path | None, typer.Option("--html", help="Write a page with plots.")] = None,
    lab: LabOption = "",
) -> None:
    """Send media (50 packets/s per flow) from a phone to a host and back; say what became of it.

    \b
    Examples:
      opentsm lab probe
      opentsm lab probe phone1 server --flows 20 --seconds 10 --html report.html
    """
    with _plain_errors():
        record = _enter(lab)
        ends = [_host(record, name) for name in (phone, server)]
        result = asyncio.run(run_probe(*ends, flows=flows, seconds=seconds, ipv6=ipv6))
        typer.echo(flow_table(result.reports()))
        if report is not None:
            page = html_report("OpenTSM lab", [result.section(f"{phone} to {server} and back")])
            report.write_text(page)
            typer.echo(f"wrote {report}")


@app.command()
def clean() -> None:
    """Remove what labs left behind whose process was killed. Labs that are up stay."""
    with _plain_errors():
        removed = registry.clean()
        typer.echo("\n".join(f"removed {name}" for name in removed) or "Nothing to remove.")


# -- helpers --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors meant for people are shown as one line, without a traceback."""
    try:
        yield
    except (OpenTsmError, ValueError, TimeoutError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _leave(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _choose(lab: str) -> LabRecord:
    records = [r for r in registry.running_labs() if not lab or r.lab == lab]
    if not records:
        raise PlatformError(f"no lab {lab} is up" if lab else "no lab is up; make one: opentsm lab up")
    if len(records) > 1:
        raise PlatformError(f"several labs are up; add --lab: {', '.join(r.lab for r in records)}")
    return records[0]


def _enter(lab: str) -> LabRecord:
    """The lab, with this process in the user namespace that owns it (re-executing where needed)."""
    record = _choose(lab)
    if record.rootless and not in_user_namespace():
        if shutil.which("nsenter") is None:
            raise PlatformError("the program `nsenter` is missing (Debian: apt-get install util-linux)")
        target = ["nsenter", "--preserve-credentials", "--user", "--mount", f"--target={record.pid}"]
        os.execvp(target[0], [*target, sys.executable, *sys.orig_argv[1:]])
    return record


def _namespace(record: LabRecord, host: str) -> str:
    if host not in record.hosts:
        raise ValueError(f"no host {host}; there are {', '.join(record.hosts)}")
    return record.hosts[host]


def _host(record: LabRecord, name: str) -> Host:
    namespace = _namespace(record, name)
    addresses = record.addresses[name]
    v4 = next((a for a in addresses if ":" not in a), "")
    v6 = next((a for a in addresses if ":" in a), "")
    return Host(name, namespace, Interface(v4, v6))


def _wan(record: LabRecord, site: int) -> Wan:
    if not record.emulated:
        raise PlatformError("this lab has no emulator; make it without --no-emulate")
    if not 1 <= site <= record.sites:
        raise ValueError(f"no site {site}; there are {record.sites}")
    control = registry.lab_directory(record.lab) / f"wan{site}.sock"
    near = (record.hosts[f"firewall{site}"], "wan0")
    return Wan(control, near, (record.hosts["internet"], f"site{site}"))


def _wan_status(record: LabRecord, site: int) -> str:
    wan = _wan(record, site)
    stats = wan.stats()
    lines = [f"WAN of site {site}"]
    for name, numbers in (("up", stats.up), ("down", stats.down)):
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(numbers.dropped.items()))
        lines.append(f"  {name:5}{format_settings(wan.settings(name))}")  # type: ignore[arg-type]
        lines.append(
            f"       {numbers.packets_in} in, {numbers.packets_out} out; dropped: {dropped or 'none'}"
        )
        lines.append(
            f"       overruns {numbers.overruns}, worst lateness {numbers.worst_lateness * 1e3:.2f} ms"
        )
    return "\n".join(lines) + "\n"


def _policy(name: str) -> Policy:
    if name not in POLICIES:
        raise ValueError(f"no policy {name}; there are {', '.join(POLICIES)}")
    return POLICIES[name]()


def _welcome(lab: Lab) -> str:
    rows = [
        (host.name, host.ipv4, host.ipv6, f"opentsm lab shell {host.name}") for host in lab.hosts.values()
    ]
    return text_table(rows, ("host", "IPv4", "IPv6", "to enter it")) + f"\n{lab.id} is up. Ctrl-C ends it."


@app.command()
def streams(
    variant: Annotated[
        list[str] | None, typer.Option(help="off, fan-out:N, load-balance:N; repeatable. Default: five.")
    ] = None,
    congestion: Annotated[
        list[str] | None, typer.Option(help="Congestion control; repeatable. Default: the kernel's.")
    ] = None,
    calls: Annotated[int, typer.Option(min=1, max=100, help="Calls, each with a tunnel of its own.")] = 8,
    seconds: Annotated[float, typer.Option(min=1.0)] = 60.0,
    rtt: Annotated[float, typer.Option(help="Round trip of the WAN, milliseconds.")] = 120.0,
    loss: Annotated[float, typer.Option(help="Per cent of packets lost in each direction.")] = 2.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same losses.")] = 7,
) -> None:
    """Media where UDP is blocked: over one stream, and over several of one client (service redundancy).

    \b
    Examples:
      opentsm lab streams
      opentsm lab streams --variant off --variant fan-out:2 --congestion bbr --congestion cubic
    """
    from opentsm.lab import streams as bench  # the server and the client are not needed by other commands

    with _plain_errors():
        ensure_privileges()
        network = bench.Network(rtt / 1e3, loss / 100.0, seed)
        outcomes = []
        for control in congestion or [""]:
            for one in variant or bench.VARIANTS:
                typer.echo(f"  {one} {control}".rstrip(), err=True)
                outcomes.append(
                    bench.measure(one, network=network, calls=calls, seconds=seconds, congestion=control)
                )
        typer.echo(bench.table(outcomes))
        typer.echo(f"in time = within {bench.PLAYOUT * 1e3:.0f} ms of the fastest packet of its call")


@app.command("blocked-start")
def blocked_start(
    rtt: Annotated[
        list[float] | None, typer.Option(help="Milliseconds; repeatable. Default: 40, 120.")
    ] = None,
    times: Annotated[int, typer.Option(min=1, max=100)] = 5,
) -> None:
    """How soon a tunnel is up and carries media where UDP is blocked from the beginning."""
    from opentsm.lab import streams as bench  # the server and the client are not needed by other commands

    with _plain_errors():
        ensure_privileges()
        starts = bench.blocked_starts([one / 1e3 for one in rtt or (40.0, 120.0)], times=times)
        typer.echo(bench.start_table(starts))


@app.command()
def block(
    picture: Annotated[Path, typer.Option(help="SVG file to write.")] = Path("block.svg"),
    seconds: Annotated[float, typer.Option(min=1.0, max=60.0, help="How long UDP is blocked.")] = 6.0,
    rtt: Annotated[float, typer.Option(min=0.0, help="Round trip of the WAN, milliseconds.")] = 40.0,
) -> None:
    """A call through a block of UDP and its end, as a picture: its packets by path over time.

    \b
    Examples:
      opentsm lab block
      opentsm lab block --picture docs/block.svg --rtt 120
    """
    from opentsm.lab import blockpicture  # the server and the client are not needed by other commands

    with _plain_errors():
        ensure_privileges()
        trace = blockpicture.record(seconds, rtt / 1e3)
        picture.write_text(blockpicture.draw(trace))
    lost = f"{len(trace.lost_up)} packets up and {len(trace.lost_down)} down"
    back = trace.back - trace.opened
    typer.echo(f"Lost: {lost}. Back on the datagram tunnel {back:.2f} s after the block's end.")
    typer.echo(f"Picture: {picture.resolve()}")


@app.command()
def demo(
    factor: Annotated[float, typer.Option(min=0.2, help="How long the calls last beside the usual.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the network the same losses.")] = 7,
    report: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("opentsm-demo.html"),
    loopback: Annotated[bool, typer.Option("--loopback", help="The reduced one, as without rights.")] = False,
) -> None:
    """Real calls through a bad network, measured: on the stream, moved to the DDT, through a block of UDP.

    \b
    Examples:
      opentsm lab demo
      opentsm lab demo --factor 2 --seed 3 --report call.html
    """
    from opentsm.lab.demo import (
        page,
        show,
        terminal,
    )  # the server and the client are not needed by other commands

    obstacle = "--loopback was given" if loopback else _obstacle()
    with _plain_errors(), terminal.Terminal() as teller:
        result = show.run(teller, report, factor=factor, seed=seed, obstacle=obstacle)
    typer.echo(f"\n{page.table(result)}")
    for figure, unit, sentence in page.findings(result):
        typer.echo(f"{figure:>6} {unit:3} {sentence}")
    typer.echo(f"\nPlots and recordings: {report.resolve()}")


def _obstacle() -> str | None:
    """Why no lab can be made; does not return where this program has to be run again with more rights."""
    try:
        ensure_privileges()
    except PlatformError as error:
        return str(error)
    return None
