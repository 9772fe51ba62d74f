"""The embedded SBCs of a server, and what they ask of it: who an address is, and where its media goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from opentsm.config.model import Sbc, Settings
from opentsm.config.model import Trunk as TrunkSettings
from opentsm.engine.registry import Record
from opentsm.errors import ConfigError
from opentsm.sbc import ANY_USER, Client, CoreSide, SbcService, SbcSettings, Trunk, Users
from opentsm.server.counters import Count
from opentsm.server.hub import Hub
from opentsm.server.judging import Switch
from opentsm.server.peer import Peer
from opentsm.store import SqliteStore
from opentsm.types import Flow, PathMode
from opentsm.userplane.tcp import InnerTcp

CALLS_SHOWN: Final = 50
"""Calls in one status answer; more than a person reads."""

_FOLLOW: Final = int(PathMode.AUTO)
"""Mode of a row whose packets go the way the client's last one came."""

_Row = tuple[int, int, bool]
"""Protocol, client port, IPv6: a row of a session's steering table for any far end."""


def read_accounts(settings: Settings) -> dict[str, Users]:
    """SIP accounts of every SBC, by its name; blocks.

    Raises:
        ConfigError: a file, or an SBC's settings, cannot be used.
    """
    return {
        sbc.name: Users.from_file(sbc.users_file, _settings(sbc, settings.trunks_of(sbc)).domain)
        for sbc in settings.sbcs.values()
    }


def _settings(sbc: Sbc, trunks: Sequence[TrunkSettings]) -> SbcSettings:
    core = None
    if sbc.core_address is not None:
        core = CoreSide(
            address=str(sbc.core_address),
            port=sbc.core_port,
            transports=sbc.core_transports,
            media_ports=sbc.core_media_ports,
            phones=tuple(map(str, sbc.core_phones)),
        )
    return SbcSettings(
        domain=sbc.domain,
        address=str(sbc.address),
        port=sbc.port,
        users_file=sbc.users_file,
        media_ports=sbc.media_ports,
        anchoring=sbc.anchoring,
        cdr_file=sbc.cdr_file,
        address6=None if sbc.address6 is None else str(sbc.address6),
        core=core,
        trunks=tuple(
            Trunk(
                name=trunk.name,
                address=str(trunk.address),
                port=trunk.port,
                transport=trunk.transport,
                sources=tuple(map(str, trunk.sources)),
                domains=trunk.domains,
                numbers=trunk.numbers,
                calls_in=trunk.calls_in,
                username=trunk.username or "",
                password=_password(trunk),
            )
            for trunk in trunks
        ),
    )


def _password(trunk: TrunkSettings) -> str:
    if trunk.password_file is None:
        return ""
    try:
        return trunk.password_file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the password of trunk {trunk.name} cannot be read: {error}",
            source=str(trunk.password_file),
            hint="check trunk password-file",
        ) from None


@dataclass
class _Running:
    service: SbcService
    realm: str
    own_routes: tuple[str, ...]
    store: SqliteStore | None


@dataclass
class Media:
    """Media flows of calls in the clients' steering tables (``opentsm.sbc.Tunnels``).

    A row is for any far end, as the client's own rows are: when the client turns its switch, the one row
    there is changes, and no narrower one of ours stands in its way. A flow that has a row keeps its mode.
    """

    hub: Hub
    rows: dict[int, dict[_Row, int]] = field(default_factory=dict)

    def media_flows(self, address: str, flows: Sequence[Flow], active: bool) -> None:
        """See ``opentsm.sbc.Tunnels``."""
        record = self.hub.registry.by_address(ip_address(address))
        if record is None:
            return
        with suppress(KeyError):  # the session is closing in the user plane
            modes = self._modes(record.session)
            for flow in flows:
                row = (int(flow.protocol), flow.port, flow.ipv6)
                (self._add if active else self._remove)(record.session, row, modes.get(row, _FOLLOW))

    def _add(self, session: int, row: _Row, mode: int) -> None:
        ours = self.rows.setdefault(session, {})
        if row in ours:
            ours[row] += 1
            return
        protocol, port, ipv6 = row
        try:
            self.hub.core.steer(session, protocol=protocol, port=port, ipv6=ipv6, mode=mode, media=True)
        except OSError:
            self.hub.counts[Count.STEERING_FULL] += 1
            return
        ours[row] = 1

    def _remove(self, session: int, row: _Row, mode: int) -> None:
        ours = self.rows.get(session, {})
        if row not in ours:
            return
        ours[row] -= 1
        if ours[row]:
            return
        del ours[row]
        if not ours:
            del self.rows[session]
        if mode == _FOLLOW:  # any other mode is the client's own wish
            protocol, port, ipv6 = row
            self.hub.core.unsteer(session, protocol=protocol, port=port, ipv6=ipv6)

    def _modes(self, session: int) -> dict[_Row, int]:
        """The mode of each row for any far end."""
        found = self.hub.core.flow_stats(session)
        return {(one.protocol, one.port, one.ipv6): one.mode for one in found if one.far is None}

    def forget(self, session: int) -> None:
        """The session is closed, and its rows with it."""
        self.rows.pop(session, None)

    def delay_ms(self, address: str) -> float:
        """See ``opentsm.sbc.Tunnels``: half the round trip of the datagram tunnel if the client has one, else
        of the stream."""
        record = self.hub.registry.by_address(ip_address(address))
        if record is None:
            return 0.0
        for tunnel in (record.value.datagram, record.value.stream):
            if tunnel is not None:
                with suppress(KeyError):
                    stats = self.hub.core.tunnel_stats(tunnel)
                    if round_trip := stats.rtt_us or stats.tcp_rtt_us:
                        return round_trip / 2000.0
        return 0.0

    def unbound(self, address: str) -> int:
        """See ``opentsm.sbc.Tunnels``."""
        record = self.hub.registry.by_address(ip_address(address))
        if record is None:
            return 0
        with suppress(KeyError):  # the session is closing in the user plane
            return self.hub.core.session_drops(record.session).get("drop_socket_unbound", 0)
        return 0

    def switches(self, address: str) -> Sequence[Switch]:
        """See ``opentsm.sbc.Tunnels``."""
        record = self.hub.registry.by_address(ip_address(address))
        return () if record is None else tuple(record.value.downlink.switches)


class Calls:
    """All SBCs of a server.

    Args:
        hub: the clients.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._media = Media(hub)
        self._running: dict[str, _Running] = {}
        hub.on_left = self._client_left

    async def open(self, settings: Settings, accounts: Mapping[str, Users]) -> None:
        """Start every SBC of the settings.

        Args:
            accounts: from ``read_accounts``.

        Raises:
            ConfigError: one cannot be started.
        """
        own = {str(address) for address in settings.server_addresses}
        for sbc in settings.sbcs.values():
            routes = tuple(text for text in map(str, sbc.addresses) if text not in own)
            await self._open(sbc, _settings(sbc, settings.trunks_of(sbc)), accounts[sbc.name], routes)

    async def _open(
        self, sbc: Sbc, settings: SbcSettings, accounts: Users, own_routes: tuple[str, ...]
    ) -> None:
        store = None if sbc.database is None else await SqliteStore.open(sbc.database)
        realm = sbc.realm.name
        service = SbcService(
            self._hub.plane,
            settings,
            store,
            lambda inner: self._identity_of(inner, realm),
            tunnels=self._media,
            credentials=accounts,
            inner_tcp=InnerTcp(self._hub.plane),
        )
        # Known before it starts, so that close() cleans up after a start that failed half-way.
        self._running[sbc.name] = _Running(service, realm, own_routes, store)
        for address in own_routes:
            self._hub.core.route_local(address)
        try:
            await service.start()
        except ConfigError as error:
            raise ConfigError(f"sbc {sbc.name}: {error}") from None

    async def close(self) -> None:
        """End all calls and stop. May be called again."""
        while self._running:
            _, one = self._running.popitem()
            await one.service.close()
            if one.store is not None:
                await one.store.close()
            for address in one.own_routes:
                self._hub.core.unroute(address)

    def status(self) -> list[dict[str, Any]]:
        """Each SBC for people: how full it is, its counters, and its first calls."""
        return [self._status(name, one) for name, one in self._running.items()]

    def _status(self, name: str, one: _Running) -> dict[str, Any]:
        status = one.service.status()
        return {"sbc": name, **status, "active_calls": status.get("active_calls", [])[:CALLS_SHOWN]}

    def _identity_of(self, address: str, realm: str) -> Client | None:
        """The client of this realm that holds an inner address. A client that came without proof has no name
        of its own: its SIP password alone decides."""
        record = self._hub.registry.by_address(ip_address(address))
        if record is None:
            return None
        peer = record.value
        if peer.identity is None or peer.offer.interface.realm.name != realm:
            return None
        return Client(
            name=peer.identity.name,
            session=record.session,
            tsid=int(record.stream_tsid),
            addresses=tuple(str(inner) for inner in record.addresses),
            users=frozenset({ANY_USER}) if peer.identity.method == "anonymous" else None,
        )

    def _client_left(self, record: Record[Peer]) -> None:
        addresses = [str(address) for address in record.addresses]
        for one in self._running.values():
            one.service.client_lost(addresses)
        self._media.forget(record.session)
