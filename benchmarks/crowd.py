"""Many clients of a real server in one process: ``python -m benchmarks.crowd --help``.

Each client is a real one to the server (TLS, a Configuration exchange, on demand a Service exchange and
DTLS), but all share one user plane and none has the SDK's timers and objects, so that ten thousand fit a
process and cost little. Orders come as lines on standard input, each answered by one JSON line on standard
output:

    streams N       open N more stream tunnels
    datagrams       give every client that has none its datagram tunnel
    ping            one keepalive on every tunnel; says how many were answered
    end             close everything
"""

from __future__ import annotations

import argparse
import errno
import json
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentsm.errors import RemoteProtocolError
from opentsm.types import UNASSIGNED_TSID, Code, PathMode, Service, ServiceAction, Tsid
from opentsm.userplane._core import ControlMessage, DatagramReady, StreamReady, TunnelClosed, UserPlane
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import (
    AddressFamilies,
    ConfigurationRequest,
    ConfigurationResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    ServiceRequest,
    ServiceResponse,
)

AT_ONCE: Final = 64
"""Clients on their way in at any moment: enough to keep a server busy, fewer than its listen queue."""

STEP: Final = 60.0
"""Seconds without any progress after which an order is given up."""

SPARE_FILES: Final = 64
"""Descriptors that are not tunnels' sockets."""


@dataclass(slots=True)
class Member:
    """One client: its tunnels and what the server said."""

    session: int
    stream: int
    tsid: Tsid = UNASSIGNED_TSID
    datagram: int | None = None
    datagram_tsid: Tsid | None = None
    up: bool = False


class Crowd:
    """All clients of this process.

    Args:
        server: address and port, the same for TCP and UDP.
        source: address to come from.
        ca_pem: who signed the server's certificate.
        token: credentials; None: the server lets anybody in.
    """

    def __init__(self, server: tuple[str, int], source: str, ca_pem: bytes, token: bytes | None) -> None:
        self._plane = UserPlane(workers=1)
        self._server, self._source, self._token = server, source, token
        self._profile = self._plane.client_tls(ca_pem=ca_pem)
        self.members: list[Member] = []
        self._by_tunnel: dict[int, Member] = {}
        self._moving = 0
        self._answers = 0
        self.failures: dict[str, int] = {}

    def streams(self, count: int) -> dict[str, object]:
        """Open so many more clients; ends early at the first that this machine has no descriptor for."""
        limit = ""
        waiting = deque(range(count))

        def begin() -> bool:
            nonlocal limit
            if not waiting:
                return False
            waiting.popleft()
            try:
                self._open_stream()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL):
                    raise
                limit = str(error)
                waiting.clear()
                return False
            return True

        seconds = self._run(begin)
        return {"streams": self._up(), "seconds": seconds, "limit": limit, "failures": self.failures}

    def datagrams(self) -> dict[str, object]:
        """A datagram tunnel for everybody who has none."""
        waiting = deque(member for member in self.members if member.up and member.datagram_tsid is None)

        def begin() -> bool:
            if not waiting:
                return False
            member = waiting.popleft()
            request = ServiceRequest(
                tsid=member.tsid,
                sequence=2,
                service=Service.DDT,
                action=ServiceAction.ENABLE,
                mode=PathMode.DATAGRAM,
            )
            self._moving += 1
            self._plane.send_control(member.stream, encode(request))
            return True

        seconds = self._run(begin)
        up = sum(member.datagram is not None and member.up for member in self.members)
        return {"datagrams": up, "seconds": seconds, "failures": self.failures}

    def ping(self) -> dict[str, object]:
        """Ask every tunnel whether the server still answers on it."""
        self._answers = 0
        asked = 0
        waiting = deque(
            (tunnel, tsid)
            for member in self.members
            for tunnel, tsid in ((member.stream, member.tsid), (member.datagram, member.datagram_tsid))
            if member.up and tunnel is not None and tsid is not None
        )

        def begin() -> bool:
            nonlocal asked
            if not waiting:
                return False
            tunnel, tsid = waiting.popleft()
            self._plane.send_control(tunnel, encode(KeepaliveRequest(tsid=tsid, sequence=9, timestamp=1)))
            self._moving += 1
            asked += 1
            return True

        seconds = self._run(begin, patience=5.0)
        return {"asked": asked, "answered": self._answers, "seconds": seconds}

    def end(self) -> dict[str, object]:
        """Close everything."""
        self._plane.shutdown(0)
        return {"ended": len(self.members)}

    def _up(self) -> int:
        return sum(member.up for member in self.members)

    # -- one order ------------------------------------------------------------------------------------

    def _run(self, begin: Callable[[], bool], patience: float = STEP) -> float:
        """Keep ``AT_ONCE`` clients moving until ``begin`` has no more and all are in (or nothing moves)."""
        started = last = time.monotonic()
        self._moving = 0
        more = True
        while more or self._moving > 0:
            while more and self._moving < AT_ONCE:
                more = begin()
            if not self._moving:
                continue
            select.select([self._plane.event_fd], [], [], 0.2)
            events = self._plane.poll()
            if events:
                last = time.monotonic()
            elif time.monotonic() - last > patience:
                break
            for event in events:
                self._handle(event)
        return time.monotonic() - started

    def _open_stream(self) -> None:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            opened.bind((self._source, 0))
            opened.setblocking(False)
            opened.connect_ex(self._server)
        except OSError:
            opened.close()
            raise
        stream = self._plane.attach_stream(
            opened.detach(), tls_profile=self._profile, server_name=self._server[0]
        )
        member = Member(session=len(self.members) + 1, stream=stream)
        self.members.append(member)
        self._by_tunnel[stream] = member
        self._moving += 1

    def _handle(self, event: object) -> None:
        match event:
            case StreamReady(tunnel=tunnel):
                request = ConfigurationRequest(
                    tsid=UNASSIGNED_TSID, sequence=1, password=self._token, families=AddressFamilies.IPV4
                )
                self._plane.send_control(tunnel, encode(request))
            case DatagramReady(tunnel=tunnel):
                member = self._by_tunnel[tunnel]
                assert member.datagram_tsid is not None
                self._plane.attach(member.session, tunnel, member.datagram_tsid)
                request = ConfigurationRequest(tsid=member.datagram_tsid, sequence=1)
                self._plane.send_control(tunnel, encode(request))
            case ControlMessage(tunnel=tunnel, data=data):
                self._message(self._by_tunnel[tunnel], tunnel, data)
            case TunnelClosed(tunnel=tunnel, reason=reason):
                self._closed(tunnel, reason)
            case _:
                pass

    def _message(self, member: Member, tunnel: int, data: bytes) -> None:
        try:
            message = decode_untrusted(data)
        except RemoteProtocolError:
            self._fail("unreadable")
            return
        match message:
            case ConfigurationResponse(code=Code.SUCCESS) if tunnel == member.stream:
                self._configured(member, message)
            case ConfigurationResponse(code=Code.SUCCESS):
                member.datagram = tunnel
                self._moving -= 1
            case ServiceResponse(code=Code.SUCCESS, tunnel_id=tsid) if tsid is not None:
                self._open_datagram(member, tsid)
            case KeepaliveResponse():
                self._answers += 1
                self._moving -= 1
            case ConfigurationResponse(code=code) | ServiceResponse(code=code):
                self._fail(str(code))
            case _:
                pass

    def _configured(self, member: Member, message: ConfigurationResponse) -> None:
        assert message.inner_ipv4 is not None
        member.tsid, member.up = message.tsid, True
        self._plane.session_open(
            member.session, role="client", addresses=[str(message.inner_ipv4.ip)], sink="local"
        )
        self._plane.attach(member.session, member.stream, message.tsid)
        self._moving -= 1

    def _open_datagram(self, member: Member, tsid: Tsid) -> None:
        member.datagram_tsid = tsid
        try:
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            self._fail(str(error))
            return
        opened.bind((self._source, 0))
        opened.connect(self._server)
        opened.setblocking(False)
        tunnel = self._plane.attach_datagram(
            opened.detach(), dtls=True, tsid=tsid, stream=member.stream, rtt_hint_ms=500
        )
        self._by_tunnel[tunnel] = member

    def _closed(self, tunnel: int, reason: str) -> None:
        member = self._by_tunnel.pop(tunnel)
        if tunnel == member.stream:
            moving, member.up = not member.up, False
        else:
            moving, member.datagram = member.datagram is None, None
        if moving:
            self._fail(reason)
        else:
            self.failures[f"lost: {reason}"] = self.failures.get(f"lost: {reason}", 0) + 1

    def _fail(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1
        self._moving -= 1


def main() -> None:
    """Obey orders until `end` or the end of input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--source", default="127.0.0.1")
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--token")
    options = parser.parse_args()
    token = options.token.encode() if options.token else None
    crowd = Crowd((options.server, options.port), options.source, options.ca.read_bytes(), token)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps({"ready": True, "files": hard - SPARE_FILES}), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["streams", count]:
                answer = crowd.streams(int(count))
            case ["datagrams"]:
                answer = crowd.datagrams()
            case ["ping"]:
                answer = crowd.ping()
            case ["end"]:
                print(json.dumps(crowd.end()), flush=True)
                return
            case _:
                answer = {"error": f"not an order: {line.strip()}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
