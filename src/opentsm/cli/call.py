"""``opentsm call``: place a call with the test softphone."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import typer

from opentsm.cli.groups import grouped
from opentsm.cli.softphone import (
    Server,
    SipOptions,
    TunnelOptions,
    VoiceOptions,
    ctrl_c,
    duration,
    open_phone,
    save_wav,
    show,
    summary,
)
from opentsm.client.phone.call import Call, CallSettings
from opentsm.client.phone.codecs import order
from opentsm.client.phone.dtmf import check_digits
from opentsm.tasks import cancel, spawn
from opentsm.types import PathMode

app = typer.Typer(help="Place a call through the tunnel.")

DIAL_AFTER: Final = 1.0
"""Seconds from the answer to the first digit: a voice menu has begun to listen by then."""

TAIL: Final = 1.0
"""Seconds on the line after a file's end: what was said last is still on its way."""


@app.command()
@grouped
def call(
    target: Annotated[str, typer.Argument(metavar="URI", help="sip:USER@DOMAIN, or just USER.")],
    server: Server,
    tunnel: TunnelOptions,
    sip: SipOptions,
    voice: VoiceOptions,
    codec: Annotated[str, typer.Option(help="Offered first: g711, or opus where it is installed.")] = "g711",
    seconds: Annotated[str | None, typer.Option(help="Hang up so long after the answer.")] = None,
    ddt_after: Annotated[str | None, typer.Option(help="Switch to the DDT so long after the answer.")] = None,
    dtmf: Annotated[str, typer.Option(help="Digits to dial after the answer.")] = "",
) -> None:
    """Call URI, say a WAV file or a built-in voice, and show how well the other side is heard.

    Without --seconds the call ends after the WAV file, when the other side hangs up, or with Ctrl-C. Keys: s,
    d, a turn the media switch; digits dial; q hangs up.
    """
    try:
        check_digits(dtmf)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dtmf") from None
    try:
        codecs = order(codec)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--codec") from None
    settings = voice.settings(codecs=codecs)
    plan = _Plan(duration(seconds, "--seconds"), duration(ddt_after, "--ddt-after"), dtmf)
    asyncio.run(_run(server, tunnel, sip, target, settings, plan, voice))


class _Plan:
    """What is to happen in the course of the call."""

    def __init__(self, seconds: float | None, ddt_after: float | None, digits: str) -> None:
        self._seconds = seconds
        self._ddt_after = ddt_after
        self._digits = digits

    async def follow(self, call: Call, over: asyncio.Event) -> None:
        """From the answer on; sets ``over`` when it is time to hang up."""
        await call.answered()
        loop = asyncio.get_running_loop()
        start = loop.time()
        steps: list[tuple[float, Any]] = []
        if self._ddt_after is not None:
            steps.append((self._ddt_after, lambda: call.set_mode(PathMode.DATAGRAM)))
        if self._digits:
            steps.append((DIAL_AFTER, lambda: call.dial(self._digits)))
        for after, step in sorted(steps, key=lambda item: item[0]):
            await asyncio.sleep(max(0.0, start + after - loop.time()))
            step()
        await self._until_said(call, start)
        over.set()

    async def _until_said(self, call: Call, start: float) -> None:
        if self._seconds is not None:
            await asyncio.sleep(max(0.0, start + self._seconds - asyncio.get_running_loop().time()))
            return
        while not call.media.exhausted:  # noqa: ASYNC110  # the media session is pure: it has no event
            await asyncio.sleep(0.1)
        await asyncio.sleep(TAIL)


async def _run(
    servers: list[str],
    tunnel: TunnelOptions,
    sip: SipOptions,
    target: str,
    settings: CallSettings,
    plan: _Plan,
    voice: VoiceOptions,
) -> None:
    over = asyncio.Event()
    with ctrl_c(over):
        async with open_phone(servers, tunnel, sip) as (_, phone):
            try:
                call = await phone.call(target, settings)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="URI") from None
            following = spawn("call plan", plan.follow(call, over), on_failure=lambda name, error: over.set())
            try:
                await show(call, over, quiet=voice.as_json)
            finally:
                await cancel(following)
                phone.end(call, "hung up")  # closing the phone gives the far end a moment to hear of it
        if voice.record is not None:
            save_wav(voice.record, call.recording)
        summary(call, as_json=voice.as_json)
        await call.answered()  # raises what went wrong, if it never was
