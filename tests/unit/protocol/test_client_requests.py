"""A client's unanswered requests."""

from __future__ import annotations

from opentsm.limits import MAX_OUTSTANDING_REQUESTS, REQUEST_TIMEOUT_STREAM
from opentsm.protocol.client_requests import AskedRelease, StreamRequests
from opentsm.protocol.core import Core


def test_silence_is_measured_from_the_oldest_request() -> None:
    core = Core()
    requests = StreamRequests(core)
    requests.add(1, AskedRelease(None), 10.0)
    requests.add(2, AskedRelease(None), 15.0)
    deadline = core.deadline()
    assert deadline is not None
    assert (deadline.at, deadline.reason) == (10.0 + REQUEST_TIMEOUT_STREAM, "answer")
    requests.take(1)
    deadline = core.deadline()
    assert deadline is not None
    assert deadline.at == 15.0 + REQUEST_TIMEOUT_STREAM
    requests.take(2)
    assert core.deadline() is None


def test_requests_wait_when_too_many_are_unanswered() -> None:
    requests = StreamRequests(Core())
    requests.up = True
    for sequence in range(MAX_OUTSTANDING_REQUESTS):
        assert requests.ready
        requests.add(sequence, AskedRelease(None), 1.0)
    assert not requests.ready
    requests.take(0)
    assert requests.ready


def test_a_stream_that_goes_takes_its_requests_along() -> None:
    core = Core()
    requests = StreamRequests(core)
    requests.up = True
    requests.add(1, AskedRelease(None), 1.0)
    assert requests.down() == [AskedRelease(None)]
    assert not requests.ready
    assert core.deadline() is None
