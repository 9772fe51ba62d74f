"""``opentsm answer``: a test softphone that takes every call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

import typer
from rich.console import Console

from opentsm.cli.groups import grouped
from opentsm.cli.softphone import (
    Server,
    SipOptions,
    TunnelOptions,
    VoiceOptions,
    ctrl_c,
    open_phone,
    print_json,
    save_wav,
    show,
    summary,
)
from opentsm.client.phone.call import Call, CallError, CallSettings
from opentsm.client.phone.events import Incoming
from opentsm.client.phone.phone import Phone
from opentsm.tasks import cancel, spawn

app = typer.Typer(help="Take calls through the tunnel.")


@dataclass(frozen=True, slots=True)
class _Wishes:
    settings: CallSettings
    calls: int
    record: FilePath | None
    as_json: bool


class _Desk:
    """One call at a time has the live line and the keys."""

    def __init__(self, phone: Phone, wishes: _Wishes) -> None:
        self.phone = phone
        self.wishes = wishes
        self._watching = False

    async def attend(self, call: Call) -> None:
        """Until it is over; the key q ends it."""
        if not self._watching:
            self._watching = True
            over = asyncio.Event()
            try:
                await show(call, over, quiet=self.wishes.as_json)
            finally:
                self._watching = False
            if over.is_set():
                self.phone.end(call, "hung up")
        await call.ended()


@app.command()
@grouped
def answer(
    server: Server,
    tunnel: TunnelOptions,
    sip: SipOptions,
    voice: VoiceOptions,
    echo: Annotated[bool, typer.Option("--echo", help="Say back what is heard.")] = False,
    calls: Annotated[int, typer.Option(min=0, help="End after so many calls; 0: with Ctrl-C.")] = 0,
) -> None:
    """Take every call and say a WAV file, a built-in voice, or what is heard (--echo).

    With --record the first call's recording has the name that is given, later ones have a number in it.
    """
    wishes = _Wishes(voice.settings(echo=echo), calls, voice.record, voice.as_json)
    asyncio.run(_run(server, tunnel, sip, wishes))


async def _run(servers: list[str], options: TunnelOptions, sip: SipOptions, wishes: _Wishes) -> None:
    over = asyncio.Event()
    running: set[asyncio.Task[None]] = set()
    with ctrl_c(over):
        async with open_phone(servers, options, sip) as (tunnel, phone):
            _say_ready(phone, str(tunnel.inner_address), wishes)
            receptionist = spawn("take calls", _take_calls(_Desk(phone, wishes), running, over))
            ended = spawn("tunnel end", _when_closed(tunnel.wait_closed, over))
            try:
                await over.wait()
            finally:
                await cancel(receptionist, ended)
        # The phone has hung up, so these end too, with their recordings and numbers.
        await asyncio.gather(*running)


async def _when_closed(wait_closed: Any, over: asyncio.Event) -> None:
    await wait_closed()
    over.set()


def _say_ready(phone: Phone, address: str, wishes: _Wishes) -> None:
    if wishes.as_json:
        print_json({"event": "ready", "uri": phone.account.uri, "inner_address": address})
    else:
        Console(highlight=False).print(f"{phone.account.uri} at {address}: waiting for calls (Ctrl-C ends)")


async def _take_calls(desk: _Desk, running: set[asyncio.Task[None]], over: asyncio.Event) -> None:
    """Each call in a task of its own, until there were enough."""
    number = 0
    while not desk.wishes.calls or number < desk.wishes.calls:
        incoming = await desk.phone.next_call()
        number += 1
        task = spawn(f"call from {incoming.caller}", _take(desk, incoming, number))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.wait(running)
    over.set()


async def _take(desk: _Desk, incoming: Incoming, number: int) -> None:
    wishes = desk.wishes
    try:
        call = await desk.phone.answer(incoming, wishes.settings)
        await desk.attend(call)
    except CallError as error:
        Console(stderr=True, highlight=False).print(str(error))
        return
    if wishes.record is not None:
        save_wav(_numbered(wishes.record, number), call.recording)
    summary(call, as_json=wishes.as_json)


def _numbered(file: FilePath, number: int) -> FilePath:
    return file if number == 1 else file.with_stem(f"{file.stem}-{number}")
