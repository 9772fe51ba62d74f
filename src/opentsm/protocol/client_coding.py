"""The client's half of redundancy on the DDT, FEC and header compression: who has agreed to what.

The client asks for each service that the application permits and the server offers, once per stream. Coded
frames of the server are taken from the moment of asking, ours are sent from the server's consent on: neither
side ever sends what the other has not agreed to take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from opentsm.protocol.actions import SetCoding
from opentsm.protocol.client_requests import Asked, AskedCoding, StreamRequests
from opentsm.protocol.core import Core
from opentsm.types import AUTOMATIC, Code, Coding, Service

CODING_SERVICES: Final = (Service.REDUNDANCY, Service.FEC, Service.HEADER_COMPRESSION)

_NOTHING: Final = SetCoding(frozenset(), frozenset(), AUTOMATIC)


class ClientCoding:
    """What is wished, asked and agreed. Every input ends with ``settle``."""

    def __init__(self, core: Core, requests: StreamRequests) -> None:
        self.wish: Coding = AUTOMATIC
        self.agreed: frozenset[Service] = frozenset()
        self._core = core
        self._requests = requests
        self._offered: frozenset[int] = frozenset()
        self._refused: set[Service] = set()
        self._asking: dict[Service, AskedCoding] = {}
        self._told: dict[Service, Coding | None] = {}
        self._set = _NOTHING

    def wished(self, coding: Coding, now: float) -> None:
        """The application's newest wish."""
        self.wish = coding
        self.settle(now)

    def stream_up(self, offered: Iterable[int], now: float) -> None:
        """A stream is configured. What was agreed is asked for again: the server may have begun anew."""
        self._offered = frozenset(map(int, offered))
        self._refused.clear()
        self._asking.clear()
        self._told.clear()
        self.agreed = frozenset()
        self.settle(now)

    def stream_lost(self, lost: Iterable[Asked]) -> None:
        """The stream is gone, and with it these requests. What is agreed holds for the DDT meanwhile."""
        for asked in lost:
            if isinstance(asked, AskedCoding):
                self._asking.pop(asked.service, None)

    def reset(self) -> None:
        """A new tunnel, or the end: nothing is agreed."""
        self._offered = frozenset()
        self._asking.clear()
        self._told.clear()
        self.agreed = frozenset()
        self._emit()

    def answered(self, asked: AskedCoding, code: Code | int, now: float) -> None:
        """The answer to a request of ours."""
        self._asking.pop(asked.service, None)
        if asked.enable and code == Code.SUCCESS:
            self.agreed |= {asked.service}
        elif asked.enable:
            self._refused.add(asked.service)
            self.agreed -= {asked.service}
        self.settle(now)

    def settle(self, now: float) -> None:
        """Ask for what is wished and not yet told, as far as requests may go."""
        for service in CODING_SERVICES:
            if not self._requests.ready or service in self._asking or service not in self._offered:
                continue
            wanted = self.wish if service in self.wish.services and service not in self._refused else None
            told = self._told.get(service)
            if wanted == told:
                continue
            if wanted is None:
                self.agreed -= {service}
            self._told[service] = wanted
            self._asking[service] = asked = AskedCoding(service, wanted is not None, self.wish)
            self._requests.ask_coding(asked, now)
        self._emit()

    def _emit(self) -> None:
        asking = {service for service, asked in self._asking.items() if asked.enable}
        action = SetCoding(self.agreed | asking, self.agreed & self.wish.services, self.wish)
        action = action if action.takes else _NOTHING
        if action != self._set:
            self._set = action
            self._core.emit(action)
