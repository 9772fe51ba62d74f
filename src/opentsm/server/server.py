"""``Server``: everything a configuration describes, started, reloaded and stopped.

server = Server(settings)
await server.start()          # listeners are open; server.port() tells numbers the system picked
await server.reload()         # as SIGHUP does
await server.stop()           # clients are told, then everything is closed
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

import opentsm
from opentsm.admin.backend import Facts
from opentsm.admin.health import warnings
from opentsm.admin.socket import AdminSocket
from opentsm.config import ConfigErrors, check_files, diff, load
from opentsm.config.model import Settings, TlsProfile
from opentsm.engine.registry import Registry
from opentsm.errors import LocalProtocolError, OpenTsmError
from opentsm.server import descriptors, logs, privileges
from opentsm.server.calls import Calls, read_accounts
from opentsm.server.collector import Collector
from opentsm.server.core_side import CoreSides, check_routes
from opentsm.server.datalog import DataLog
from opentsm.server.door import Door
from opentsm.server.hub import Hub
from opentsm.server.listeners import Listeners
from opentsm.server.merge import merge
from opentsm.server.offers import make_offers, shared_rates
from opentsm.server.peer import Peer
from opentsm.server.report import SAMPLE_EVERY, Report
from opentsm.server.tls import Material, TlsStore, read_material
from opentsm.server.watch import POLL, Watch, signature
from opentsm.tasks import cancel, spawn
from opentsm.types import Code
from opentsm.userplane import Plane

SHUTDOWN_GRACE: Final = 2.5
"""Seconds clients have to answer our goodbye: the protocol's own wait for that is 2."""

GOODBYE_TURN: Final = 256
"""Clients told in one go, some ten milliseconds, before the answers of those before are read."""

COMEBACK_RATE: Final = 1000.0
"""Clients a second that may come back after a restart: the goodbye tells each a moment of its own."""

COMEBACK_AFTER: Final = 0.5
"""Seconds no client needs to try before: a restart takes that long."""

_log: Final = structlog.get_logger("opentsm.server")


def used_profiles(settings: Settings) -> tuple[TlsProfile, ...]:
    """TLS profiles that a port of an interface uses."""
    ports = [port for interface in settings.interfaces.values() for port in interface.ports]
    return tuple({p.tls_profile.name: p.tls_profile for p in ports if p.tls_profile is not None}.values())


class Server:
    """A TSM server.

    Args:
        settings: what to run.
        configuration: the file the settings came from, read again at a reload; None: its source, if that is
            a file.
        plane: a user plane to use; None makes one with the settings' workers.

    Attributes:
        settings: what is in force now.
        hub: the clients.
        listeners, tls, cores, calls: what is open. collector: when Python looks for cycles.
        reload_error: why the last reload changed nothing, or "".
        reloaded_at: when the configuration was last taken over.
        waiting: changes of the file that wait for a restart.
    """

    def __init__(
        self, settings: Settings, *, configuration: Path | None = None, plane: Plane | None = None
    ) -> None:
        self.settings = settings
        self.reload_error = ""
        self.reloaded_at: str = _timestamp()
        self.waiting: Sequence[str] = ()
        self._plane = plane
        self._file = configuration if configuration is not None else _file_of(settings)
        self._running = False
        self._admin: AdminSocket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading = asyncio.Lock()
        self._warned: frozenset[str] = frozenset()
        self._watch = Watch(())

    # -- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything. When it returns, clients are served.

        Raises:
            ConfigError: the settings, or a file they name, cannot be used.
            PlatformError: the machine does not allow what they ask for.
        """
        if self._running:
            raise LocalProtocolError("the server is running already")
        self._running = True
        workers = self.settings.server.workers
        files = descriptors.raise_limit()
        _log.info("descriptors", limit=files, stream_tunnels=descriptors.room())
        self._plane = self._plane or Plane(workers=workers)
        self._plane.start()
        self.hub = Hub(self._plane)
        self.tls = TlsStore(self._plane)
        self.cores = CoreSides(self._plane, workers)
        self.listeners = Listeners(self._plane, workers, self.tls, self.hub.accept)
        self.calls = Calls(self.hub)
        self._report = Report(self)
        self.collector = Collector(self.hub.counts, self.hub.moved)
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise
        _log.info("server started", version=opentsm.__version__, configuration=self.settings.source)

    async def _open(self) -> None:
        settings = self.settings
        fresh = await asyncio.to_thread(_read, settings)
        self.tls.load(fresh)
        self.hub.door.load(settings.authentication)
        self._use_data_log(self._prepared_data_log(settings))
        self._offer(settings)
        # Ports before devices: a second server of this configuration must fail before it takes queues of the
        # first one's TUN device, and with them packets.
        for interface in settings.interfaces.values():
            self.listeners.bind(interface)
        await self.cores.open(settings)
        accounts = await asyncio.to_thread(read_accounts, settings)
        if settings.server.user:
            privileges.become(settings.server.user)
        await self.hub.keeping.open(settings)
        await self.calls.open(settings, accounts)
        if settings.server.admin_socket is not None:
            self._admin = AdminSocket(settings.server.admin_socket, self._report)
            await self._admin.open()
        self.listeners.listen()
        self._watch.acted(signature(self._watched()))
        self._tasks = [spawn("watch files", self._watch_files()), spawn("watch counters", self._sample())]

    async def stop(self) -> None:
        """Tell every client, close everything. May be called again, and after a failed start."""
        if not self._running:
            return
        self._running = False
        await cancel(*self._tasks)
        self.listeners.close_all()
        self.hub.keeping.stop()
        await self.calls.close()
        await self._say_goodbye()
        if self._admin is not None:
            await self._admin.close()
        await self.hub.keeping.close()
        self.cores.close()
        await self.plane.close()
        self.hub.door.close()
        if self.hub.data_log is not None:
            await asyncio.to_thread(self.hub.data_log.close)
        _log.info("server stopped")

    async def _say_goodbye(self) -> None:
        peers = list(self.hub.peers())
        spread = len(peers) / COMEBACK_RATE
        for number, peer in enumerate(peers, 1):
            # Not a secret: it only spreads the clients over time.
            comeback = COMEBACK_AFTER + random.random() * spread
            peer.terminate(Code.SHUTTING_DOWN, "the server is shutting down", comeback)
            if number % GOODBYE_TURN == 0:
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(SHUTDOWN_GRACE):
                await self.hub.drained()
        except TimeoutError:
            _log.warning("clients did not say goodbye in time", tunnels=len(self.hub.registry))

    async def run(self, *, on_start: Callable[[], None] = lambda: None, own_process: bool = False) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. SIGHUP reloads.

        Args:
            on_start: called once clients are served.
            own_process: this process is the server and nothing else, so it takes Python's collector over
                (``opentsm.server.collector``).

        Raises:
            ConfigError, PlatformError: as ``start``.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        await self.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            if own_process:
                self.collector.begin()
            on_start()
            await ended.wait()
        finally:
            self.collector.end()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            await self.stop()

    def _on_hangup(self) -> None:
        if self.hub.data_log is not None:
            self.hub.data_log.reopen()
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(spawn("reload", self._reload_quietly()))

    async def _reload_quietly(self) -> None:
        await self.reload()

    # -- what others ask --------------------------------------------------------------------------------

    @property
    def plane(self) -> Plane:
        """The user plane. Raises LocalProtocolError before ``start``."""
        if self._plane is None:
            raise LocalProtocolError("the server has not been started")
        return self._plane

    @property
    def peers(self) -> Registry[Peer]:
        """The clients that have a tunnel."""
        return self.hub.registry

    def port(self, name: str | None = None) -> int:
        """The number a port listens on, by its name in the configuration; without a name, the first.

        Raises:
            KeyError: no such port is open.
        """
        return self.listeners.number(name)

    def facts(self) -> Facts:
        """The numbers of this moment."""
        return self._report.facts()

    @property
    def report(self) -> Report:
        """What the admin side sees."""
        return self._report

    # -- reload -----------------------------------------------------------------------------------------

    async def reload(self) -> list[str]:
        """Read the configuration file again and make it true, all of it or, if anything is wrong, nothing.

        Returns:
            What changed, in words. An error is in the log, in ``reload_error`` and in the status.
        """
        if self._file is None:
            self.reload_error = f"the configuration {self.settings.source} is not a file"
            return []
        async with self._reloading:
            try:
                settings = await asyncio.to_thread(load, self._file)
                return await self._apply(settings)
            except OpenTsmError as error:
                self._reload_failed(error)
                return []

    async def apply(self, settings: Settings) -> list[str]:
        """Make these settings true, all of them or nothing.

        Returns:
            What changed, in words.

        Raises:
            ConfigError: something is wrong; nothing has changed.
        """
        async with self._reloading:
            return await self._apply(settings)

    def _reload_failed(self, error: OpenTsmError) -> None:
        self.reload_error = str(error)
        problems = [str(one) for one in error.problems] if isinstance(error, ConfigErrors) else [str(error)]
        _log.error("configuration not taken over, the old one stays in force", problems=problems)

    async def _apply(self, settings: Settings) -> list[str]:
        """Everything that can go wrong comes before the first thing that changes."""
        effective = merge(self.settings, settings)
        check_routes(effective)
        fresh = await asyncio.to_thread(_read, effective)
        authenticator = self.hub.door.prepare(effective.authentication)
        log = self._prepared_data_log(effective)
        self.tls.load(fresh)
        self.cores.apply(effective)
        self.hub.door.use(effective.authentication, authenticator)
        self._use_data_log(log)
        self._offer(effective)
        self.listeners.refresh_tls(effective.ports)
        if effective.server.log_level is not self.settings.server.log_level:
            logs.set_level(effective.server.log_level)
        changes = [str(change) for change in diff(self.settings, effective)]
        self.waiting = [str(change) for change in diff(effective, settings)]
        self.settings = effective
        self.reload_error = ""
        self.reloaded_at = _timestamp()
        _log.info("configuration taken over", changes=changes, waiting_for_restart=list(self.waiting))
        return changes

    def _offer(self, settings: Settings) -> None:
        """New tunnels get what these settings say."""
        self.hub.leases.load(settings, self.hub.held_addresses(), self.hub.now())
        for interface in settings.interfaces.values():
            self.hub.registry.set_limit(interface.name, interface.max_tunnels)
        self.hub.offers = make_offers(settings, self.hub.leases, epoch=self.hub.epoch)
        self.hub.set_logged(settings)
        for name in shared_rates(settings):
            _log.warning("rates hold for each client by itself, not for its group", data_flow=name)

    def _prepared_data_log(self, settings: Settings) -> DataLog | None:
        """The data log for these settings: the one in use if it is the same file."""
        path, current = settings.server.data_log, self.hub.data_log
        if path is None:
            return None
        return current if current is not None and current.path == path else DataLog(path)

    def _use_data_log(self, log: DataLog | None) -> None:
        old, self.hub.data_log = self.hub.data_log, log
        if old is not None and old is not log:
            self._tasks.append(spawn("close data log", asyncio.to_thread(old.close)))

    # -- standing tasks ---------------------------------------------------------------------------------

    def _watched(self) -> list[Path]:
        """Files whose change is a reason to reload; account files look after themselves."""
        files = [] if self._file is None else [self._file]
        for profile in used_profiles(self.settings):
            files += [
                path for path in (profile.certificate, profile.key, profile.client_ca) if path is not None
            ]
        return files

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            watched = self._watched()
            if self._file is not None and self._watch.look(await asyncio.to_thread(signature, watched)):
                await self.reload()
                if self._watched() != watched:
                    self._watch.acted(await asyncio.to_thread(signature, self._watched()))

    async def _sample(self) -> None:
        while True:
            self._report.sample()
            standing = frozenset(warnings(self._report.facts()))
            for sentence in sorted(standing - self._warned):
                _log.warning(sentence)
            self._warned = standing
            self.collector.look()
            await asyncio.sleep(SAMPLE_EVERY)


def check(settings: Settings) -> None:
    """Everything about a configuration that can be checked without opening anything; blocks.

    Raises:
        ConfigError: it cannot be used.
    """
    check_routes(settings)
    _read(settings)
    read_accounts(settings)
    door = Door()
    door.load(settings.authentication)
    door.close()


def _read(settings: Settings) -> tuple[Material, ...]:
    """What the settings' files hold; blocks.

    Raises:
        ConfigError: a file is missing or cannot be used.
    """
    check_files(settings)
    return tuple(read_material(profile) for profile in used_profiles(settings))


def _file_of(settings: Settings) -> Path | None:
    path = Path(settings.source)
    return path if path.is_file() else None


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
