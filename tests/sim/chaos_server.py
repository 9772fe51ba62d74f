"""The server's half and a client that may ask for anything."""

from __future__ import annotations

from opentsm.limits import MAX_STREAMS
from opentsm.protocol import actions as a
from opentsm.protocol.resume import join_proof, resume_proof
from opentsm.protocol.server import Entropy, ServerSession, ServerSettings
from opentsm.protocol.states import Server
from opentsm.types import (
    NO_REDUNDANCY,
    UNASSIGNED_TSID,
    Code,
    Path,
    PathMode,
    Redundancy,
    Service,
    ServiceAction,
    Tsid,
)
from opentsm.wire import messages as m
from tests.sim.chaos import FLOWS, LEASES, WISHES, Half

SECRET = bytes(range(32))
OTHER_BINDING = b"o" * 32
SETTINGS = ServerSettings(services=frozenset({Service.DDT, Service.SIP, Service.REDUNDANCY}))
JOINABLE = (Server.ACTIVE, Server.PERSISTENT)


class ServerHalf(Half):
    """A server's session and a client that may ask for anything."""

    weights = {  # noqa: RUF012
        "wait": 6, "configure": 6, "decide": 8, "ask": 10, "datagram": 6, "complete": 6, "lose": 1,
        "silence": 2, "life": 3, "idle": 1, "release": 2, "terminate": 1, "resume": 4, "judge": 2,
        "spread": 5, "join": 6, "leave": 2, "give_back": 1, "lose_further": 1,
    }  # fmt: skip

    def begin(self) -> None:
        super().begin()
        ids = iter(range(50, 1_000_000))
        self.session = ServerSession(
            SETTINGS, entropy=Entropy(tsid=lambda: Tsid(next(ids)), secret=lambda tsid, generation: SECRET)
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
            self.spread,
            self.join,
        )
        for stage in stages[: self.chance.choice((0, 3, 6, 7, 9))]:
            stage()
            self.drain()

    def carry_out(self, action: a.Action) -> None:
        super().carry_out(action)
        if isinstance(action, a.Authenticate | a.Allocate):
            self.pending.append(type(action).__name__)

    def wish(self) -> Redundancy:
        wish: Redundancy = self.session.streams.redundancy
        return wish

    def check_further(self) -> None:
        super().check_further()
        further = self.further
        assert further.used | further.leaving == further.open == further.attached, further
        assert len(further.used | further.reserved) < MAX_STREAMS, further

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

    def spread(self) -> None:
        """The client wants media on more streams, on fewer, or on one."""
        if self.session.tsid is None:
            return
        wish = self.chance.choice((None, *WISHES, *WISHES[1:]))
        action = ServiceAction.ENABLE if wish != NO_REDUNDANCY else ServiceAction.DISABLE
        request = m.ServiceRequest(
            tsid=self.session.tsid,
            sequence=self.next(),
            service=Service.REDUNDANCY,
            action=action,
            redundancy=wish,
        )
        self.session.receive(Path.STREAM, request, self.now)

    def join(self) -> None:
        """A new stream comes with a proof: a good one, one of another connection, one that was used, or one
        for a place that is no more."""
        if not self.further.known:
            return
        tsid = self.chance.choice(sorted(self.further.reserved) or self.further.known)
        stolen = self.chance.random() < 0.2
        proof = join_proof(SECRET, tsid, OTHER_BINDING if stolen else bytes(32))
        request = m.ConfigurationRequest(tsid=tsid, sequence=1, join_proof=proof)
        may = self.session.verify_join(request, bytes(32))
        assert may == (tsid in self.further.reserved and not stolen and self.session.state in JOINABLE)
        if may:
            self.session.join(request, self.now)

    def leave(self) -> None:
        """The client gives a further stream back on that stream itself, and then perhaps closes it."""
        if not self.further.known:
            return
        tsid = self.some_further()
        if tsid in self.further.open:
            self.session.streams.receive(tsid, m.ReleaseRequest(tsid=tsid, sequence=self.next()), self.now)
        if self.chance.random() < 0.3:
            self.drain()
            self.session.streams.lost(tsid, "closed", self.now)

    def give_back(self) -> None:
        """The client says on its main stream that a further one is no more."""
        if self.further.known and self.session.tsid is not None:
            tsid = self.chance.choice(self.further.known)
            request = m.ReleaseRequest(tsid=self.session.tsid, sequence=self.next(), tunnel_id=tsid)
            self.session.receive(Path.STREAM, request, self.now)
