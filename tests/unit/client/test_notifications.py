"""Delivery: order, bounds, and listeners that misbehave."""

from __future__ import annotations

import asyncio
import logging

import pytest

from opentsm.client import notifications as n


async def test_a_reader_that_does_not_read_loses_the_oldest_and_the_count_is_kept() -> None:
    hub = n.NotificationHub()
    stream = hub.stream()
    for number in range(n.NOTIFICATION_QUEUE + 3):
        hub.publish(n.TunnelLost(str(number)))
    assert stream.missed == 3
    assert await anext(stream) == n.TunnelLost("3")


async def test_a_callback_that_fails_costs_nobody_else_anything(caplog: pytest.LogCaptureFixture) -> None:
    hub = n.NotificationHub()
    heard: list[object] = []

    def broken(notification: n.Notification, opaque: object) -> None:
        raise ZeroDivisionError

    hub.subscribe(broken)
    hub.subscribe(lambda what, opaque: heard.append((what, opaque)), 7, frozenset({"pair-missing"}))
    with caplog.at_level(logging.ERROR):
        hub.publish(n.PairMissing())
        hub.publish(n.TunnelLost("x"))
    assert heard == [(n.PairMissing(), 7)]
    assert "the callback for pair-missing failed" in caplog.text


async def test_a_cancelled_subscription_hears_no_more() -> None:
    hub = n.NotificationHub()
    heard: list[object] = []
    subscription = hub.subscribe(lambda what, _: heard.append(what))
    hub.publish(n.PairMissing())
    subscription.cancel()
    subscription.cancel()
    hub.publish(n.PairMissing())
    assert len(heard) == 1


async def test_iterators_end_with_the_tunnel_when_they_are_read_empty() -> None:
    hub = n.NotificationHub()
    stream = hub.stream()
    waiting = asyncio.create_task(anext(hub.stream()))
    await asyncio.sleep(0)
    hub.publish(n.TunnelTerminated("local-close"))
    hub.end()
    assert [what.kind async for what in stream] == ["tunnel-terminated"]
    assert (await waiting).kind == "tunnel-terminated"
    assert [what async for what in hub.stream()] == []


async def test_listeners_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n, "MAX_LISTENERS", 2)
    hub = n.NotificationHub()
    with hub_streams(hub, 2), pytest.raises(RuntimeError, match="2 listeners"):
        hub.stream()
    hub.stream()


class hub_streams:
    """Some open iterators."""

    def __init__(self, hub: n.NotificationHub, count: int) -> None:
        self._streams = [hub.stream() for _ in range(count)]

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        for stream in self._streams:
            stream.close()
