"""``opentsm status``: what a running server is doing, asked on its admin socket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from opentsm.admin.client import ask

DEFAULT_SOCKET: Final = Path("/run/opentsm/admin.sock")
SOCKET_VARIABLE: Final = "OPENTSM_ADMIN_SOCKET"

app = typer.Typer(rich_markup_mode="markdown")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WHAT]",
        help="Nothing: the overview. `tunnels`, `tunnel TSID`, `pools`, `drops`, `counters`, `metrics`; or "
        "do something: `reload`, `disconnect TSID`, `log-level LEVEL`.",
    ),
]


@app.command()
def status(
    what: Words = None,
    socket: Annotated[
        Path | None, typer.Option(help=f"Admin socket. Default: ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The server's answer as it is.")] = False,
    match: Annotated[
        str, typer.Option(help="With tunnels: only those with this in identity, TSID, address or state.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="With tunnels: at most so many.")] = 50,
) -> None:
    """Show a running server, or tell it something."""
    words = what or ["status"]
    view = _VIEWS.get(words[0])
    if view is None:
        raise typer.BadParameter(f"{words[0]!r} is none of: {', '.join(_VIEWS)}")
    arguments = _arguments(words, view.argument)
    path = socket or Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)
    answer = _all_tunnels(path, match, limit) if view.paged else ask(path, words[0], **arguments)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    view.show(Console(highlight=False), answer)
    if words[0] == "reload" and not answer["ok"]:
        raise typer.Exit(1)


def _arguments(words: Sequence[str], name: str) -> dict[str, str]:
    if not name:
        if len(words) > 1:
            raise typer.BadParameter(f"{words[0]} takes nothing after it")
        return {}
    if len(words) != 2:
        raise typer.BadParameter(f"write: {words[0]} {name.upper()}")
    return {name: words[1]}


def _all_tunnels(path: Path, match: str, limit: int) -> dict[str, Any]:
    """Pages put together, until there are as many as wanted."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    total = 0
    while after is not None and len(found) < limit:
        page = ask(path, "tunnels", after=after, limit=limit - len(found), match=match)
        found += page["tunnels"]
        after, total = page["next"], page["total"]
    return {"tunnels": found, "total": total}


# -- showing ----------------------------------------------------------------------------------------------


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


def _show_status(console: Console, answer: dict[str, Any]) -> None:
    up = _duration(answer["uptime"])
    console.print(f"OpenTSM {answer['version']}, up {up}, configuration {answer['configuration']}")
    for sentence in answer["warnings"]:
        console.print(f"[bold yellow]![/] {sentence}")
    if not answer["warnings"]:
        console.print("[green]No warnings.[/]")
    console.print()
    _show_interfaces(console, answer["interfaces"])
    console.print()
    _show_pools(console, answer)
    if answer.get("sbcs"):
        console.print()
        keys = ("sbc", "domain", "calls", "users")
        _table(console, "Calls", keys, [[one.get(key) for key in keys] for one in answer["sbcs"]])
    if answer["drops"]:
        console.print()
        _show_counts(console, "Drops", answer["drops"])


def _show_interfaces(console: Console, interfaces: Sequence[dict[str, Any]]) -> None:
    """What they are, and what they carry: two tables, so that each fits a terminal."""
    what = ("interface", "state", "ports", "core", "services")
    _table(console, "Interfaces", what, [_interface_row(one) for one in interfaces])
    console.print()
    columns = ("interface", "now", "persistent", "with DDT", "most", "limit", "refused")
    keys = ("name", "active", "persistent", "datagram", "high_water", "limit")
    rows = [[*(one[key] for key in keys), _refusals(one["refusals"])] for one in interfaces]
    _table(console, "Tunnels", columns, rows)


def _interface_row(one: dict[str, Any]) -> list[object]:
    ports = "\n".join(f"{p['address']} {p['port']} {'+'.join(p['transports'])}" for p in one["ports"])
    state = "enabled" if one["enabled"] else "disabled"
    listening = state if one["listening"] else "not listening"
    return [one["name"], listening, ports, f"{one['realm']} ({one['core']})", one["services"]]


def _refusals(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "0"


def _show_tunnels(console: Console, answer: dict[str, Any]) -> None:
    rows = [
        (
            one["tsid"],
            one["identity"],
            one["state"],
            " ".join(one["inner"]),
            one["outer"],
            f"{one['transport']} x{one['streams']}" if one.get("streams", 1) > 1 else one["transport"],
            one["ddt"],
            _duration(one["seconds"]),
        )
        for one in answer["tunnels"]
    ]
    title = f"Tunnels ({len(rows)} of {answer['total']})"
    columns = ("TSID", "identity", "state", "inner", "outer", "stream", "DDT", "up")
    _table(console, title, columns, rows)


def _show_tunnel(console: Console, answer: dict[str, Any]) -> None:
    facts = {key: value for key, value in answer.items() if not isinstance(value, dict | list)}
    facts["inner"] = " ".join(answer["inner"])
    _table(console, f"Tunnel {answer['tsid']}", ("", ""), list(facts.items()))
    paths = {name: stats for name, stats in answer["paths"].items() if stats is not None}
    names = sorted({key for stats in paths.values() for key in stats})
    rows = [[name, *(stats[name] for stats in paths.values())] for name in names]
    console.print()
    _table(console, "Paths", ("", *paths), rows)
    if answer["flows"]:
        console.print()
        _table(console, f"Flows ({answer['flow_count']})", _FLOW, [_flow_row(one) for one in answer["flows"]])
    if any(answer["coding"].values()):
        console.print()
        _table(console, "Coding", ("", ""), list(answer["coding"].items()))
    if answer["switches"]:
        rows = [[one[key] for key in _SWITCH] for one in answer["switches"]]
        console.print()
        _table(console, "Changes of path", ("seconds ago", *_SWITCH[1:]), rows)
    if any(answer["drops"].values()):
        console.print()
        _show_counts(console, "Drops", {name: n for name, n in answer["drops"].items() if n})


_FLOW: Final = ("protocol", "port", "far", "mode", "tx stream", "tx datagram", "rx stream", "rx datagram")
_SWITCH: Final = ("seconds_ago", "direction", "path", "reason")
_MODES: Final = ("stream", "datagram", "follow")


def _flow_row(one: dict[str, Any]) -> list[object]:
    protocol = {6: "tcp", 17: "udp"}.get(one["protocol"], one["protocol"])
    far = None if one["far"] is None else f"{one['far'][0]} port {one['far'][1]}"
    counts = [one[key] for key in ("tx_stream", "tx_datagram", "rx_stream", "rx_datagram")]
    return [f"{protocol}{'6' if one['ipv6'] else ''}", one["port"], far, _MODES[one["mode"]], *counts]


def _show_pools(console: Console, answer: dict[str, Any]) -> None:
    columns = ("pool", "family", "leased", "resting", "capacity", "most", "exhausted")
    keys = ("pool", "family", "leased", "resting", "capacity", "high_water", "exhausted")
    _table(console, "Pools", columns, [[one[key] for key in keys] for one in answer["pools"]])


def _show_drops(console: Console, answer: dict[str, Any]) -> None:
    rows = [(name, count, answer["recent"][name]) for name, count in answer["drops"].items()]
    _table(console, "Drops", ("name", "ever", "last minute"), rows)


def _show_counts(console: Console, title: str, counts: dict[str, int]) -> None:
    _table(console, title, ("name", "count"), list(counts.items()))


def _show_reload(console: Console, answer: dict[str, Any]) -> None:
    if answer["ok"]:
        console.print("\n".join(answer["changes"]) or "Nothing has changed.", markup=False)
    else:
        console.print(f"Nothing was taken over:\n{answer['error']}", markup=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "0 s"


class _View:
    """How an answer is shown, the argument its command takes, and whether it comes in pages."""

    def __init__(
        self, show: Callable[[Console, dict[str, Any]], None], argument: str = "", *, paged: bool = False
    ) -> None:
        self.show = show
        self.argument = argument
        self.paged = paged


def _say(text: str) -> Callable[[Console, dict[str, Any]], None]:
    return lambda console, answer: console.print(text.format(**answer), markup=False)


_VIEWS: Final = {
    "status": _View(_show_status),
    "tunnels": _View(_show_tunnels, paged=True),
    "tunnel": _View(_show_tunnel, "tsid"),
    "pools": _View(_show_pools),
    "drops": _View(_show_drops),
    "counters": _View(lambda console, answer: _show_counts(console, "Counters", answer["counters"])),
    "metrics": _View(lambda console, answer: typer.echo(answer["text"], nl=False)),
    "reload": _View(_show_reload),
    "disconnect": _View(_say("Tunnel {disconnected} is being ended."), "tsid"),
    "log-level": _View(_say("Log level: {level}."), "level"),
}
