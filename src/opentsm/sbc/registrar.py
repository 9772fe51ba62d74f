"""The registrar: RFC 3261 section 10.3, RFC 3327 (Path), RFC 5626 section 6 (instances), RFC 8760."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentsm.errors import RemoteProtocolError

from .digest import Nonces, Verdict, challenge, judge
from .headers import Essentials, NameAddr, credentials_untrusted, name_addr_untrusted, uri_untrusted
from .hop import Hop
from .location import CORE_OWNER, MAX_CONTACTS, Binding, Location
from .message import Request, Response, reply
from .parties import Client
from .settings import SbcSettings
from .users import Credentials

MAX_PARAMS: Final = 512
"""Characters of the parameters that are stored of a contact: instance, reg-id, q."""

_Q: Final = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a REGISTER led to.

    Attributes:
        event: a stable name for counters and logs.
        changed: the user whose bindings changed, or None.
    """

    response: Response
    event: str
    changed: str | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    """One Contact of a REGISTER, read."""

    key: str
    uri: str
    params: str
    q: float
    expires: int


class Registrar:
    """Judges REGISTERs and keeps the location table.

    Args:
        credentials: where digest hashes come from.
        tag: makes To tags.
    """

    def __init__(
        self,
        settings: SbcSettings,
        location: Location,
        credentials: Credentials,
        nonces: Nonces,
        tag: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._location = location
        self._credentials = credentials
        self._nonces = nonces
        self._tag = tag

    def register(
        self, now: float, hop: Hop, request: Request, essentials: Essentials, client: Client | None
    ) -> Outcome:
        """Answer one REGISTER.

        Raises:
            RemoteProtocolError: a header cannot be read; the answer is 400.
        """
        user = uri_untrusted(essentials.to.uri).user or ""
        if not user or not self._may_register(hop, user, client):
            return self._refuse(
                request, 403, "This tunnel may not register that name", "register-foreign-name"
            )
        verdict = self._judge(now, hop, request, user)
        if verdict is None:
            return self._challenge(now, hop, request, user, stale=False, event="register-challenged")
        if verdict is Verdict.STALE:
            return self._challenge(now, hop, request, user, stale=True, event="register-stale")
        if verdict is Verdict.MALFORMED:
            return self._refuse(request, 400, "Digest with qop=auth is needed", "register-bad-digest")
        if verdict is Verdict.BAD:
            return self._challenge(now, hop, request, user, stale=False, event="register-wrong-password")
        aor = f"{user}@{self._settings.domain}"
        return self._bind(now, hop, request, essentials, aor, client)

    def _may_register(self, hop: Hop, user: str, client: Client | None) -> bool:
        """A tunnel registers its own name; a phone on the core side, from where that is allowed, any name it
        has the password for."""
        if client is not None:
            return client.may_register(user)
        core = self._settings.core
        return hop.core and core is not None and core.may_register_from(hop.remote[0])

    # -- authentication ---------------------------------------------------------------------------
    def _judge(self, now: float, hop: Hop, request: Request, user: str) -> Verdict | None:
        """None: it brings no digest for our realm."""
        for line in request.lines("Authorization"):
            params = credentials_untrusted(line)
            if params.get("realm") != self._settings.domain:
                continue
            if params.get("username") != user:
                return Verdict.BAD
            return judge(
                now,
                self._nonces,
                params,
                realm=self._settings.domain,
                method=request.method,
                address=hop.remote[0],
                stored=self._stored,
            )
        return None

    def _stored(self, user: str, algorithm: str) -> str | None:
        if algorithm not in self._settings.digest_algorithms:
            return None
        return self._credentials.ha1(user, algorithm)

    def _challenge(
        self, now: float, hop: Hop, request: Request, user: str, *, stale: bool, event: str
    ) -> Outcome:
        """401 with a challenge for each algorithm the user has a hash for, the best first (RFC 8760)."""
        offered = self._settings.digest_algorithms
        usable = [name for name in offered if self._credentials.ha1(user, name) is not None]
        response = self._reply(request, 401)
        for algorithm in usable or offered:
            nonce = self._nonces.make(now, hop.remote[0])
            value = challenge(self._settings.domain, nonce, algorithm, stale=stale)
            response.headers.append(("WWW-Authenticate", value))
        return Outcome(response, event)

    # -- bindings ---------------------------------------------------------------------------------
    def _bind(
        self, now: float, hop: Hop, request: Request, essentials: Essentials, aor: str, client: Client | None
    ) -> Outcome:
        contacts = request.values("Contact")
        if contacts == ["*"]:
            return self._unbind_all(now, request, essentials, aor)
        wishes = [self._wish_untrusted(request, name_addr_untrusted(value)) for value in contacts]
        if len(wishes) > MAX_CONTACTS or len({wish.key for wish in wishes}) < len(wishes):
            return self._refuse(request, 400, "Too many or repeated contacts", "register-bad-contacts")
        if any(0 < wish.expires < self._settings.min_expires for wish in wishes):
            response = self._reply(request, 423)
            response.headers.append(("Min-Expires", str(self._settings.min_expires)))
            return Outcome(response, "register-too-brief")
        if any(self._is_out_of_order(aor, wish.key, essentials) for wish in wishes):
            return self._refuse(request, 500, "Out of order", "register-out-of-order")
        if self._location.is_full_for(aor) and any(wish.expires for wish in wishes):
            response = self._refuse(request, 503, "Registrar full", "register-full").response
            response.headers.append(("Retry-After", "60"))
            return Outcome(response, "register-full")
        for wish in wishes:
            self._grant(now, hop, request, essentials, aor, client, wish)
        event = (
            "registered" if any(wish.expires for wish in wishes) else "unregistered" if wishes else "queried"
        )
        return Outcome(self._success(now, request, aor, wishes), event, aor if wishes else None)

    def _unbind_all(self, now: float, request: Request, essentials: Essentials, aor: str) -> Outcome:
        if (request.get("Expires") or "").strip() != "0":
            return self._refuse(request, 400, "Contact * needs Expires: 0", "register-bad-contacts")
        if any(self._is_out_of_order(aor, b.key, essentials) for b in self._location.of(aor)):
            return self._refuse(request, 500, "Out of order", "register-out-of-order")
        for binding in self._location.of(aor):
            self._location.remove(aor, binding.key)
        return Outcome(self._success(now, request, aor, []), "unregistered", aor)

    def _is_out_of_order(self, aor: str, key: str, essentials: Essentials) -> bool:
        """RFC 3261 section 10.3 step 7: the same phone's older REGISTER must not undo its newer one."""
        known = self._location.get(aor, key)
        same = known is not None and known.call_id == essentials.call_id
        return same and known is not None and essentials.sequence <= known.sequence

    def _wish_untrusted(self, request: Request, contact: NameAddr) -> _Wish:
        uri_untrusted(contact.uri)
        q = contact.params.get("q") or "1"
        if _Q.fullmatch(q) is None:
            raise RemoteProtocolError("bad-contact", f"q={q[:20]}")
        instance, reg_id = contact.params.get("+sip.instance"), contact.params.get("reg-id")
        key, params = contact.uri, ""
        if instance:
            params = f";+sip.instance={instance}"
            if reg_id and reg_id.isascii() and reg_id.isdigit():
                key, params = f"{instance};{reg_id}", f"{params};reg-id={reg_id}"
        if "q" in contact.params:
            params += f";q={q}"
        if len(params) > MAX_PARAMS:
            raise RemoteProtocolError("bad-contact", "parameters too long")
        asked = contact.params.get("expires") or request.get("Expires") or ""
        return _Wish(key, contact.uri, params, float(q), self._expires(asked.strip()))

    def _expires(self, asked: str) -> int:
        """What cannot be read counts as absent (RFC 3261 section 10.2.1.1)."""
        if not (asked.isascii() and asked.isdigit()):
            return self._settings.default_expires
        return self._settings.max_expires if len(asked) > 9 else min(int(asked), self._settings.max_expires)

    def _grant(
        self,
        now: float,
        hop: Hop,
        request: Request,
        essentials: Essentials,
        aor: str,
        client: Client | None,
        wish: _Wish,
    ) -> None:
        if not wish.expires:
            self._location.remove(aor, wish.key)
            return
        self._location.put(
            Binding(
                aor=aor,
                key=wish.key,
                contact=wish.uri,
                params=wish.params,
                hop=hop,
                path=tuple(request.values("Path")[:MAX_CONTACTS]),
                q=wish.q,
                expires_at=now + wish.expires,
                call_id=essentials.call_id,
                sequence=essentials.sequence,
                owner=client.name if client is not None else CORE_OWNER,
            )
        )

    def _success(self, now: float, request: Request, aor: str, wishes: list[_Wish]) -> Response:
        response = self._reply(request, 200)
        for binding in self._location.of(aor):
            left = max(1, round(binding.expires_at - now))
            response.headers.append(("Contact", f"<{binding.contact}>{binding.params};expires={left}"))
        for path in request.values("Path"):
            response.headers.append(("Path", path))
        supported = {word.lower() for word in request.values("Supported")}
        if "outbound" in supported and any(";reg-id=" in wish.params for wish in wishes):
            response.headers.append(("Require", "outbound"))
        response.headers.append(("Supported", "path, outbound"))
        return response

    def _reply(self, request: Request, code: int, reason: str = "") -> Response:
        return reply(request, code, reason, tag=self._tag(), server=self._settings.server_name)

    def _refuse(self, request: Request, code: int, reason: str, event: str) -> Outcome:
        return Outcome(self._reply(request, code, reason), event)
