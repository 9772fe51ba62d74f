"""One call: user agent's news and media on a pair of ports. ``Phone`` makes them."""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentsm.client.phone.codecs import G711
from opentsm.client.phone.events import Changed, Ended, Established, Event, Ringing
from opentsm.client.phone.media import Identity, MediaSession, Source
from opentsm.client.phone.ports import Ports, received_path
from opentsm.client.phone.records import PathChange
from opentsm.client.phone.report import CallReport, media_report
from opentsm.client.phone.rtp import PTIME
from opentsm.client.phone.sdp import Media
from opentsm.errors import OpenTsmError, RemoteProtocolError
from opentsm.tasks import spawn
from opentsm.types import Path, PathMode, SocketAddress

CATCH_UP: Final = 10
"""Packets sent at once after the event loop stood still (200 ms); what is older would come too late."""

MEDIA_TIMEOUT: Final = 30.0
"""Seconds without a packet after which the far end is taken for dead (and BYE is sent)."""

MAX_EARLY: Final = 200
"""Datagrams that may come before the answer does: it can be slow on the stream when the media is quick."""

MAX_CHANGES: Final = 10_000
"""Path changes that are remembered: one a second for hours."""


class CallError(OpenTsmError):
    """A call or a registration did not come about.

    Args:
        code: SIP's, or 0 where the phone itself gave up.
    """

    def __init__(self, what: str, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{what}: {f'{code} ' if code else ''}{reason}".rstrip())


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How a call's audio is handled.

    Args:
        samples: what is said (8 kHz); None: silence. loop: again and again. echo: say what is heard instead.
        codecs: names of those that are offered, the most wanted first; see ``codecs.order``. A call that is
            answered takes the first of the caller's that this machine can speak.
        playout: seconds of the play-out buffer; None: adaptive. mode: the media switch at the beginning.
        media_timeout: seconds of silence from the far end that end the call; None: never.
    """

    samples: array[int] | None = None
    loop: bool = False
    echo: bool = False
    playout: float | None = 0.060
    mode: PathMode = PathMode.STREAM
    media_timeout: float | None = MEDIA_TIMEOUT
    codecs: tuple[str, ...] = G711


@dataclass(frozen=True, slots=True)
class _Datagram:
    """Media as it came."""

    at: float
    data: bytes
    source: SocketAddress
    path: Path | None
    rtp: bool


class Call:
    """One call. Made by ``Phone.call`` and ``Phone.answer``.

    Attributes:
        media: its audio: ``sent`` and ``received`` are the records of each packet, ``heard`` the recording.
        changes: when the switch was turned and the flow moved.
    """

    def __init__(
        self,
        key: str,
        peer: str,
        ports: Ports,
        settings: CallSettings,
        *,
        incoming: bool,
        end: Callable[[Call, str], None],
    ) -> None:
        self.key = key
        self.peer = peer
        self.incoming = incoming
        self.settings = settings
        self.ringing = False
        self.changes: list[PathChange] = []
        self._hang_up = end
        self._ports = ports
        self._loop = asyncio.get_running_loop()
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._end: asyncio.Future[Ended] = self._loop.create_future()
        self._remote: Media | None = None
        self._began: float | None = None
        self._ended_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._path: Path | None = None
        self._early: deque[_Datagram] = deque(maxlen=MAX_EARLY)
        self.media = MediaSession(
            _identity(),
            settings.samples,
            source=Source.ECHO if settings.echo else Source.SAMPLES,
            loop=settings.loop,
            playout=settings.playout,
        )
        ports.listen(self._on_rtp, self._on_rtcp, self._on_lost)
        self.set_mode(settings.mode)

    # -- commands -------------------------------------------------------------------------------------------

    async def answered(self) -> None:
        """Wait until the call is up.

        Raises:
            CallError: it will not be: busy, refused, nobody there, cancelled.
        """
        await asyncio.shield(self._up)

    async def ended(self) -> Ended:
        """Wait until the call is over."""
        return await asyncio.shield(self._end)

    async def hang_up(self, reason: str = "hung up") -> Ended:
        """End it, and wait until the far end knows, or has not answered for 32 s."""
        self._hang_up(self, reason)
        return await self.ended()

    def set_mode(self, mode: PathMode) -> None:
        """Turn the media switch: stream, datagram, or auto. Any number of times, in mid-call."""
        self._ports.set_mode(mode)
        self._note(f"switch: {mode.name.lower()}")

    def dial(self, digits: str) -> None:
        """Send digits (RFC 4733).

        Raises:
            ValueError: no key has them.
        """
        self.media.dial(digits)

    # -- what it is -----------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self._began is not None and self._ended_at is None

    @property
    def path(self) -> Path:
        """The path our media takes now."""
        return self._ports.rtp.path

    @property
    def on_hold(self) -> bool:
        return self._remote is not None and self._remote.on_hold

    @property
    def seconds(self) -> float:
        """Since it was answered."""
        if self._began is None:
            return 0.0
        return (self._ended_at or self._loop.time()) - self._began

    @property
    def recording(self) -> array[int]:
        """What was heard, at 8 kHz, from the moment of the first packet; gaps concealed."""
        return self.media.heard

    def report(self) -> CallReport:
        """The call in numbers, so far."""
        end = self._end.result() if self._end.done() else None
        return media_report(
            self.media,
            peer=self.peer,
            incoming=self.incoming,
            seconds=self.seconds,
            path=(self._path or Path.STREAM).name.lower(),
            end_code=None if end is None else end.code,
            end_reason="" if end is None else end.reason,
            ended_by="" if end is None else end.by,
        )

    # -- the user agent's news ------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        if isinstance(event, Ringing):
            self.ringing = True
        elif isinstance(event, Established | Changed):
            self._use(event.remote)
        elif isinstance(event, Ended):
            self._on_end(event)

    def _use(self, remote: Media) -> None:
        """Media goes there from now on."""
        assert remote.codec is not None  # the user agent accepts no other
        codec, payload_type = remote.codec
        self._remote = remote
        self.media.use(codec, payload_type, remote.events, silent=remote.on_hold)
        if self._began is None and not self._end.done():
            self._began = self._loop.time()
            self._up.set_result(None)
            while self._early:
                self._received(self._early.popleft())
            self._task = spawn(f"call {self.peer}", self._run(), on_failure=self._on_failure)

    def _on_end(self, event: Ended) -> None:
        now = self._loop.time()
        self._path = self._ports.rtp.path
        self._ended_at = now
        if self._task is not None:
            self._task.cancel()
            self._send_report(now, bye=True)
        # What is in the buffer has come in time: it is heard to its end.
        self.media.advance(now + self.media.playout.delay)
        self._ports.close()
        if not self._up.done():
            self._up.set_exception(CallError(f"call to {self.peer}", event.code, event.reason))
            self._up.exception()  # whoever does not wait for it needs no warning
        self._end.set_result(event)

    # -- media ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """A packet every 20 ms, by the clock and not by the length of our naps."""
        start, number = self._loop.time(), 0
        while True:
            due = start + number * PTIME
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            now = self._loop.time()
            missed = int((now - due) / PTIME)
            if missed > CATCH_UP:
                self.media.skip(missed)
                number += missed
            self._tick(now)
            number += 1

    def _tick(self, now: float) -> None:
        assert self._remote is not None  # media begins when it is known
        path = self._ports.rtp.path
        if path is not self._path:
            self._path = path
            self._note(f"path: {path.name.lower()}")
        to = (self._remote.address, self._remote.port)
        for packet in self.media.tick(now, path):
            self._ports.rtp.sendto(packet, to)
        self._send_report(now)
        self._watch_silence(now)

    def _send_report(self, now: float, *, bye: bool = False) -> None:
        if self._remote is None:
            return
        packet = self.media.report(now, bye=bye)
        if packet is not None:
            to = self._remote.rtcp or (self._remote.address, self._remote.port + 1)
            self._ports.rtcp.sendto(packet, to)

    def _watch_silence(self, now: float) -> None:
        limit = self.settings.media_timeout
        last = self.media.last_packet or self._began
        if limit is not None and last is not None and not self.on_hold and now - last > limit:
            self._hang_up(self, f"no media for {limit:g} s")

    def _on_rtp(self, data: bytes, source: SocketAddress) -> None:
        path = received_path(self._ports.rtp)
        self._received(_Datagram(self._loop.time(), data, source, path, rtp=True))

    def _on_rtcp(self, data: bytes, source: SocketAddress) -> None:
        self._received(_Datagram(self._loop.time(), data, source, None, rtp=False))

    def _received(self, datagram: _Datagram) -> None:
        """Only from the negotiated party; while that is not known (RFC 3264 section 5.1), it waits."""
        drops = self.media.numbers.drops
        if self._remote is None:
            if len(self._early) == MAX_EARLY:
                drops["media-before-answer"] += 1
            self._early.append(datagram)
        elif datagram.source[0] != self._remote.address:
            drops["media-from-stranger"] += 1
        else:
            try:
                if datagram.rtp:
                    self.media.receive_untrusted(datagram.at, datagram.data, datagram.path)
                else:
                    self.media.receive_report_untrusted(datagram.at, datagram.data)
            except RemoteProtocolError as error:
                drops[error.reason] += 1

    def _note(self, what: str) -> None:
        if len(self.changes) < MAX_CHANGES:
            self.changes.append(PathChange(self._loop.time(), what))

    def _on_lost(self, why: str) -> None:
        self._hang_up(self, why)

    def _on_failure(self, name: str, error: BaseException) -> None:
        """Without media the call cannot go on."""
        self._hang_up(self, f"media stopped: {error}")


def _identity() -> Identity:
    """Random first numbers (RFC 3550 section 5.1); the CNAME says nothing about us (RFC 7022)."""
    return Identity(
        ssrc=secrets.randbits(32),
        sequence=secrets.randbits(15),
        timestamp=secrets.randbits(32),
        cname=secrets.token_urlsafe(12),
    )
