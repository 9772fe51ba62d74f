"""Where a request goes: RFC 3261 sections 16.3 to 16.5, as one decision without side effects.

This is no open relay: a request goes to a registered contact, along a dialog, or from a registered user to a
trunk; or nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sipmessage import URI

from opentsm.errors import RemoteProtocolError

from .dialogs import Call
from .forking import Target
from .headers import Essentials, is_literal, name_addr_untrusted, scheme_of, uri_untrusted, url_host
from .hop import Hop
from .location import CORE_OWNER, Binding
from .message import MAX_VALUES, Request
from .parties import Client, Side
from .settings import EVERYTHING, Trunk
from .shared import Refusal, Shared

DEFAULT_PORT: Final = 5060
"""RFC 3261 section 19.1.2: what a SIP URI without a port means."""


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
        if client is None and not _is_trusted(shared, hop):
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
    found = _by_uri(shared, request, outward=shared.trunk_of(hop) is None)
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
    if not call.party(side).owns(hop.source):
        return Refusal(403, "Not your call", "not-a-party")
    return Plan(((Target(token or call.party(side.other).hop, request.uri),),), call, side)


def _is_trusted(shared: Shared, hop: Hop) -> bool:
    """Whether somebody outside of the tunnels is known: as a trunk, or as a phone that registered from
    there."""
    return shared.trunk_of(hop) is not None or (hop.core and bool(shared.location.at(hop.source)))


def _may_call(shared: Shared, hop: Hop, essentials: Essentials, client: Client | None) -> Refusal | None:
    """A new call or message comes from a registered user, in its own name, or from a trunk, in any."""
    if client is None:
        if (trunk := shared.trunk_of(hop)) is not None:
            refused = Refusal(403, "Not from this trunk", "trunk-calls-out-only")
            return None if trunk.calls_in else refused
        if not _is_trusted(shared, hop):
            return Refusal(403, "Not from a tunnel", "not-tunnelled")
    users = shared.location.at(hop.source)
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


def _by_uri(shared: Shared, request: Request, *, outward: bool) -> Plan | Refusal:
    """By Request-URI: our users first, then (``outward``) trunks. What comes from a trunk leaves by none."""
    scheme = scheme_of(request.uri)
    if scheme not in ("sip", "sips", "tel"):
        return Refusal(416, "", "unknown-scheme")
    uri = uri_untrusted(request.uri)
    if scheme == "tel" or shared.is_own(uri.host, uri.port):
        return _by_user(shared, uri.user or "", outward=outward)
    found = _by_contact(shared, uri)
    if isinstance(found, Refusal) and outward:
        trunk = trunk_for_domain(shared.settings.trunks, uri.host)
        return found if trunk is None else Plan(((Target(shared.hop_to(trunk), request.uri),),))
    return found


def trunk_for_number(trunks: Sequence[Trunk], user: str) -> Trunk | None:
    """The trunk with the longest beginning that fits; of equals the first."""
    fitting = [
        (0 if number == EVERYTHING else len(number), -index)
        for index, trunk in enumerate(trunks)
        for number in trunk.numbers
        if number == EVERYTHING or user.startswith(number)
    ]
    return trunks[-max(fitting)[1]] if fitting and user else None


def trunk_for_domain(trunks: Sequence[Trunk], host: str) -> Trunk | None:
    """The trunk that has this domain, or is at this address; else the one that takes all."""
    name = host.lower().rstrip(".")
    named = [t for t in trunks if name in map(str.lower, t.domains) or is_literal(name, t.address)]
    return next(iter(named or [trunk for trunk in trunks if EVERYTHING in trunk.domains]), None)


def _by_user(shared: Shared, user: str, *, outward: bool) -> Plan | Refusal:
    bindings = [b for b in shared.location.of(f"{user}@{shared.settings.domain}") if _is_theirs(shared, b)]
    if not bindings:
        trunk = trunk_for_number(shared.settings.trunks, user) if outward else None
        if trunk is not None and not shared.credentials.knows(user):
            place = "" if trunk.port == DEFAULT_PORT else f":{trunk.port}"
            uri = f"sip:{user}@{url_host(trunk.address)}{place}"
            return Plan(((Target(shared.hop_to(trunk), uri),),))
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
    for aor in sorted(shared.location.at(host) | shared.location.at(f"core {host}")):
        for binding in shared.location.of(aor):
            contact = uri_untrusted(binding.contact)
            same = (contact.user, contact.host, contact.port or DEFAULT_PORT) == (
                uri.user,
                uri.host,
                uri.port or DEFAULT_PORT,
            )
            if same and _is_theirs(shared, binding):
                return Plan(((_target(binding),),))
    return Refusal(404, "", "unknown-user")


def _is_theirs(shared: Shared, binding: Binding) -> bool:
    """Whether the inner address still belongs to who registered from it: it may have been leased anew."""
    if binding.hop.core:
        return binding.owner == CORE_OWNER
    client = shared.client_of(binding.hop)
    return client is not None and client.name == binding.owner


def _target(binding: Binding) -> Target:
    # A Contact may carry headers; a Request-URI may not.
    return Target(binding.hop, binding.contact.partition("?")[0], binding.path)
