"""``opentsm answer``: a test softphone that takes every call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

import typer
from rich.console import Console

from opentsm.cli import reaching
from opentsm.cli.softphone import (
    Direct,
    Domain,
    Json,
    Mode,
    Playout,
    Record,
    Server,
    SipOptions,
    SipPasswordFile,
    SipServer,
    SipTransport,
    SipUser,
    Wav,
    ctrl_c,
    load_wav,
    open_phone,
    parse_mode,
    playout_seconds,
    print_json,
    save_wav,
    sip_options,
    summary,
)
from opentsm.client.phone.call import CallError, CallSettings
from opentsm.client.phone.events import Incoming
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.tasks import cancel, spawn

app = typer.Typer(help="Take calls through the tunnel.")


@dataclass(frozen=True, slots=True)
class _Wishes:
    settings: CallSettings
    calls: int
    record: FilePath | None
    as_json: bool


@app.command()
def answer(
    server: Server,
    user: reaching.User = None,
    password_file: reaching.PasswordFile = None,
    password_prompt: reaching.PasswordPrompt = False,
    ca: reaching.Ca = None,
    pin: reaching.Pin = None,
    insecure: reaching.Insecure = False,
    certificate: reaching.Certificate = None,
    proxy: reaching.ProxyOption = None,
    family: reaching.Family = "both",
    pcap: reaching.Pcap = None,
    sip_user: SipUser = None,
    sip_password_file: SipPasswordFile = None,
    sip_server: SipServer = None,
    domain: Domain = None,
    direct: Direct = False,
    transport: SipTransport = "udp",
    wav: Wav = None,
    echo: Annotated[bool, typer.Option("--echo", help="Say back what is heard.")] = False,
    record: Record = None,
    calls: Annotated[int, typer.Option(min=0, help="End after so many calls; 0: with Ctrl-C.")] = 0,
    mode: Mode = "stream",
    ddt: Annotated[bool, typer.Option("--ddt", help="The same as --mode datagram.")] = False,
    playout: Playout = "60ms",
    as_json: Json = False,
) -> None:
    """Take every call and say a WAV file, a built-in voice, or what is heard (--echo).

    With --record the first call's recording has the name that is given, later ones have a number in it.
    """
    tunnel = reaching.reach(
        server,
        user=user,
        password_file=password_file,
        password_prompt=password_prompt,
        ca=ca,
        pin=pin,
        insecure=insecure,
        certificate=certificate,
        proxy=proxy,
        family=family,
        ddt=True,
        auto=False,
        pcap=pcap,
    ).options
    sip = sip_options(
        tunnel,
        user=sip_user,
        password_file=sip_password_file,
        server=sip_server,
        domain=domain,
        direct=direct,
        transport=transport,
    )
    settings = CallSettings(
        samples=None if echo else load_wav(wav) if wav is not None else speech(),
        loop=wav is None,
        echo=echo,
        playout=playout_seconds(playout),
        mode=parse_mode(mode, ddt=ddt),
    )
    asyncio.run(_run(server, tunnel, sip, _Wishes(settings, calls, record, as_json)))


async def _run(servers: list[str], tunnel_options: dict[str, Any], sip: SipOptions, wishes: _Wishes) -> None:
    over = asyncio.Event()
    running: set[asyncio.Task[None]] = set()
    with ctrl_c(over):
        async with open_phone(servers, tunnel_options, sip) as (tunnel, phone):
            _say_ready(phone, str(tunnel.inner_address), wishes)
            receptionist = spawn("take calls", _take_calls(phone, wishes, running, over))
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


async def _take_calls(
    phone: Phone, wishes: _Wishes, running: set[asyncio.Task[None]], over: asyncio.Event
) -> None:
    """Each call in a task of its own, until there were enough."""
    number = 0
    while not wishes.calls or number < wishes.calls:
        incoming = await phone.next_call()
        number += 1
        task = spawn(f"call from {incoming.caller}", _take(phone, incoming, number, wishes))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.wait(running)
    over.set()


async def _take(phone: Phone, incoming: Incoming, number: int, wishes: _Wishes) -> None:
    try:
        call = await phone.answer(incoming, wishes.settings)
        await call.ended()
    except CallError as error:
        Console(stderr=True, highlight=False).print(str(error))
        return
    if wishes.record is not None:
        save_wav(_numbered(wishes.record, number), call.recording)
    summary(call, as_json=wishes.as_json)


def _numbered(file: FilePath, number: int) -> FilePath:
    return file if number == 1 else file.with_stem(f"{file.stem}-{number}")
