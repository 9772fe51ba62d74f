"""``opentsm media``: where media of a running ``opentsm up`` or ``opentsm run`` goes, and its switch."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from opentsm.client.control import ask, pick, running

app = typer.Typer(help="Show or change where media of a running tunnel goes.")


@app.command()
def main(
    mode: Annotated[
        str | None,
        typer.Argument(metavar="[stream|datagram|auto]", help="Send media there from now on, calls and all."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Device, where several are running.")] = None,
    pid: Annotated[int | None, typer.Option(help="Process, where several are running.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as it is.")] = False,
) -> None:
    """Show the media flows of a running `opentsm up` or `opentsm run`, or send them to another path.

    Running calls move at once; nothing is lost by it, and the phones notice nothing.
    """
    whom = pick(running(), name, pid)
    status = ask(whom, "status") if mode is None else ask(whom, "media", mode=mode)
    if as_json:
        typer.echo(json.dumps(status))
        return
    console = Console(highlight=False)
    for line in lines(status):
        console.print(line, soft_wrap=True)


def lines(status: dict[str, Any]) -> list[str]:
    """The answer for people."""
    addresses = ", ".join(status["addresses"])
    first = f"{status['device']}  {addresses}  {status['state']}  media to {status['media']}"
    sip = f"  SIP server {status['sip_server']}" if status["sip_server"] else ""
    shown = [f"{first}  DDT {status['ddt']}{sip}  calls {status['calls']}"]
    for flow in status["flows"]:
        sent, received = flow["sent"], flow["received"]
        shown.append(
            f"  port {flow['port']:<5} {flow['path']:<8}"
            f"  sent {sent['stream']:,} stream, {sent['datagram']:,} datagram"
            f"  received {received['stream']:,} stream, {received['datagram']:,} datagram"
        )
    return shown
