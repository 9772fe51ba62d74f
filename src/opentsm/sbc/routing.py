"""Where a request goes: RFC 3261 sections 16.3 to 16.5, as one decision without side effects.

This is no open relay: a request goes to a registered contact, or along a dialog, or nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from sipmessage import URI

from opentsm.errors import RemoteProtocolError

from .dialogs import Call
from .forking import Target
from .headers import Essentials, name_addr_untrusted, scheme_of, uri_untrusted
from .hop import Hop
from .location import Binding
from .message import MAX_VALUES, Request
from .parties import Client, Side
from .shared import Refusal, Shared


@dataclass(frozen=True, slots=True)
class Plan:
    """Targets in groups of equal q, the first group first; the call, and who of it sent the request."""

    groups: tuple[tuple[Target, ...], ...]
    call: Call | None = None
    side: Side = Side.CALLER


class ForUs:
    """The request is for the SBC itself."""


def take_own_routes(shared: Shared, request: Request) -> Hop | None:
    """Remove Route values that name us (section 16.4) and return the hop of the last token among them.

    A strict router's Request-URI is put right. The request is changed.

    Raises:
        RemoteProtocolError: a Route cannot be read, or names us with a token that we never made.
    """
    routes = request.values("Route")
    if len(routes) > MAX_VALUES:
        raise RemoteProtocolError("too-many-routes", str(len(routes)))
    if (hop := _token_of(shared, request.uri)) is not None and routes:
        request.uri = name_addr_untrusted(routes.pop()).uri
    while routes:
        uri = name_addr_untrusted(routes[0]).uri
        if scheme_of(uri) not in ("sip", "sips"):
            break
        parsed = uri_untrusted(uri)
        if not shared.is_own(parsed.host, parsed.port):
            break
        routes.pop(0)
        if parsed.user:
            hop = shared.tokens.hop_untrusted(parsed.user)
    request.set_values("Route", routes)
    return hop


def _token_of(shared: Shared, uri: str) -> Hop | None:
    try:
        parsed = uri_untrusted(uri)
        return (
            shared.tokens.hop_untrusted(parsed.user or "")
            if shared.is_own(parsed.host, parsed.port)
            else None
        )
    except RemoteProtocolError:
        return None


def plan(
    shared: Shared, hop: Hop, request: Request, essentials: Essentials, client: Client | None
) -> Plan | Refusal | ForUs:
    """Decide about any request but REGISTER and CANCEL. Removes our own Routes from the request.

    Raises:
        RemoteProtocolError: a field cannot be read; the answer is 400.
    """
    token = take_own_routes(shared, request)
    if essentials.to.tag:
        call = shared.calls.find(essentials.call_id, essentials.from_.tag, essentials.to.tag)
        if call is not None:
            return _within_call(call, hop, request, essentials, token)
        if client is None:
            return Refusal(403, "Not from a tunnel", "not-tunnelled")
        if token is not None:
            return Plan(((Target(token, request.uri),),))
    else:
        if _is_ping(shared, request):
            return ForUs()
        refusal = _may_call(shared, hop, essentials, client)
        if refusal is not None:
            return refusal
        if token is not None:
            return Plan(((Target(token, request.uri),),))
    if request.values("Route"):
        return Refusal(403, "Relaying denied", "no-relay")
    found = _by_uri(shared, request)
    if isinstance(found, Refusal) and found.code in (404, 480) and essentials.to.tag:
        return Refusal(481, "Call Does Not Exist", "no-such-call")
    return found


def _is_ping(shared: Shared, request: Request) -> bool:
    if request.method != "OPTIONS" or scheme_of(request.uri) not in ("sip", "sips"):
        return False
    uri = uri_untrusted(request.uri)
    return not uri.user and shared.is_own(uri.host, uri.port)


def _within_call(
    call: Call, hop: Hop, request: Request, essentials: Essentials, token: Hop | None
) -> Plan | Refusal:
    """A request of a dialog we know goes to the other side, by the token it brings or, from a phone that
    forgets its route set, by what we know."""
    side = call.side_of(essentials.from_.tag)
    if not call.party(side).owns(hop.remote[0]):
        return Refusal(403, "Not your call", "not-a-party")
    return Plan(((Target(token or call.party(side.other).hop, request.uri),),), call, side)


def _may_call(shared: Shared, hop: Hop, essentials: Essentials, client: Client | None) -> Refusal | None:
    """A new call or message comes from a registered user, in its own name."""
    if client is None:
        return Refusal(403, "Not from a tunnel", "not-tunnelled")
    users = shared.location.at(hop.remote[0])
    if not users:
        return Refusal(403, "Register first", "caller-unregistered")
    if scheme_of(essentials.from_.uri) not in ("sip", "sips"):
        return Refusal(403, "Use your registered name", "caller-foreign-name")
    if _aor(shared, uri_untrusted(essentials.from_.uri)) not in users:
        return Refusal(403, "Use your registered name", "caller-foreign-name")
    return None


def _aor(shared: Shared, uri: URI) -> str:
    """The address-of-record of a URI; our addresses count as our domain."""
    host = shared.settings.domain if shared.is_own(uri.host, None) else uri.host.lower()
    return f"{uri.user or ''}@{host}"


def _by_uri(shared: Shared, request: Request) -> Plan | Refusal:
    scheme = scheme_of(request.uri)
    if scheme not in ("sip", "sips", "tel"):
        return Refusal(416, "", "unknown-scheme")
    uri = uri_untrusted(request.uri)
    if scheme == "tel" or shared.is_own(uri.host, uri.port):
        return _by_user(shared, uri.user or "")
    return _by_contact(shared, uri)


def _by_user(shared: Shared, user: str) -> Plan | Refusal:
    bindings = [b for b in shared.location.of(f"{user}@{shared.settings.domain}") if _is_theirs(shared, b)]
    if not bindings:
        if shared.credentials.knows(user):
            return Refusal(480, "", "user-not-registered")
        return Refusal(404, "", "unknown-user")
    groups: dict[float, list[Target]] = {}
    for binding in bindings:
        groups.setdefault(binding.q, []).append(_target(binding))
    return Plan(tuple(tuple(group) for group in groups.values()))


def _by_contact(shared: Shared, uri: URI) -> Plan | Refusal:
    """A URI of one phone, as in a Refer-To of an attended transfer."""
    host = uri.host.strip("[]")
    for aor in sorted(shared.location.at(host)):
        for binding in shared.location.of(aor):
            contact = uri_untrusted(binding.contact)
            same = (contact.user, contact.host, contact.port or 5060) == (
                uri.user,
                uri.host,
                uri.port or 5060,
            )
            if same and _is_theirs(shared, binding):
                return Plan(((_target(binding),),))
    return Refusal(404, "", "unknown-user")


def _is_theirs(shared: Shared, binding: Binding) -> bool:
    """Whether the inner address still belongs to who registered from it: it may have been leased anew."""
    client = shared.identity_of(binding.hop.remote[0])
    return client is not None and client.name == binding.owner


def _target(binding: Binding) -> Target:
    return Target(binding.hop, binding.contact, binding.path)
