"""The server's answers as values, made from what it decided; nothing here decides anything."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from opentsm.protocol.actions import Lease, Terminated
from opentsm.protocol.core import code_label
from opentsm.types import Code, IpAddress, Service, SocketAddress, Tsid
from opentsm.wire import messages as m


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client gets no tunnel, or loses the one it has.

    Args:
        code: what the message says.
        text: for people; at most 255 bytes.
        retry_after: seconds before the client shall come again, or None.
    """

    code: Code
    text: str = ""
    retry_after: float | None = None

    def as_event(self) -> Terminated:
        return Terminated(code_label(self.code), self.code, self.text, self.retry_after)


def endpoint(peer: SocketAddress) -> tuple[IpAddress, int]:
    """The outer address as a TLV has it: without an IPv6 zone, which means nothing to the client."""
    return ip_address(peer[0].partition("%")[0]), peer[1]


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def lease_fields(lease: Lease) -> dict[str, Any]:
    """A lease as fields of a Configuration Response."""
    return {
        "inner_ipv4": lease.ipv4,
        "inner_ipv6": lease.ipv6,
        "dns_servers": lease.dns_servers,
        "sip_server": lease.sip_server,
    }


def configuration_refused(request: m.ConfigurationRequest, refusal: Refusal) -> m.ConfigurationResponse:
    return m.ConfigurationResponse(
        tsid=request.tsid,
        sequence=request.sequence,
        code=refusal.code,
        text=refusal.text or None,
        retry_after_ms=milliseconds(refusal.retry_after),
    )


def service_answer(
    request: m.ServiceRequest,
    code: Code,
    *,
    tunnel_id: Tsid | None = None,
    join_secret: bytes | None = None,
    offered: tuple[Service, ...] = (),
) -> m.ServiceResponse:
    return m.ServiceResponse(
        tsid=request.tsid,
        sequence=request.sequence,
        code=code,
        service=request.service,
        tunnel_id=tunnel_id,
        join_secret=join_secret,
        offered_services=offered,
    )
