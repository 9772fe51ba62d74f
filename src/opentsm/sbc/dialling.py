"""Where to open a connection when the one that a message should go by is gone.

Answers: RFC 3261 section 18.2.2, the source's address and the port that its Via names. Requests: the same
neighbour, at the port that the next hop's URI names. Both only ever lead to the address the neighbour had.
"""

from __future__ import annotations

from typing import Final

from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

from .headers import is_literal, name_addr_untrusted, uri_untrusted, via_untrusted
from .hop import Hop
from .message import Request

DEFAULT_PORT: Final = 5060


def for_answers(hop: Hop, request: Request) -> SocketAddress | None:
    """Where to take answers to a request whose connection is gone; None: nowhere (or no connection is
    needed)."""
    vias = request.values("Via")
    if not hop.reliable or not vias:
        return None
    try:
        port = via_untrusted(vias[0]).port
    except RemoteProtocolError:
        return None
    return hop.remote[0], port or DEFAULT_PORT


def for_request(hop: Hop, request: Request) -> SocketAddress | None:
    """Where to take a request whose connection is gone; None: where the hop says."""
    if not hop.reliable:
        return None
    routes = request.values("Route")
    try:
        uri = uri_untrusted(name_addr_untrusted(routes[0]).uri if routes else request.uri)
    except RemoteProtocolError:
        return None
    return (hop.remote[0], uri.port or DEFAULT_PORT) if is_literal(uri.host, hop.remote[0]) else None
