"""The SBC in an asyncio program: sockets of the user plane, one timer, and the core's actions carried out."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TextIO

import structlog

from opentsm.errors import ConfigError, RemoteProtocolError
from opentsm.store import BindingRow, MemoryStore, Store
from opentsm.types import Flow, SocketAddress

from .actions import (
    Action,
    CallEnded,
    CallStands,
    CloseRelay,
    MediaFlows,
    Note,
    OpenRelay,
    RelayKey,
    SaveBindings,
    UpdateRelay,
)
from .cdr import make_record
from .core import SbcCore
from .dialogs import Call, CallState
from .hop import Hop
from .keptcalls import kept_call
from .location import Binding
from .mediawatch import MediaWatch
from .parties import IdentityOf, Side
from .quality import Counts, PathSwitch, PathTrace
from .settings import SbcSettings
from .streams import Stack, Told
from .transactions import Send
from .transports import Transports, UdpCommands, UdpEvents
from .users import Credentials, Users

SAMPLE_INTERVAL: Final = 5.0
"""Seconds between two looks at the counters of running calls, for the path over time and for dead calls."""

LOG_LINES_PER_SECOND: Final = 20
"""Lines of one kind; more are only counted, so that a hostile phone does not fill the disk."""

_log: Final = structlog.get_logger("opentsm.sbc")


class Commands(UdpCommands, Protocol):
    """The part of ``UserPlane`` that is used."""

    def relay_open(
        self,
        *,
        local_a: SocketAddress,
        local_b: SocketAddress,
        remote_a: SocketAddress | None,
        remote_b: SocketAddress | None,
        early_a: Sequence[str] = (),
        early_b: Sequence[str] = (),
        core_a: bool = False,
        core_b: bool = False,
        rtp: bool = True,
        rtcp: bool = False,
    ) -> int: ...
    def relay_update(
        self,
        relay: int,
        *,
        remote_a: SocketAddress | None = None,
        remote_b: SocketAddress | None = None,
        follow: tuple[bool, bool] | None = None,
    ) -> None: ...
    def relay_close(self, relay: int) -> Counts: ...
    def relay_stats(self, relay: int) -> Counts: ...


class Events(UdpEvents, Protocol):
    """The part of ``Plane`` that is used."""

    @property
    def core(self) -> Commands: ...


class Tunnels(Protocol):
    """What the SBC asks of the server that owns the tunnels."""

    def media_flows(self, address: str, flows: Sequence[Flow], active: bool) -> None:
        """These flows of the client at this inner address are media from now on, or no longer are: they go
        where media goes, and count as media on a stream. ``far`` is our relay's address where media is
        relayed. A client that is gone is no error."""
        ...

    def delay_ms(self, address: str) -> float:
        """One-way delay of the path its media takes now, milliseconds; 0 if unknown."""
        ...

    def switches(self, address: str) -> Sequence[PathSwitch]:
        """Last changes of path of this client's media, oldest first; none if it is gone."""
        ...

    def unbound(self, address: str) -> int:
        """Packets it has sent to ports of ours where nothing listens, ever; 0 if it is gone."""
        ...


class NoTunnels:
    """For an SBC that stands alone."""

    def media_flows(self, address: str, flows: Sequence[Flow], active: bool) -> None:
        return None

    def delay_ms(self, address: str) -> float:
        return 0.0

    def unbound(self, address: str) -> int:
        return 0

    def switches(self, address: str) -> Sequence[PathSwitch]:
        return ()


class SbcService:
    """One embedded SBC on a user plane.

    The server gives the inner addresses of ``settings`` to ``route_local`` before ``start``.

    Args:
        plane: the user plane.
        settings: see there.
        store: registrations, records and secrets; None keeps them in memory.
        identity_of: the client that holds an inner address now.
        tunnels: the server's side of media.
        credentials: where digest hashes come from; None: ``settings.users_file``.
        inner_tcp: what makes inner TCP connections; None: SIP over UDP only, inside.

    Attributes:
        counters: events and named drops.
    """

    def __init__(
        self,
        plane: Events,
        settings: SbcSettings,
        store: Store | None,
        identity_of: IdentityOf,
        *,
        tunnels: Tunnels | None = None,
        credentials: Credentials | None = None,
        inner_tcp: Stack | None = None,
    ) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._plane = plane
        self._store: Store = store if store is not None else MemoryStore()
        self._identity_of = identity_of
        self._tunnels: Tunnels = tunnels if tunnels is not None else NoTunnels()
        self._credentials = credentials
        self._watch = MediaWatch(identity_of, self._tunnels.unbound, self._note)
        self._core: SbcCore | None = None
        told = Told(self._received, self._broken, self._unreachable, self._dropped)
        self._transports = Transports(plane, settings, inner_tcp, told)
        self._relays: dict[RelayKey, int] = {}
        self._ended_relays: dict[int, list[tuple[RelayKey, Counts]]] = {}
        self._traces: dict[int, dict[Side, PathTrace]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sampler: asyncio.TimerHandle | None = None
        self._cdr: TextIO | None = None
        self._log_second = 0
        self._log_lines: Counter[str] = Counter()

    # -- life -------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the sockets and begin.

        Raises:
            ConfigError: accounts or the record file cannot be opened, or an address is taken.
        """
        credentials = self._credentials or self._read_users()
        key = await self._store.secret("sbc-flow-tokens")
        self._core = SbcCore(
            self.settings, credentials, self._identity_of, key=key, new_id=lambda: secrets.token_hex(10)
        )
        rows = await self._store.bindings(time.time())
        offset = self._now() - time.time()
        self._core.restore(self._now(), [_binding(row, offset, self.settings) for row in rows])
        self._cdr = await asyncio.to_thread(self._open_cdr)
        await self._transports.open()
        kept = await self._store.dialogs()
        self._carry_out(self._core.restore_calls(self._now(), kept, -offset))
        self._arm()
        self._sampler = asyncio.get_running_loop().call_later(SAMPLE_INTERVAL, self._sample)
        _log.info(
            "sbc-started",
            domain=self.settings.domain,
            addresses=list(self.settings.locals),
            bindings=len(rows),
            calls=len(list(self._core.calls)),
        )

    async def close(self) -> None:
        """Close sockets and relays. Registrations and answered calls stay in the store; without one, calls
        that stand are written down as ended by the server."""
        for handle in (self._timer, self._sampler):
            if handle is not None:
                handle.cancel()
        if self._core is not None:
            self._carry_out(self._core.shut_down(self._now(), keep=self._store.outlives))
        await self._transports.close()
        if self._cdr is not None:
            await asyncio.to_thread(self._cdr.close)
        self._core = None

    def client_lost(self, addresses: Sequence[str]) -> None:
        """The session that held these inner addresses is closed for good (not merely persistent): its
        contacts are forgotten, the other party of each of its calls gets a BYE."""
        self._watch.client_lost(addresses)
        self._guarded("client-lost", lambda core, now: core.client_lost(now, addresses))

    def status(self) -> dict[str, Any]:
        """For people and metrics: how full the tables are, calls, counters."""
        if self._core is None:
            return {"running": False}
        now = self._now()
        return {
            "running": True,
            "domain": self.settings.domain,
            **self._core.sizes(),
            "connections": len(self._transports.streams),
            "active_calls": [_line(call, now) for call in self._core.calls],
            "counters": dict(self.counters),
        }

    def _read_users(self) -> Credentials:
        if self.settings.users_file is None:
            raise ConfigError("the SBC has no SIP accounts", hint="set sbc users-file, made with `htdigest`")
        return Users.from_file(self.settings.users_file, self.settings.domain)

    def _open_cdr(self) -> TextIO | None:
        path = self.settings.cdr_file
        try:
            return path.open("a", encoding="utf-8") if path is not None else None
        except OSError as error:
            raise ConfigError(
                f"call records cannot be written: {error}", source=str(path), hint="check sbc cdr-file"
            ) from None

    # -- in -----------------------------------------------------------------------------------------
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _received(self, hop: Hop, data: bytes) -> None:
        self._guarded("receive", lambda core, now: core.receive(now, hop, data))

    def _broken(self, hop: Hop, data: bytes, error: RemoteProtocolError) -> None:
        self._guarded("broken", lambda core, now: core.broken(hop, data, error))

    def _unreachable(self, hop: Hop) -> None:
        self._guarded("unreachable", lambda core, now: core.unreachable(now, hop))

    def _dropped(self, event: str, hop: Hop) -> None:
        self.counters[event] += 1

    def _due(self) -> None:
        self._guarded("expire", lambda core, now: core.expire(now))

    def _guarded(self, what: str, step: Callable[[SbcCore, float], list[Action]]) -> None:
        """One step of the core. A mistake of ours in handling one message must not cost the others theirs."""
        if self._core is None:
            return
        try:
            actions = step(self._core, self._now())
        except Exception:
            self.counters["internal-error"] += 1
            _log.exception("sbc-internal-error", what=what)
            actions = self._core.take()
        self._carry_out(actions)
        self._arm()

    def _arm(self) -> None:
        """One timer, at the core's next deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._core.next_deadline() if self._core is not None else None
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._due)

    # -- out ----------------------------------------------------------------------------------------
    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._transports.send(action)
            elif isinstance(action, Note):
                self._note(action)
            elif isinstance(action, MediaFlows):
                self._tunnels.media_flows(action.address, action.flows, action.active)
            elif isinstance(action, SaveBindings):
                offset = time.time() - self._now()
                self._store.save_bindings(action.aor, [_row(b, offset) for b in action.bindings])
            elif isinstance(action, CallStands):
                call = action.call
                self._store.save_dialog(_dialog_key(call), kept_call(call, time.time() - self._now()))
            elif isinstance(action, CallEnded):
                self._store.forget_dialog(_dialog_key(action.call))
                self._record(action.call)
            else:
                self._relay(action)

    def _note(self, note: Note) -> None:
        self.counters[note.event] += 1
        second = int(self._now())
        if second != self._log_second:
            self._log_second = second
            self._log_lines.clear()
        self._log_lines[note.event] += 1
        if self._log_lines[note.event] <= LOG_LINES_PER_SECOND:
            write = _log.warning if note.warning else _log.info
            write(note.event, **{key: _printable(value) for key, value in note.fields.items()})

    def _relay(self, action: OpenRelay | UpdateRelay | CloseRelay) -> None:
        """A relay that the user plane refuses costs one call its media and is counted; nothing else."""
        core = self._plane.core
        try:
            if isinstance(action, OpenRelay):
                self._relays[action.key] = core.relay_open(
                    local_a=action.local_a,
                    local_b=action.local_b,
                    remote_a=action.remote_a,
                    remote_b=action.remote_b,
                    early_a=action.early_a,
                    early_b=action.early_b,
                    core_a=action.core_a,
                    core_b=action.core_b,
                    rtp=action.rtp,
                    rtcp=action.rtcp,
                )
            elif action.key not in self._relays:
                return
            elif isinstance(action, UpdateRelay):
                core.relay_update(
                    self._relays[action.key],
                    remote_a=action.remote_a,
                    remote_b=action.remote_b,
                    follow=action.follow,
                )
            else:
                counts = core.relay_close(self._relays.pop(action.key))
                self._ended_relays.setdefault(action.key.call, []).append((action.key, counts))
        except (OSError, ValueError, KeyError) as error:
            self.counters["relay-failed"] += 1
            _log.error("relay-failed", action=type(action).__name__, relay=str(action.key), error=str(error))

    # -- calls --------------------------------------------------------------------------------------
    def _record(self, call: Call) -> None:
        relays = self._ended_relays.pop(call.serial, [])
        self._watch.look(call, dict(relays))
        self._watch.forget(key for key, _ in relays)
        traces = self._traces.pop(call.serial, {})
        record = make_record(
            call,
            relays,
            traces,
            {side: self._tunnels.switches(call.party(side).hop.remote[0]) for side in Side},
            epoch=time.time() - self._now(),
            network_delay_ms=self._network_delay(call),
        )
        self._store.add_call(record)
        if self._cdr is not None:
            # One short line; a page in the kernel's cache, not the disk.
            self._cdr.write(json.dumps(record) + "\n")
            self._cdr.flush()

    def _network_delay(self, call: Call) -> float:
        return sum(self._tunnels.delay_ms(call.party(side).hop.remote[0]) for side in Side)

    def _sample(self) -> None:
        self._sampler = asyncio.get_running_loop().call_later(SAMPLE_INTERVAL, self._sample)
        if self._core is None:
            return
        now = self._now()
        by_call: dict[int, dict[RelayKey, Counts]] = {}
        for key, relay in self._relays.items():
            by_call.setdefault(key.call, {})[key] = self._plane.core.relay_stats(relay)
        for call in list(self._core.calls):
            relays = by_call.get(call.serial, {})
            self._watch.look(call, relays)
            media = [counts for key, counts in relays.items() if key.part == "rtp"]
            if call.state is CallState.ANSWERED and media:
                self._sample_call(now, call, media)

    def _sample_call(self, now: float, call: Call, relays: list[Counts]) -> None:
        at = now - (call.answered if call.answered is not None else now)
        traces = self._traces.setdefault(call.serial, {side: PathTrace() for side in Side})
        for side in Side:
            legs = [relay.a if side is Side.CALLER else relay.b for relay in relays]
            traces[side].sample(at, sum(leg.packets for leg in legs), sum(leg.by_datagram for leg in legs))
        limit = self.settings.media_timeout
        idle = min((min(relay.a.idle_ms, relay.b.idle_ms) for relay in relays), default=0) / 1000.0
        if limit and at > limit and idle > limit:
            self._guarded("media-timeout", lambda core, at: core.media_dead(at, call))


def _dialog_key(call: Call) -> str:
    return f"{call.key.call_id}\n{call.key.tag}"


def _line(call: Call, now: float) -> dict[str, Any]:
    return {
        "call_id": _printable(call.key.call_id),
        "caller": _printable(call.caller.aor),
        "callee": _printable(call.callee.aor),
        "state": call.state.value,
        "seconds": round(now - call.started, 1),
        "codec": _printable(call.media.codec),
    }


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _row(binding: Binding, offset: float) -> BindingRow:
    return BindingRow(
        user=binding.aor,
        key=binding.key,
        contact=binding.contact,
        params=binding.params,
        transport=binding.hop.transport,
        local=binding.hop.local,
        remote=binding.hop.remote,
        path="\n".join(binding.path),
        q=binding.q,
        expires_at=binding.expires_at + offset,
        call_id=binding.call_id,
        sequence=binding.sequence,
        owner=binding.owner,
    )


def _binding(row: BindingRow, offset: float, settings: SbcSettings) -> Binding:
    core = settings.core is not None and tuple(row.local) == (settings.core.address, settings.core.port)
    return Binding(
        aor=row.user,
        key=row.key,
        contact=row.contact,
        params=row.params,
        hop=Hop(row.transport, row.local, row.remote, core),
        path=tuple(row.path.splitlines()),
        q=row.q,
        expires_at=row.expires_at + offset,
        call_id=row.call_id,
        sequence=row.sequence,
        owner=row.owner,
    )
