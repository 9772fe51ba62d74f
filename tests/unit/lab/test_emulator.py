from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from opentsm.lab.emulator import Control, Pipe
from opentsm.lab.impairment import Direction, Impairment, Settings
from opentsm.lab.tally import settings_from_json

PACKET = bytes.fromhex("4500002000010000401100000a0000010a000002") + bytes(12)
LINK_SCOPE = PACKET[:16] + bytes([224, 0, 0, 1]) + PACKET[20:]


class Wires:
    """Two "devices" that keep packet boundaries, as TUN does; ``near`` and ``far`` are their other ends."""

    def __init__(self) -> None:
        self.near, near_device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, far_device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.devices = (near_device, far_device)
        for each in (self.near, self.far, *self.devices):
            each.setblocking(False)

    def pipe(self, settings: Settings) -> Pipe:
        impairment = Impairment("up", 1, settings)
        source, sink = self.devices
        return Pipe(impairment, source.fileno(), sink.fileno(), ("10.9.9.9", "fd00::9"))

    def close(self) -> None:
        for each in (self.near, self.far, *self.devices):
            each.close()

    def arrived(self) -> list[bytes]:
        return _drain(self.far)

    def answers(self) -> list[bytes]:
        return _drain(self.near)


def _drain(end: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    try:
        while True:
            found.append(end.recv(2000))
    except BlockingIOError:
        return found


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires()
    yield made
    made.close()


def test_a_perfect_wire_passes_packets_on_at_once(wires: Wires) -> None:
    pipe = wires.pipe(Settings())
    for number in range(3):
        wires.near.send(PACKET[:-1] + bytes([number]))
    pipe.read()
    assert [packet[-1] for packet in wires.arrived()] == [0, 1, 2]
    assert (pipe.tally.packets_in, pipe.tally.packets_out, pipe.due) == (3, 3, None)


def test_a_delayed_packet_waits_for_its_time(wires: Wires) -> None:
    pipe = wires.pipe(Settings(delay=5.0))
    wires.near.send(PACKET)
    pipe.read()
    assert pipe.due is not None
    pipe.deliver(pipe.due - 0.001)
    assert wires.arrived() == []
    pipe.deliver(pipe.due)
    assert wires.arrived() == [PACKET]


def test_a_lost_packet_is_counted_by_protocol_and_reason(wires: Wires) -> None:
    pipe = wires.pipe(Settings(loss=1.0))
    wires.near.send(PACKET)
    pipe.read()
    assert wires.arrived() == []
    assert pipe.tally.dropped == {"udp/loss": 1}


def test_a_rejected_packet_is_answered_to_its_sender(wires: Wires) -> None:
    pipe = wires.pipe(Settings(udp="reject"))
    wires.near.send(PACKET)
    pipe.read()
    (answer,) = wires.answers()
    assert answer[12:20] == bytes([10, 9, 9, 9, 10, 0, 0, 1])
    assert answer[20:22] == bytes([3, 3])
    assert wires.arrived() == []
    assert pipe.tally.answered == 1


def test_a_duplicate_arrives_twice(wires: Wires) -> None:
    pipe = wires.pipe(Settings(duplicate=1.0))
    wires.near.send(PACKET)
    pipe.read()
    assert wires.arrived() == [PACKET, PACKET]
    assert pipe.tally.duplicated == 1


def test_link_scope_packets_cost_no_decision(wires: Wires) -> None:
    pipe = wires.pipe(Settings(loss=0.5))
    fates = []
    for number in range(100):
        if number % 3 == 0:
            wires.near.send(LINK_SCOPE)
        wires.near.send(PACKET)
        pipe.read()
        fates.append(bool(wires.arrived()))
    model = Impairment("up", 1, Settings(loss=0.5))
    assert fates == [isinstance(model.decide(0.0, 32, 17), tuple) for _ in range(100)]
    assert pipe.tally.dropped["other/link-scope"] == 34


def test_junk_from_a_device_is_counted_and_harmless(wires: Wires) -> None:
    pipe = wires.pipe(Settings())
    for junk in (b"\x00", b"\x45", b"\x60" + bytes(39), os.urandom(60)):
        wires.near.send(junk)
    pipe.read()
    assert pipe.tally.packets_in + pipe.tally.dropped["other/link-scope"] == 4


def commands(wires: Wires) -> tuple[Control, dict[Direction, Pipe]]:
    pipes: dict[Direction, Pipe] = {"up": wires.pipe(Settings()), "down": wires.pipe(Settings())}
    return Control(pipes), pipes


def execute(control: Control, command: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(control.execute(json.dumps(command).encode())))
    return answer


def test_settings_can_be_put_in_place_and_read_back(wires: Wires) -> None:
    control, pipes = commands(wires)
    wanted = Settings(delay=0.1, udp="drop")
    assert execute(control, {"op": "set", "settings": {"up": asdict(wanted)}}) == {"ok": True}
    assert pipes["up"].impairment.settings == wanted
    answer = execute(control, {"op": "get"})
    assert settings_from_json(answer["up"]) == wanted
    assert settings_from_json(answer["down"]) == Settings()


def test_statistics_are_plain_json(wires: Wires) -> None:
    control, pipes = commands(wires)
    wires.near.send(PACKET)
    pipes["up"].read()
    assert execute(control, {"op": "stats"})["up"]["by_protocol"] == {"udp": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"text"',
        b"{}",
        b'{"op": "no-such"}',
        b'{"op": "set"}',
        b'{"op": "set", "settings": {"up": {"loss": 7}}}',
        b'{"op": "set", "settings": {"up": {"speed": 7}}}',
        b'{"op": "set", "settings": {"sideways": {}}}',
        b'{"op": "reseed", "seed": "x"}',
        b"\xff\xfe",
    ],
)
def test_a_wrong_command_is_answered_and_changes_nothing(wires: Wires, line: bytes) -> None:
    control, pipes = commands(wires)
    assert "error" in control.execute(line)
    assert pipes["up"].impairment.settings == pipes["down"].impairment.settings == Settings()
