"""The emulated WAN of a site, seen from the process that commands it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from opentsm.errors import PlatformError
from opentsm.lab.impairment import DIRECTIONS, Direction, Settings
from opentsm.lab.netns import call_inside
from opentsm.lab.plan import Interface
from opentsm.lab.tally import Tally, settings_from_json

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

TX_QUEUE: Final = 10_000
"""Packets the kernel keeps for the emulator: half a second at its highest rate, so that a busy machine
costs delay and not packets. What does not fit is counted as an overrun."""

COMMAND_TIMEOUT: Final = 5.0
"""Seconds; the emulator answers between two batches of packets."""

STOP_TIMEOUT: Final = 5.0
"""Seconds an emulator has to end by itself before it is killed."""


@dataclass(frozen=True, slots=True)
class DirectionStats:
    """Counters of one direction since the emulator began.

    Args:
        packets_in, bytes_in: taken from the device (without link-scope packets, which are dropped).
        packets_out, bytes_out: delivered; duplicates included.
        duplicated: extra copies.
        answered: ICMP errors sent.
        held_most: most packets in flight at once.
        worst_lateness: seconds; how much later than decided a packet left, at worst.
        late_1ms: packets more than a millisecond later than decided.
        by_protocol: packets in, by udp, tcp, icmp, other.
        dropped: packets by "protocol/reason".
        overruns: packets the kernel dropped because the emulator was too slow to read them.
    """

    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    duplicated: int
    answered: int
    held_most: int
    worst_lateness: float
    late_1ms: int
    by_protocol: dict[str, int]
    dropped: dict[str, int]
    overruns: int

    @property
    def lost(self) -> int:
        """All that was dropped on purpose or by overrun, link-scope packets not counted."""
        return sum(self.dropped.values()) - self.dropped.get("other/link-scope", 0) + self.overruns


@dataclass(frozen=True, slots=True)
class WanStats:
    """Both directions: ``up`` is phone to server."""

    up: DirectionStats
    down: DirectionStats


class Wan:
    """Handle on a running emulator; any process of this user may hold one.

    Args:
        control: path of its unix socket.
        near, far: (namespace, device) of the site's and the internet's end, for overrun counters.
    """

    def __init__(self, control: Path, near: tuple[str, str], far: tuple[str, str]) -> None:
        self._control = control
        self._ends: dict[Direction, tuple[str, str]] = {"up": near, "down": far}

    def set(self, direction: Literal["up", "down", "both"] = "both", /, **changes: Any) -> None:
        """Change some settings while packets flow; those in flight keep their times.

        Args:
            direction: up, down or both.
            changes: fields of ``Settings``.

        Raises:
            ValueError: no such setting, or a value that makes no sense.
            PlatformError: the emulator does not answer.
        """
        known = {field.name for field in dataclasses.fields(Settings)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        current = self._all_settings()
        self._send({name: replace(current[name], **changes) for name in _each(direction)})

    def replace(self, direction: Literal["up", "down", "both"], settings: Settings) -> None:
        """Put whole settings in place; what they do not say is back at its default."""
        self._send(dict.fromkeys(_each(direction), settings))

    def settings(self, direction: Direction) -> Settings:
        """What is in force."""
        return self._all_settings()[direction]

    def reseed(self, seed: int) -> None:
        """Start the decision streams of both directions again, from packet 0."""
        self._command({"op": "reseed", "seed": seed})

    def stats(self) -> WanStats:
        """Counters of both directions, in one moment of the emulator."""
        answer = self._command({"op": "stats"})
        up, down = (self._direction_stats(name, answer[name]) for name in DIRECTIONS)
        return WanStats(up, down)

    def _direction_stats(self, direction: Direction, tally: dict[str, Any]) -> DirectionStats:
        fields = {field.name: tally[field.name] for field in dataclasses.fields(Tally)}
        return DirectionStats(**fields, overruns=device_drops(*self._ends[direction]))

    def _all_settings(self) -> dict[Direction, Settings]:
        answer = self._command({"op": "get"})
        return {name: settings_from_json(answer[name]) for name in DIRECTIONS}

    def _send(self, settings: dict[Direction, Settings]) -> None:
        self._command({"op": "set", "settings": {name: asdict(value) for name, value in settings.items()}})

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(COMMAND_TIMEOUT)
                connection.connect(str(self._control))
                connection.sendall(json.dumps(command).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    answer: dict[str, Any] = json.loads(answers.readline() or b"{}")
        except OSError as error:
            raise PlatformError(f"the WAN emulator at {self._control} does not answer: {error}") from error
        if not answer.get("ok"):
            raise ValueError(answer.get("error", "the WAN emulator ended while it was asked"))
        return answer


class EmulatorProcess:
    """The emulator's process and what belongs to it; ``stop`` ends it.

    Args:
        process: a running ``opentsm.lab.emulator``.
        wan: the handle that commands it.
    """

    def __init__(self, process: subprocess.Popen[bytes], wan: Wan) -> None:
        self.process = process
        self.wan = wan

    def stop(self) -> None:
        """End it; its TUN devices vanish with it."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True, slots=True)
class WanEnd:
    """One end of an emulated WAN: where its TUN device is, and the addresses it will have."""

    namespace: str
    device: str
    addresses: Interface


def start_emulator(
    near: WanEnd, far: WanEnd, control: Path, *, seed: int, settings: dict[Direction, Settings]
) -> EmulatorProcess:
    """Make both TUN devices and start the process that joins them. Addresses are the caller's work.

    Raises:
        PlatformError: no TUN device can be made; the message says why.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    descriptors = [listener.fileno()]
    try:
        listener.bind(str(control))
        listener.listen(8)
        descriptors += [call_inside(end.namespace, open_tun, end.device) for end in (near, far)]
        process = _spawn(descriptors, near, far, seed, settings)
    finally:
        listener.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
    return EmulatorProcess(process, Wan(control, (near.namespace, near.device), (far.namespace, far.device)))


def _spawn(
    descriptors: list[int], near: WanEnd, far: WanEnd, seed: int, settings: dict[Direction, Settings]
) -> subprocess.Popen[bytes]:
    listen, near_fd, far_fd = descriptors
    # An error about an upward packet is written back towards the phones, from the far router's
    # address: an error from a host's own address would be dropped as a spoof.
    arguments = [
        f"--near={near_fd}",
        f"--far={far_fd}",
        f"--listen={listen}",
        f"--seed={seed}",
        f"--near-routers={far.addresses.ipv4},{far.addresses.ipv6}",
        f"--far-routers={near.addresses.ipv4},{near.addresses.ipv6}",
        f"--settings={json.dumps({name: asdict(value) for name, value in settings.items()})}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "opentsm.lab.emulator", *arguments],
        pass_fds=descriptors,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=python_environment(),
    )


def python_environment() -> dict[str, str]:
    """This process's environment, with its import path: a child finds the same modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def open_tun(name: str) -> int:
    """A TUN device in the calling thread's namespace; it lives as long as the descriptor.

    Raises:
        PlatformError: the machine has none, or does not let us.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PlatformError(
            f"/dev/net/tun: {error.strerror}. The WAN emulator needs it: as root, `modprobe tun` and "
            "`chmod 0666 /dev/net/tun` (the usual mode), in a container start it with "
            "--device /dev/net/tun; or make a lab without emulator (emulate=False, --no-emulate)"
        ) from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(descriptor)
        raise PlatformError(f"TUN device {name} cannot be made: {error.strerror}; run as root") from error
    return descriptor


def device_drops(namespace: str, device: str) -> int:
    """Packets the kernel could not queue on a device: its ``tx dropped`` counter."""
    table = call_inside(namespace, Path("/proc/thread-self/net/dev").read_text)
    for line in table.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            return int(numbers.split()[11])
    return 0


def _each(direction: Literal["up", "down", "both"]) -> tuple[Direction, ...]:
    if direction == "both":
        return DIRECTIONS
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is up, down or both, not {direction!r}")
    return (direction,)
