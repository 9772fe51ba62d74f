"""The client's half among servers that may say anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentsm.limits import PAIR_MISSING_WARN
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSession, ClientSettings
from opentsm.protocol.client_requests import ANSWER_TIMER
from opentsm.protocol.states import Client, ClientStream
from opentsm.types import UNASSIGNED_TSID, Code, Path, PathMode, Redundancy, Service, ServiceAction, Tsid
from opentsm.wire import messages as m
from tests.sim.chaos import LEASES, WISHES, Half

SECRET = bytes(range(32))


class ClientHalf(Half):
    """A client among servers that may say anything."""

    weights = {  # noqa: RUF012
        "wait": 6, "answer": 16, "stream": 4, "fail": 1, "datagram": 6, "lose": 1, "silence": 2, "life": 3,
        "network": 1, "move": 1, "missed": 1, "switch": 5, "whole": 1, "said": 2, "close": 1,
        "spread": 3, "connect_further": 5, "answer_further": 6, "lose_further": 1, "end_further": 1,
    }  # fmt: skip

    def begin(self) -> None:
        super().begin()
        self.session = ClientSession(ClientSettings(client_id=b"id"), fraction=self.chance.random)
        self.opening: Tsid | None = None
        self.numbers = 0
        self.places = 1000
        self.get_on(self.chance.choice((0, 0, 3, 8, 20)))
        if self.chance.random() < 0.2:
            self.get_together()

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

    def get_together(self) -> None:
        """A life with media on two streams or more already."""
        success, self.success = self.success, 1.0
        wish = self.chance.choice(WISHES[1:])
        self.session.set_redundancy(wish, self.now)
        self.drain()
        for _ in range(wish.streams - 1):
            for stage in (self.newest, self.connect_further, self.answer_further):
                stage()
                self.drain()
        self.success = success

    def wish(self) -> Redundancy:
        wish: Redundancy = self.session.streams.wish
        return wish

    def check_further(self) -> None:
        super().check_further()
        streams, further = self.session.streams, self.further
        assert len(further.used) < streams.wish.streams, f"{further} are used against the wish"
        unwanted = set(streams.states[streams.wish.streams - 1 :])
        assert not unwanted & {ClientStream.OPENING, ClientStream.UP, ClientStream.WAITING}, streams.states
        waits = self.session.state in (Client.ACTIVE, Client.RELEASING) and self.session._core.armed(
            ANSWER_TIMER
        )
        assert waits or ClientStream.REQUESTED not in streams.states, "an answer is awaited that cannot come"

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
            case m.ServiceRequest(service=Service.REDUNDANCY):
                answer = m.ServiceResponse(**head, service=Service.REDUNDANCY, **self.place(request))
            case m.ServiceRequest():
                self.numbers += self.chance.random() < self.forgetful
                answer = m.ServiceResponse(**head, service=Service.DDT, tunnel_id=Tsid(100 + self.numbers))
            case m.ReleaseRequest():
                answer = m.ReleaseResponse(**head, tunnel_id=request.tunnel_id)
            case _:
                return
        self.session.receive(path, answer, self.now)

    def place(self, request: m.ServiceRequest) -> dict[str, Any]:
        """A further stream for one who asks for it; some servers name none, or one that is in use."""
        if request.action is not ServiceAction.ENABLE or self.chance.random() < 0.05:
            return {}
        self.places += self.chance.random() >= self.forgetful
        return {"tunnel_id": Tsid(self.places), "join_secret": SECRET}

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
        """The server has had no datagram half for as long as it takes to say so; perhaps all calls have just
        ended."""
        if not self.closed and self.chance.random() < 0.2:
            self.session.want_ddt(False, self.now)
            for flow in self.flows:
                self.session.unset(flow, self.now)
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
        by = [message.tsid for path, message in self.asked if path is Path.STREAM]
        tsid = by[-1] if by and self.chance.random() < 0.7 else self.tsid
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

    def spread(self) -> None:
        """The application wants its media on more streams, on fewer, or on one."""
        self.session.set_redundancy(self.chance.choice(WISHES), self.now)

    def connect_further(self) -> None:
        """One that was asked for is connected, or one that nobody wants any more."""
        if self.further.known:
            new = sorted(self.further.open - self.further.attached)
            tsid = self.chance.choice(new) if new else self.some_further()
            self.session.streams.ready(tsid, self.now, bytes(32))

    def answer_further(self) -> None:
        """A request on a further stream is answered, perhaps again."""
        if not self.said_further:
            return
        newest = self.chance.random() < 0.8
        tsid, request = self.said_further[-1] if newest else self.chance.choice(self.said_further)
        head: dict[str, Any] = {"tsid": tsid, "sequence": request.sequence, "code": self.code()}
        lease = self.session.configuration.lease.ipv4 if self.chance.random() < 0.95 else LEASES[1]
        match request:
            case m.ConfigurationRequest():
                answer: m.Message = m.ConfigurationResponse(**head, inner_ipv4=lease)
            case m.ReleaseRequest():
                answer = m.ReleaseResponse(**head)
            case _:
                return
        self.session.streams.receive(tsid, answer, self.now)

    def end_further(self) -> None:
        """The server gives one back."""
        if self.further.known:
            tsid = self.some_further()
            self.session.streams.receive(tsid, m.ReleaseRequest(tsid=tsid, sequence=9), self.now)
