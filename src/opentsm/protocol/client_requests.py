"""A client's requests on its stream tunnel: which are unanswered, since when, what they were for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opentsm.limits import MAX_OUTSTANDING_REQUESTS, REQUEST_TIMEOUT_STREAM, RESUME_ANSWER
from opentsm.protocol.client_flows import Batch
from opentsm.protocol.core import Core, Outstanding
from opentsm.types import (
    NO_REDUNDANCY,
    UNASSIGNED_TSID,
    Coding,
    Path,
    Redundancy,
    Service,
    ServiceAction,
    Tsid,
)
from opentsm.wire.messages import ReleaseRequest, ServiceRequest

ANSWER_TIMER: Final = "answer"


@dataclass(frozen=True, slots=True)
class AskedConfiguration:
    resume: bool


@dataclass(frozen=True, slots=True)
class AskedRelease:
    """``tunnel_id``: what is given back; None: the session. ``further``: a stream, and not the DDT."""

    tunnel_id: Tsid | None
    further: bool = False


@dataclass(frozen=True, slots=True)
class AskedCoding:
    """``enable``: or to have it no longer. ``coding``: what is permitted now."""

    service: Service
    enable: bool
    coding: Coding


@dataclass(frozen=True, slots=True)
class AskedRedundancy:
    """``slot``: which further stream the answer is for; None: only the wish is told."""

    redundancy: Redundancy
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class AskedNagle:
    on: bool


Asked = AskedConfiguration | AskedRelease | AskedCoding | AskedRedundancy | AskedNagle | Batch


class StreamRequests:
    """The stream tunnel as the client's machines see it: its TSID, and requests with their answers.

    Silence for REQUEST_TIMEOUT_STREAM after a request (RESUME_ANSWER after a resume) shows as the timer
    ``answer``.
    """

    def __init__(self, core: Core) -> None:
        self.tsid: Tsid = UNASSIGNED_TSID
        self.up = False
        """The stream is configured: Service Requests may go."""
        self._core = core
        self._outstanding: Outstanding[Asked] = Outstanding(MAX_OUTSTANDING_REQUESTS)

    @property
    def ready(self) -> bool:
        """A request may go now."""
        return self.up and not self._outstanding.full

    def ask_service(self, batch: Batch, now: float) -> None:
        message = ServiceRequest(
            tsid=self.tsid,
            sequence=self._core.next_sequence(),
            service=Service.DDT,
            action=batch.action,
            flows=batch.flows,
            mode=batch.mode,
        )
        self._core.send(Path.STREAM, message)
        self.add(message.sequence, batch, now)

    def ask_coding(self, asked: AskedCoding, now: float) -> None:
        message = ServiceRequest(
            tsid=self.tsid,
            sequence=self._core.next_sequence(),
            service=asked.service,
            action=ServiceAction.ENABLE if asked.enable else ServiceAction.DISABLE,
            coding=asked.coding,
        )
        self._core.send(Path.STREAM, message)
        self.add(message.sequence, asked, now)

    def ask_redundancy(self, asked: AskedRedundancy, now: float) -> None:
        off = asked.redundancy == NO_REDUNDANCY
        message = ServiceRequest(
            tsid=self.tsid,
            sequence=self._core.next_sequence(),
            service=Service.REDUNDANCY,
            action=ServiceAction.DISABLE if off else ServiceAction.ENABLE,
            redundancy=None if off else asked.redundancy,
        )
        self._core.send(Path.STREAM, message)
        self.add(message.sequence, asked, now)

    def ask_nagle(self, on: bool, now: float) -> None:
        message = ServiceRequest(
            tsid=self.tsid,
            sequence=self._core.next_sequence(),
            service=Service.NAGLE,
            action=ServiceAction.ENABLE if on else ServiceAction.DISABLE,
        )
        self._core.send(Path.STREAM, message)
        self.add(message.sequence, AskedNagle(on), now)

    def ask_release(self, tunnel_id: Tsid | None, now: float, *, further: bool = False) -> None:
        sequence = self._core.next_sequence()
        self._core.send(Path.STREAM, ReleaseRequest(tsid=self.tsid, sequence=sequence, tunnel_id=tunnel_id))
        self.add(sequence, AskedRelease(tunnel_id, further), now)

    def add(self, sequence: int, asked: Asked, now: float) -> None:
        self._outstanding.add(sequence, asked, now)
        self._rearm()

    def take(self, sequence: int) -> Asked | None:
        """What this answer is for; None for an answer to nothing."""
        asked = self._outstanding.take(sequence)
        self._rearm()
        return asked

    def down(self) -> list[Asked]:
        """The stream is gone; the requests that went with it."""
        self.up = False
        lost = self._outstanding.clear()
        self._rearm()
        return lost

    def _rearm(self) -> None:
        oldest = self._outstanding.oldest
        if oldest is None:
            self._core.disarm(ANSWER_TIMER)
            return
        at, asked = oldest
        resume = isinstance(asked, AskedConfiguration) and asked.resume
        self._core.arm(ANSWER_TIMER, at + (RESUME_ANSWER if resume else REQUEST_TIMEOUT_STREAM))
