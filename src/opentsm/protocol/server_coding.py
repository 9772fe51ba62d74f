"""The server's half of redundancy on the DDT, FEC and header compression: what this client has agreed to."""

from __future__ import annotations

from typing import Final

from opentsm.protocol.actions import SetCoding
from opentsm.protocol.core import Core
from opentsm.types import AUTOMATIC, Code, Coding, Service, ServiceAction
from opentsm.wire.messages import ServiceRequest

CODING_SERVICES: Final = frozenset({Service.REDUNDANCY, Service.FEC, Service.HEADER_COMPRESSION})


def is_coding(message: ServiceRequest) -> bool:
    """Whether this Service Request is about coding; one for redundancy without a coding is about streams."""
    if message.service is Service.REDUNDANCY:
        return message.coding is not None
    return message.service in CODING_SERVICES


class ServerCoding:
    """What one client has asked for and been granted."""

    __slots__ = ("_core", "agreed", "coding")

    def __init__(self, core: Core) -> None:
        self.coding: Coding = AUTOMATIC
        self.agreed: frozenset[Service] = frozenset()
        self._core = core

    def asked(self, message: ServiceRequest) -> Code:
        """A Service Request for a coding service that the interface offers."""
        service = Service(message.service)
        if message.coding is not None:
            self.coding = message.coding
        if message.action == ServiceAction.ENABLE:
            self.agreed |= {service}
        elif message.action == ServiceAction.DISABLE:
            self.agreed -= {service}
        else:
            return Code.SUCCESS
        sends = self.agreed & self.coding.services
        self._core.emit(SetCoding(takes=self.agreed, sends=sends, coding=self.coding))
        return Code.SUCCESS
