"""Leases, the data log, the log, a TUN device's errors, the echo services: each by itself."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
import structlog

from opentsm.config import Settings, loads
from opentsm.config.model import LogFormat, LogLevel
from opentsm.engine.addresses import Family
from opentsm.errors import ConfigError, PlatformError
from opentsm.server import logs, tun
from opentsm.server.core_side import check_routes, client_prefixes
from opentsm.server.datalog import QUEUE, DataLog
from opentsm.server.echo import MAX_STREAMS, EchoStreams, KernelEcho
from opentsm.server.leases import AddressTaken, Leases, lease
from tests.unit.server.harness import configuration, until

ROOT = Path(__file__).parents[3]
BOTH = Family.IPV4 | Family.IPV6


@pytest.fixture
def settings() -> Settings:
    return loads(configuration(Path("/nowhere")), base=Path("/nowhere"))


# -- leases ---------------------------------------------------------------------------------------------


def test_a_fixed_address_replaces_its_family_only(settings: Settings) -> None:
    leases = Leases()
    leases.load(settings, [], 0.0)
    pools = leases.of_interface(settings.interfaces["access"])
    fixed = (ip_address("10.64.1.9"),)
    got = lease(pools, BOTH, fixed, "alice", 0.0)
    assert [str(one) for one in got.addresses] == ["10.64.1.9", "fd00:64::1:0:0:1"]
    with pytest.raises(AddressTaken, match=r"10\.64\.1\.9"):
        lease(pools, BOTH, fixed, "alice", 0.0)
    leases.release(got.addresses, "alice", 1.0)
    with pytest.raises(AddressTaken):
        lease(pools, BOTH, fixed, "bob", 2.0)
    assert lease(pools, BOTH, fixed, "alice", 2.0).ipv4 == IPv4Address("10.64.1.9"), "it rests for its owner"
    assert lease(pools, Family.IPV6, fixed, "alice", 2.0).ipv4 is None, "it did not ask for IPv4"


def test_a_pool_that_moves_keeps_what_rests_and_what_is_leased(settings: Settings) -> None:
    leases = Leases()
    leases.load(settings, [], 0.0)
    pools = leases.of_interface(settings.interfaces["access"])
    first, second = (lease(pools, Family.IPV4, (), None, 0.0) for _ in range(2))
    leases.release(first.addresses, None, 1.0)
    moved = loads(
        configuration(Path("/nowhere"))
        .replace("tscf-address-pool.office", "tscf-address-pool.other")
        .replace('["office"]', '["other"]'),
        base=Path("/nowhere"),
    )
    leases.load(moved, second.addresses, 2.0)
    (ipv4, _) = leases.statistics()
    assert (ipv4.pool, ipv4.leased, ipv4.resting) == ("other", 1, 1)
    third = lease(leases.of_interface(moved.interfaces["access"]), Family.IPV4, (), None, 2.0)
    assert third.ipv4 not in (first.ipv4, second.ipv4)


# -- the core side --------------------------------------------------------------------------------------


def test_two_realms_cannot_have_one_route() -> None:
    text = (ROOT / "examples/server.toml").read_text()
    two = loads(text + '\n[realm.other]\ncore = "userspace"\nroutes = ["0.0.0.0/0"]\n')
    with pytest.raises(ConfigError, match=r"realms core and other both route 0\.0\.0\.0/0"):
        check_routes(two)


def test_the_kernel_gets_routes_for_what_its_prefixes_do_not_cover() -> None:
    text = (ROOT / "examples/server.toml").read_text()
    covered = loads(text)
    assert list(client_prefixes(covered.realms["core"], covered)) == []
    bare = loads(text.replace('addresses = ["10.64.0.1/16", "fd00:64::1/64"]', "").replace("echo = 7 ", "#"))
    prefixes = [str(one) for one in client_prefixes(bare.realms["core"], bare)]
    assert "10.64.1.1/32" in prefixes
    assert "10.64.1.128/26" in prefixes


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, "needs CAP_NET_ADMIN"),
        (errno.ENOENT, "modprobe tun"),
        (errno.EBUSY, "is a server running already"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_tun_device_that_cannot_be_had_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tun, "open_queue", refuse)
    with pytest.raises(PlatformError, match=says):
        tun.open_tun("tsm9", 2)


async def test_the_kernels_echo_answers_and_stops() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            number = free.getsockname()[1]
        echo = KernelEcho(ip_address("127.0.0.1"), number)
        client.sendto(b"hello", ("127.0.0.1", number))
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 99), 20) == b"hello"
        with pytest.raises(PlatformError, match="Address already in use"):
            KernelEcho(ip_address("127.0.0.1"), number)
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"by TCP")
        assert await asyncio.wait_for(reader.readexactly(6), 20) == b"by TCP"
        echo.close()
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)


async def test_the_echo_by_tcp_has_a_bound() -> None:
    streams = EchoStreams()
    server = await asyncio.get_running_loop().create_server(streams, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    opened = [await asyncio.open_connection(*where) for _ in range(MAX_STREAMS + 1)]
    await until(lambda: len(streams.transports) == MAX_STREAMS)
    assert await asyncio.wait_for(opened[-1][0].read(), 20) == b""
    for _, writer in opened:
        writer.close()
    server.close()
    await until(lambda: not streams.transports)


# -- logs -----------------------------------------------------------------------------------------------


def test_the_data_log_goes_on_in_a_new_file_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    log = DataLog(path)
    log.write({"n": 1})
    asyncio.run(until(path.read_text))
    path.rename(tmp_path / "old")
    log.reopen()
    log.write({"n": 2})
    log.close()
    assert json.loads((tmp_path / "old").read_text()) == {"n": 1}
    assert json.loads(path.read_text()) == {"n": 2}


def test_a_slow_disk_costs_lines_and_never_time(tmp_path: Path) -> None:
    """The file is a pipe that nobody reads until all is written."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = DataLog(path)
    count = 2 * QUEUE
    for number in range(count):
        log.write({"n": number, "pad": "x" * 200})
    dropped = log.dropped
    assert dropped > 0
    os.set_blocking(reader, True)
    with os.fdopen(reader) as lines:
        log.write({"n": -1})
        read = 0
        gaps = 0
        for line in lines:
            record = json.loads(line)
            gaps += record.get("dropped", 0)
            read += "n" in record
            if read + log.dropped >= count + 1:
                break
        log.close()
    assert gaps == log.dropped


def test_a_data_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the data log cannot be opened"):
        DataLog(tmp_path / "missing" / "log")


@contextmanager
def captured(format: LogFormat) -> Iterator[io.StringIO]:
    """What the log says."""
    before = structlog.get_config()
    out = io.StringIO()
    logs.configure(LogLevel.INFO, format)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(out))
    try:
        yield out
    finally:
        structlog.configure(**before)
        logs.set_level(LogLevel.INFO)


def test_log_lines_for_programs_and_a_level_that_changes() -> None:
    with captured(LogFormat.JSON) as out:
        log = structlog.get_logger("test")
        log.debug("unseen")
        log.info("tunnel up", tsid="00ff")
        logs.set_level(LogLevel.ERROR)
        log.info("unseen")
        log.error("seen")
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(one["event"], one["level"]) for one in lines] == [("tunnel up", "info"), ("seen", "error")]
    assert lines[0]["tsid"] == "00ff"


def test_log_lines_for_people() -> None:
    with captured(LogFormat.TEXT) as out:
        structlog.get_logger("test").warning("pool nearly exhausted", pool="office")
    assert "pool nearly exhausted" in out.getvalue()
    assert "pool=office" in out.getvalue()
