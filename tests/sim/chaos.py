"""One half of the protocol against a peer, a network and an application that do anything that may happen, at
any time: each step is one input, answers come late, twice, or with any code. What must hold, holds after each
step."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any

from opentsm.limits import PAIR_MISSING_WARN
from opentsm.protocol import actions as a
from opentsm.protocol.actions import SteerMode
from opentsm.protocol.client import ClientSession, ClientSettings
from opentsm.protocol.resume import resume_proof
from opentsm.protocol.server import Entropy, ServerSession, ServerSettings
from opentsm.types import UNASSIGNED_TSID, Code, Flow, Path, PathMode, Protocol, Service, ServiceAction, Tsid
from opentsm.wire import messages as m

FLOWS = tuple(Flow(Protocol.UDP, 4000 + 2 * n) for n in range(3))
LEASES = (IPv4Interface("10.0.0.2/16"), IPv4Interface("10.0.0.3/16"))
SECRET = bytes(range(32))
TICKS_AT_ONCE = 50
SUCCESS_SHARE = 0.8
WITH_DDT = ServerSettings(services=frozenset({Service.DDT, Service.SIP}))


class Half:
    """What both halves share: time, tunnels, and the checks."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 1000.0
        self.session: Any = None
        self.asked: list[tuple[Path, m.Message]] = []
        self.rows: dict[Flow, SteerMode] = {}
        self.attached: set[Path] = set()
        self.closed = True
        self.lives = 0
        # Each seed is another mood: one network falls silent all the time, one server refuses everything.
        moods = (0.0, 0.2, 1.0, 1.0, 5.0)
        self.moods = {name: weight * chance.choice(moods) for name, weight in self.weights.items()}
        self.success = chance.choice((0.5, SUCCESS_SHARE, 0.97, 1.0))
        self.flows = FLOWS[: chance.choice((1, 1, 3))]
        self.mute = chance.random() < 0.1
        self.parting = chance.choice((0.0, 1.0, 5.0))
        self.forgetful = chance.choice((0.0, 0.0, 0.02, 0.3))
        self.pauses = chance.choice(((0.001, 0.1), (0.1, 1.0), (0.001, 0.1, 1.0, 7.0, 40.0)))

    def begin(self) -> None:
        self.asked.clear()
        self.rows.clear()
        self.attached.clear()
        self.closed = False
        self.lives += 1

    def drain(self) -> None:
        """Carry out, and check what must hold."""
        while actions := self.session.actions():
            for action in actions:
                late = isinstance(action, a.ReleaseLease | a.CloseTunnel)
                assert late or not self.closed, f"{action} after the end"
                self.carry_out(action)
        for flow, mode in self.rows.items():
            on_datagram = mode is SteerMode.DATAGRAM
            assert not on_datagram or Path.DATAGRAM in self.attached, (
                f"{flow} is on a tunnel that is not there"
            )

    def carry_out(self, action: a.Action) -> None:
        match action:
            case a.Send():
                self.asked = [*self.asked[-20:], (action.path, action.message)]
            case a.Steer():
                self.rows[action.flow] = action.mode
            case a.Unsteer():
                del self.rows[action.flow]
            case a.AttachDatagram():
                self.attached.add(Path.DATAGRAM)
            case a.CloseTunnel():
                self.attached.discard(action.path)
            case a.SessionClosed():
                self.closed = True
                self.rows.clear()

    def wait(self) -> None:
        """Time passes, often just until the next timer."""
        deadline = self.session.deadline()
        if deadline is not None and self.chance.random() < 0.6:
            self.now = max(self.now, deadline.at)
        else:
            self.now += self.chance.choice(self.pauses)
        for _ in range(TICKS_AT_ONCE):
            deadline = self.session.deadline()
            if self.closed or deadline is None or deadline.at > self.now:
                return
            self.session.tick(self.now)
            self.drain()
        raise AssertionError(f"the deadline does not move on: {deadline}")

    def code(self) -> Code:
        if self.chance.random() < self.success:
            return Code.SUCCESS
        codes: list[Code] = [*Code, *[Code.RESUME_REFUSED] * 3]
        return self.chance.choice(codes)

    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.closed and self.chance.random() < 0.5:  # else what comes too late comes
                self.begin()
            if self.session is None:
                continue
            name = self.chance.choices(list(self.moods), list(self.moods.values()))[0]
            getattr(self, name)()
            self.drain()

    weights: dict[str, int] = {}  # noqa: RUF012 - one per class, never written

    def lose(self) -> None:
        path = self.chance.choice(list(Path))
        if path is Path.DATAGRAM:
            self.attached.discard(path)
            for flow in self.rows:
                # The user plane falls back by itself; the session follows at once.
                self.rows[flow] = SteerMode.STREAM
        self.session.path_lost(path, "reset", self.now)

    def silence(self) -> None:
        self.session.path_silent(self.chance.choice((Path.DATAGRAM, Path.DATAGRAM, Path.STREAM)), self.now)

    def life(self) -> None:
        self.session.path_alive(Path.DATAGRAM, self.now)


class ClientHalf(Half):
    """A client among servers that may say anything."""

    weights = {  # noqa: RUF012
        "wait": 6, "answer": 16, "stream": 4, "fail": 1, "datagram": 6, "lose": 1, "silence": 2, "life": 3,
        "network": 1, "move": 1, "missed": 1, "switch": 5, "whole": 1, "said": 2, "close": 1,
    }  # fmt: skip

    def begin(self) -> None:
        super().begin()
        self.session = ClientSession(ClientSettings(client_id=b"id"), fraction=self.chance.random)
        self.opening: Tsid | None = None
        self.numbers = 0
        self.get_on(self.chance.choice((0, 0, 3, 8, 20)))

    def get_on(self, stages: int) -> None:
        """A life that has already come somewhere: up to a DDT that has fallen twice."""
        success, self.success, mute, self.mute = self.success, 1.0, self.mute, False
        flow = self.flows[0]
        path = [
            self.stream,
            self.newest,
            lambda: self.session.set_mode(flow, PathMode.DATAGRAM, self.now),
            self.newest,
            self.datagram,
            self.newest,
            self.newest,
        ]
        for _ in range(2):
            path += [
                lambda: self.session.path_silent(Path.DATAGRAM, self.now),
                self.newest,
                self.life,
                self.newest,
            ]
        for stage in path[:stages]:
            stage()
            self.drain()
        self.success, self.mute = success, mute

    def newest(self) -> None:
        """The last request is answered."""
        self.answer_to(-1)

    def carry_out(self, action: a.Action) -> None:
        super().carry_out(action)
        if isinstance(action, a.OpenDatagram):
            self.opening = action.tsid

    @property
    def tsid(self) -> Tsid:
        configuration = self.session.configuration
        return UNASSIGNED_TSID if configuration is None else configuration.tsid

    def answer(self) -> None:
        """Some request that was made, perhaps again, perhaps of long ago."""
        if not self.asked:
            return
        self.answer_to(-1 if self.chance.random() < 0.7 else self.chance.randrange(len(self.asked)))

    def answer_to(self, index: int) -> None:
        if not self.asked:
            return
        path, request = self.asked[index]
        head: dict[str, Any] = {"tsid": request.tsid, "sequence": request.sequence, "code": self.code()}
        lease = LEASES[self.chance.random() < 0.05]
        match request:
            case m.ConfigurationRequest() if path is Path.STREAM:
                self.numbers += 1  # a DDT of another session is another
                head["tsid"] = Tsid(7) if request.tsid == UNASSIGNED_TSID else request.tsid
                answer: m.Message = m.ConfigurationResponse(**head, inner_ipv4=lease, resume_secret=bytes(32))
            case m.ConfigurationRequest():
                if self.mute:
                    return
                answer = m.ConfigurationResponse(**head, inner_ipv4=lease)
            case m.ServiceRequest():
                self.numbers += self.chance.random() < self.forgetful
                answer = m.ServiceResponse(**head, service=Service.DDT, tunnel_id=Tsid(100 + self.numbers))
            case m.ReleaseRequest():
                answer = m.ReleaseResponse(**head, tunnel_id=request.tunnel_id)
            case _:
                return
        self.session.receive(path, answer, self.now)

    def stream(self) -> None:
        self.session.stream_ready(self.now, binding=bytes(32))

    def fail(self) -> None:
        self.session.connect_failed("refused", self.now)

    def datagram(self) -> None:
        if self.opening is not None:
            self.session.datagram_ready(self.opening, self.now)

    def move(self) -> None:
        """To another network, and all goes well."""
        self.session.network_changed(self.now)
        self.stream()
        self.drain()
        self.answer_to(-1)

    def missed(self) -> None:
        """The server has had no datagram half for as long as it takes to say so."""
        self.now += PAIR_MISSING_WARN
        warning = m.ServiceRequest(
            tsid=self.tsid, sequence=9, service=Service.DDT, action=ServiceAction.PAIR_MISSING
        )
        self.session.receive(Path.STREAM, warning, self.now)

    def network(self) -> None:
        self.session.network_changed(self.now, lost=self.chance.random() < 0.5)

    def switch(self) -> None:
        if self.closed:
            return  # the application has been told, and such a call is an error
        flow = self.chance.choice(self.flows)
        doing: Callable[[], None] = self.chance.choice(
            (
                lambda: self.session.set_mode(flow, self.chance.choice(list(PathMode)), self.now),
                lambda: self.session.unset(flow, self.now),
                lambda: self.session.use_path(flow, self.chance.choice(list(Path)), self.now),
            )
        )
        doing()

    def whole(self) -> None:
        if not self.closed:
            self.session.want_ddt(self.chance.random() < 0.5, self.now)

    def said(self) -> None:
        """The server speaks unasked."""
        ddt = self.opening or Tsid(100)
        code = self.chance.choice((None, Code.SHUTTING_DOWN))
        tsid = self.chance.choice((self.tsid, self.tsid, UNASSIGNED_TSID))
        path, message = self.chance.choices(
            (
                (Path.DATAGRAM, m.ReleaseRequest(tsid=ddt, sequence=9)),
                (Path.STREAM, m.ReleaseRequest(tsid=tsid, sequence=9, code=code)),
            ),
            (4, self.parting),
        )[0]
        self.session.receive(path, message, self.now)

    def close(self) -> None:
        if self.chance.random() < 0.3:
            self.session.close(self.now)


class ServerHalf(Half):
    """A server's session and a client that may ask for anything."""

    weights = {  # noqa: RUF012
        "wait": 6, "configure": 6, "decide": 8, "ask": 10, "datagram": 6, "complete": 6, "lose": 1,
        "silence": 2, "life": 3, "idle": 1, "release": 2, "terminate": 1, "resume": 4, "judge": 2,
    }  # fmt: skip

    def begin(self) -> None:
        super().begin()
        ids = iter(range(50, 1_000_000))
        self.session = ServerSession(
            WITH_DDT, entropy=Entropy(tsid=lambda: Tsid(next(ids)), secret=lambda tsid, generation: SECRET)
        )
        self.session.stream_ready(self.now, binding=bytes(32), peer=("192.0.2.1", 5000))
        self.sequence = 0
        self.pending: list[str] = []
        stages = (
            self.configure,
            self.decide,
            self.decide,
            self.ask,
            self.datagram,
            self.complete,
            self.silence,
        )
        for stage in stages[: self.chance.choice((0, 3, 6, 7))]:
            stage()
            self.drain()

    def carry_out(self, action: a.Action) -> None:
        super().carry_out(action)
        if isinstance(action, a.Authenticate | a.Allocate):
            self.pending.append(type(action).__name__)

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    def configure(self) -> None:
        proof = bytes(32) if self.chance.random() < 0.3 else None
        tsid = UNASSIGNED_TSID if proof is None else Tsid(3)
        request = m.ConfigurationRequest(tsid=tsid, sequence=self.next(), resume_proof=proof)
        self.session.receive(Path.STREAM, request, self.now)

    def decide(self) -> None:
        """Authentication and pools answer, now or when nobody waits any more."""
        if not self.pending:
            return
        good = self.chance.random() < 0.9
        if self.pending.pop(0) == "Authenticate":
            if good:
                self.session.authenticated("alice", self.now)
            else:
                self.session.authentication_failed(Code.UNAUTHORIZED, self.now)
        elif good:
            self.session.leased(a.Lease(LEASES[0]), self.now)
        else:
            self.session.lease_refused(Code.NO_ADDRESS, self.now)

    def ask(self) -> None:
        if self.session.tsid is None:
            return
        mode = self.chance.choice((None, *PathMode))
        action = self.chance.choice((ServiceAction.ENABLE, ServiceAction.ENABLE, ServiceAction.DISABLE))
        flows = tuple(self.chance.sample(FLOWS, self.chance.randrange(3)))
        request = m.ServiceRequest(
            tsid=self.session.tsid,
            sequence=self.next(),
            service=Service.DDT,
            action=action,
            flows=flows,
            mode=mode,
        )
        self.session.receive(Path.STREAM, request, self.now)

    def datagram(self) -> None:
        if self.session.ddt_tsid is not None:
            self.session.datagram_ready(self.session.ddt_tsid, self.now)

    def complete(self) -> None:
        if self.session.ddt_tsid is not None:
            request = m.ConfigurationRequest(tsid=self.session.ddt_tsid, sequence=self.next())
            self.session.receive(Path.DATAGRAM, request, self.now)

    def idle(self) -> None:
        self.session.path_idle(Path.STREAM, self.now)

    def release(self) -> None:
        """The client gives back the DDT or everything, or answers our own wish to part."""
        tsid = self.session.tsid or UNASSIGNED_TSID
        ddt = self.session.ddt_tsid
        choices: list[m.Message] = [m.ReleaseResponse(tsid=tsid, sequence=1, code=Code.SUCCESS)]
        if ddt is not None:
            choices.append(m.ReleaseRequest(tsid=tsid, sequence=self.next(), tunnel_id=ddt))
            choices.append(m.ReleaseRequest(tsid=tsid, sequence=self.next(), tunnel_id=ddt))
        if self.chance.random() < 0.3:
            choices.append(m.ReleaseRequest(tsid=tsid, sequence=self.next()))
        self.session.receive(Path.STREAM, self.chance.choice(choices), self.now)

    def terminate(self) -> None:
        if self.chance.random() < 0.5:
            self.session.terminate(Code.SHUTTING_DOWN, self.now)

    def resume(self) -> None:
        """The client is back on another stream, and has proved who it is."""
        if self.session.tsid is not None and self.session.state.value in ("active", "persistent"):
            proof = resume_proof(SECRET, self.session.tsid, bytes(32))
            request = m.ConfigurationRequest(tsid=self.session.tsid, sequence=self.next(), resume_proof=proof)
            self.session.resume(request, self.now, binding=bytes(32), peer=("192.0.2.2", 5001))

    def judge(self) -> None:
        self.session.use_path(self.chance.choice(list(Path)), self.now, "judged")
