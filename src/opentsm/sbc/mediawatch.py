"""Who sends media that is not theirs to send: said once per look, with the tunnel it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .actions import Note, RelayKey
from .dialogs import Call
from .parties import Client, IdentityOf, Side
from .quality import Counts


class MediaWatch:
    """Compares what the user plane has counted with the last look.

    Args:
        identity_of: the client at an inner address.
        unbound: packets that the client at an inner address has sent to ports of ours where nothing listens.
        note: takes a line for the log.
    """

    def __init__(
        self, identity_of: IdentityOf, unbound: Callable[[str], int], note: Callable[[Note], None]
    ) -> None:
        self._identity_of = identity_of
        self._unbound = unbound
        self._note = note
        self._strangers: dict[tuple[RelayKey, str], int] = {}
        self._closed: dict[str, int] = {}

    def look(self, call: Call, relays: Mapping[RelayKey, Counts]) -> None:
        """Say what is new about one call's relays, and about ports that its parties were not told."""
        for key, counts in relays.items():
            for leg, side in (("a", Side.CALLER), ("b", Side.CALLEE)):
                self._look_at(call, key, getattr(counts, leg), side)
        clients = [call.party(side).client for side in Side]
        self._look_for_closed_ports(call, [client for client in clients if client is not None])

    def forget(self, relays: Iterable[RelayKey]) -> None:
        """These relays are closed."""
        for key in relays:
            for side in Side:
                self._strangers.pop((key, side.value), None)

    def client_lost(self, addresses: Iterable[str]) -> None:
        """Nobody has these inner addresses any more."""
        for address in addresses:
            self._closed.pop(address, None)

    def _look_at(self, call: Call, key: RelayKey, leg: Any, side: Side) -> None:
        place = (key, side.value)
        new = leg.wrong - self._strangers.get(place, 0)
        if new <= 0:
            return
        self._strangers[place] = leg.wrong
        address, port = leg.stranger or ("", 0)
        fields = {"call_id": call.key.call_id, "instead_of": side.value, "packets": new}
        source = {"source": f"{address}:{port}"} | self._tunnel(self._identity_of(address))
        self._note(Note("media-from-stranger", fields | source, warning=True))

    def _look_for_closed_ports(self, call: Call, clients: Iterable[Client]) -> None:
        for client in clients:
            address = client.addresses[0]
            total = self._unbound(address)
            new = total - self._closed.get(address, 0)
            if new > 0:
                self._closed[address] = total
                fields = {"call_id": call.key.call_id, "packets": new} | self._tunnel(client)
                self._note(Note("media-to-closed-port", fields, warning=True))

    @staticmethod
    def _tunnel(client: Client | None) -> dict[str, str]:
        return {} if client is None else {"client": client.name, "tsid": f"{client.tsid:016x}"}
