"""One half of a session and the words to talk to it: say something, see what it does."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, TypeVar

from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSession, ClientSettings
from opentsm.protocol.server import Entropy, ServerSession, ServerSettings
from opentsm.types import UNASSIGNED_TSID, Code, Flow, Path, PathMode, Protocol, Service, ServiceAction, Tsid
from opentsm.wire import messages as m

T = TypeVar("T")

FLOW = Flow(Protocol.UDP, 4000)
OTHER = Flow(Protocol.UDP, 4002)
STREAM_TSID = Tsid(0x51)
DDT_TSID = Tsid(0xD1)
SECRET = b"s" * 32
BINDING = b"b" * 32
IPV4 = IPv4Interface("10.0.0.2/16")
IPV6 = IPv6Interface("fd00::2/64")
LEASE = a.Lease(IPV4, IPV6)
PEER = ("192.0.2.9", 5000)


class Talk:
    """Drains a session after every input; ``said`` and ``did`` look at what came out since ``clear``."""

    def __init__(self, session: Any) -> None:
        self.session: Any = session
        self.now = 100.0
        self.log: list[Any] = []

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """An input; ``now`` is given last unless the method wants it first."""
        order = (self.now, *args) if method in ("stream_ready", "tick") else (*args, self.now)
        result = getattr(self.session, method)(*order, **options)
        self.log += self.session.actions()
        return result

    def hear(self, path: Path, message: m.Message) -> None:
        self.call("receive", path, message)

    def wait(self, seconds: float) -> None:
        """Time passes; every deadline on the way is kept."""
        until = self.now + seconds
        for _ in range(1000):
            deadline = self.session.deadline()
            if deadline is None or deadline.at > until:
                break
            self.now = max(self.now, deadline.at)
            self.call("tick")
        else:
            raise AssertionError("the deadline does not move on")
        self.now = until

    def clear(self) -> None:
        self.log.clear()

    def did(self, kind: type[T]) -> list[T]:
        return [action for action in self.log if isinstance(action, kind)]

    def said(self, kind: type[T], path: Path = Path.STREAM) -> list[T]:
        sent = [action.message for action in self.did(a.Send) if action.path is path]
        return [message for message in sent if isinstance(message, kind)]

    def told(self, kind: type[T]) -> list[T]:
        events = [action.event for action in self.did(a.Notify)]
        return [event for event in events if isinstance(event, kind)]

    @property
    def order(self) -> list[str]:
        return [type(action).__name__ for action in self.log]


class ClientTalk(Talk):
    """A client half; the test plays the server."""

    session: ClientSession

    def __init__(self, **settings: Any) -> None:
        super().__init__(ClientSession(ClientSettings(client_id=b"me", **settings), fraction=lambda: 0.5))

    def connect(self) -> ClientTalk:
        self.call("stream_ready", binding=BINDING)
        self.configure()
        self.clear()
        return self

    def configure(
        self, *, address: IPv4Interface = IPV4, secret: bytes | None = SECRET, **fields: Any
    ) -> None:
        """The server grants the last Configuration Request on the stream."""
        request = self.said(m.ConfigurationRequest)[-1]
        self.hear(
            Path.STREAM,
            m.ConfigurationResponse(
                tsid=STREAM_TSID,
                sequence=request.sequence,
                code=Code.SUCCESS,
                inner_ipv4=address,
                keepalive_ms=30000,
                resume_secret=secret,
                **fields,
            ),
        )

    def refuse(self, code: Code, **fields: Any) -> None:
        request = self.said(m.ConfigurationRequest)[-1]
        answer = m.ConfigurationResponse(tsid=request.tsid, sequence=request.sequence, code=code, **fields)
        self.hear(Path.STREAM, answer)

    def answer(
        self, request: m.Message, code: Code = Code.SUCCESS, tunnel_id: Tsid | None = DDT_TSID
    ) -> None:
        """The server answers a Service Request or a Release Request."""
        if isinstance(request, m.ServiceRequest):
            named = tunnel_id if request.action == ServiceAction.ENABLE and code is Code.SUCCESS else None
            self.hear(
                Path.STREAM,
                m.ServiceResponse(tsid=STREAM_TSID, sequence=request.sequence, code=code, tunnel_id=named),
            )
        else:
            self.hear(Path.STREAM, m.ReleaseResponse(tsid=STREAM_TSID, sequence=request.sequence, code=code))

    def answer_all(self, tunnel_id: Tsid = DDT_TSID) -> None:
        """Success for every request said so far and not answered; then the log is clear of them."""
        while requests := [*self.said(m.ServiceRequest), *self.said(m.ReleaseRequest)]:
            self.log = [x for x in self.log if not (isinstance(x, a.Send) and x.message in requests)]
            for request in requests:
                self.answer(request, tunnel_id=tunnel_id)

    def open_ddt(self, tsid: Tsid = DDT_TSID, *, address: IPv4Interface = IPV4) -> None:
        """The DTLS handshake and the Configuration exchange of a DDT that has been asked for."""
        assert self.call("datagram_ready", tsid)
        self.configure_ddt(address=address)

    def configure_ddt(self, *, address: IPv4Interface = IPV4, code: Code = Code.SUCCESS) -> None:
        request = self.said(m.ConfigurationRequest, Path.DATAGRAM)[-1]
        self.hear(
            Path.DATAGRAM,
            m.ConfigurationResponse(
                tsid=request.tsid,
                sequence=request.sequence,
                code=code,
                inner_ipv4=address,
                keepalive_datagram_ms=500,
            ),
        )

    def with_ddt(self, *flows: Flow) -> ClientTalk:
        """Connected, with these flows on a DDT."""
        self.connect()
        for flow in flows or (FLOW,):
            self.call("set_mode", flow, PathMode.DATAGRAM)
        self.answer_all()
        self.open_ddt()
        self.clear()
        return self


class ServerTalk(Talk):
    """A server half; the test plays the client."""

    session: ServerSession

    def __init__(self, services: Sequence[Service] = (Service.SIP, Service.DDT), **settings: Any) -> None:
        self._tsids = iter(Tsid(n) for n in (STREAM_TSID, *range(0xD1, 0x1000)))
        entropy = Entropy(
            tsid=lambda: next(self._tsids), secret=lambda tsid, generation: bytes([generation + 1]) * 32
        )
        chosen = ServerSettings(services=frozenset(services), persistence=60.0, **settings)
        super().__init__(ServerSession(chosen, entropy=entropy))
        self._sequence = 0
        self.call("stream_ready", binding=BINDING, peer=PEER)

    def sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def ask_configuration(self, **fields: Any) -> None:
        tsid = fields.pop("tsid", UNASSIGNED_TSID)
        self.hear(Path.STREAM, m.ConfigurationRequest(tsid=tsid, sequence=self.sequence(), **fields))

    def connect(self) -> ServerTalk:
        self.ask_configuration(username="al", password=b"pw")
        self.call("authenticated", "alice")
        self.call("leased", LEASE)
        self.clear()
        return self

    def ask_service(
        self, action: int = ServiceAction.ENABLE, *flows: Flow, **fields: Any
    ) -> m.ServiceResponse:
        service = fields.pop("service", Service.DDT)
        request = m.ServiceRequest(
            tsid=STREAM_TSID, sequence=self.sequence(), service=service, action=action, flows=flows, **fields
        )
        self.hear(Path.STREAM, request)
        answer = self.said(m.ServiceResponse)[-1]
        assert answer.sequence == request.sequence
        return answer

    def ask_ddt_configuration(self, tsid: Tsid = DDT_TSID, sequence: int | None = None) -> None:
        sequence = self.sequence() if sequence is None else sequence
        self.hear(Path.DATAGRAM, m.ConfigurationRequest(tsid=tsid, sequence=sequence))

    def with_ddt(self, *flows: Flow) -> ServerTalk:
        """Connected, with these flows on a DDT."""
        self.connect()
        self.ask_service(ServiceAction.ENABLE, *(flows or (FLOW,)))
        assert self.call("datagram_ready", DDT_TSID)
        self.ask_ddt_configuration()
        self.clear()
        return self
