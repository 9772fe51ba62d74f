"""Phones, a network that may lose any message, one SBC core, a user plane that only remembers; a fake
clock."""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from opentsm.sbc.actions import (
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
from opentsm.sbc.core import SbcCore
from opentsm.sbc.dialogs import Call
from opentsm.sbc.hop import Hop
from opentsm.sbc.keptcalls import kept_call
from opentsm.sbc.parties import Client
from opentsm.sbc.settings import SbcSettings
from opentsm.sbc.transactions import Send
from opentsm.sbc.users import Users
from opentsm.types import Flow
from tests.sim.sbc.phone import Phone
from tests.sim.sbc.pipes import Pipes

SERVER = "10.64.0.1"
CORE = ("192.0.2.10", 5060)
EPOCH = 1_700_000_000.0
SETTINGS = SbcSettings(domain="example.org", address=SERVER, media_ports=(20000, 20199))


@dataclass
class Network:
    """Delivers after a short delay, unless told to lose: by message number, by a rule, or by chance."""

    seed: int = 0
    loss: float = 0.0
    lose: set[int] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    now: float = 5000.0
    sent: int = 0
    log: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.phones: dict[tuple[str, int], Phone] = {}
        self.to_server: Callable[[tuple[str, int], bytes], None] | None = None

    def word(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, call))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until

    def _passes(self, address: str) -> bool:
        number, self.sent = self.sent, self.sent + 1
        return number not in self.lose and address not in self.cut and self._random.random() >= self.loss

    def send(self, source: tuple[str, int], data: bytes) -> None:
        """From a phone to the SBC."""
        self.log.append((source[0], "sbc", _title(data)))
        deliver = self.to_server
        assert deliver is not None
        phone = self.phones.get(source)
        if (phone is not None and phone.transport == "tcp") or self._passes(source[0]):
            self.after(0.01, lambda: deliver(source, data))

    def send_back(self, target: tuple[str, int], data: bytes) -> None:
        """From the SBC to a phone."""
        self.log.append(("sbc", target[0], _title(data)))
        phone = self.phones.get(target)
        if self._passes(target[0]) and phone is not None:
            self.after(0.01, lambda: phone.receive(data))


def _title(data: bytes) -> str:
    return data.split(b"\r\n", 1)[0].decode(errors="replace")


@dataclass
class World:
    """The SBC under test with everything around it."""

    network: Network = field(default_factory=Network)
    settings: SbcSettings = SETTINGS
    clients: dict[str, Client] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    notes: list[Note] = field(default_factory=list)
    ended: list[Call] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    relays: dict[RelayKey, OpenRelay] = field(default_factory=dict)
    flows: dict[str, set[Flow]] = field(default_factory=dict)
    relayed: int = 0
    kept: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.core = self._new_core()
        self.network.to_server = self.receive
        self.pipes = Pipes(self.network, self.network.seed, self._got, self._unreachable)
        self._armed: float | None = None

    def _new_core(self) -> SbcCore:
        passwords = {name: f"{name}-secret" for name in ("alice", "bob", "carol", "mallory")}
        users = Users.from_passwords("example.org", passwords)
        return SbcCore(self.settings, users, self.clients.get, key=b"k" * 32, new_id=self.network.word)

    def restart(self) -> None:
        """The process is killed, and the next one has what was kept: registrations and answered calls."""
        known = {user for client in self.clients.values() for user in (f"{client.name}@example.org",)}
        bindings = [binding for user in sorted(known) for binding in self.core.bindings(user)]
        self.relays.clear()
        self.flows.clear()
        self._armed = None
        self.core = self._new_core()
        self.core.restore(self.network.now, bindings)
        kept = [json.loads(text) for text in self.kept.values()]
        self.act(self.core.restore_calls(self.network.now, kept, EPOCH))

    def phone(
        self,
        name: str,
        address: str,
        *,
        client: str = "",
        port: int = 5060,
        transport: str = "udp",
        core: bool = False,
    ) -> Phone:
        owner = client or name
        known = self.clients.get(address)
        number = int(address.rpartition(".")[2])
        if known is None and not core:
            self.clients[address] = Client(owner, number, number, (address,))
        phone = Phone(
            self.network, name, address, f"{name}-secret", port=port, transport=transport, core=core
        )
        self.network.phones[address, port] = phone
        return phone

    def receive(self, source: tuple[str, int], data: bytes) -> None:
        phone = self.network.phones.get(source)
        local = CORE if phone is not None and phone.core else (SERVER, 5060)
        if phone is not None and phone.transport == "tcp":
            self.pipes.from_phone(phone, local, data)
        else:
            self._got(Hop("udp", local, source, phone is not None and phone.core), data)

    def _got(self, hop: Hop, data: bytes) -> None:
        self.act(self.core.receive(self.network.now, hop, data))

    def _unreachable(self, hop: Hop) -> None:
        self.act(self.core.unreachable(self.network.now, hop))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            self._one(action)
        when = self.core.next_deadline()
        if when is not None and when != self._armed:
            self._armed = when
            self.network.after(max(0.0, when - self.network.now), lambda: self._due(when))

    def _due(self, when: float) -> None:
        if self._armed != when:
            return
        self._armed = None
        self.act(self.core.expire(self.network.now))

    def _one(self, action: Action) -> None:
        if isinstance(action, Send) and action.hop.reliable:
            phones = list(self.network.phones.values())
            self.network.log.append(("sbc", action.hop.remote[0], _title(action.data)))
            self.pipes.to_phone(action.hop, action.data, action.fallback, phones)
        elif isinstance(action, Send):
            self.network.send_back(action.hop.remote, action.data)
        elif isinstance(action, Note):
            self.events[action.event] += 1
            self.notes.append(action)
        elif isinstance(action, CallStands):
            self.kept[action.call.key.call_id] = json.dumps(kept_call(action.call, EPOCH))
        elif isinstance(action, CallEnded):
            self.kept.pop(action.call.key.call_id, None)
            self.ended.append(action.call)
        elif isinstance(action, SaveBindings):
            self.saved[action.aor] = len(action.bindings)
        elif isinstance(action, MediaFlows):
            known = self.flows.setdefault(action.address, set())
            if action.active:
                assert not known & set(action.flows), "announced twice"
                known.update(action.flows)
            else:
                assert known >= set(action.flows), "withdrawn without having been announced"
                known.difference_update(action.flows)
        else:
            self._relay(action)

    def _relay(self, action: OpenRelay | UpdateRelay | CloseRelay) -> None:
        if isinstance(action, OpenRelay):
            taken = {port for relay in self.relays.values() for port in (relay.local_a, relay.local_b)}
            assert not taken & {action.local_a, action.local_b}, "a port is used twice"
            self.relays[action.key] = action
            self.relayed += 1
        elif isinstance(action, UpdateRelay):
            old = self.relays[action.key]
            a, b = action.remote_a or old.remote_a, action.remote_b or old.remote_b
            rtp, rtcp = action.follow or (old.rtp, old.rtcp)
            self.relays[action.key] = replace(old, remote_a=a, remote_b=b, rtp=rtp, rtcp=rtcp)
        else:
            del self.relays[action.key]

    def rtp(self) -> list[OpenRelay]:
        return [relay for relay in self.relays.values() if relay.key.part == "rtp"]

    def assert_at_rest(self) -> None:
        """Nothing is left of what was: no call, port, relay, media flow or transaction."""
        sizes = self.core.sizes()
        assert sizes["calls"] == 0
        assert sizes["transactions"] == 0
        assert sizes["media-ports-free"] == 100
        assert not self.relays
        assert not any(self.flows.values())


def two_phones(network: Network | None = None) -> tuple[World, Phone, Phone]:
    """Alice and Bob, registered."""
    world = World(network or Network())
    alice, bob = world.phone("alice", "10.64.0.2"), world.phone("bob", "10.64.0.3")
    bob.media_port = 18000
    alice.register()
    bob.register()
    return world, alice, bob


def the_call(world: World) -> Call:
    """The only call that has ended."""
    assert len(world.ended) == 1
    return world.ended[0]
