"""Hosts reach each other as the plan says, in every shape, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from opentsm.lab import Lab, LabSpec, clean, registry
from opentsm.lab.netns import iproute
from opentsm.lab.privileges import NETNS_DIRECTORY

pytestmark = pytest.mark.netns

WAIT = 10.0


def namespaces(prefix: str) -> list[str]:
    return [name for name in os.listdir(NETNS_DIRECTORY) if name.startswith(prefix)]


def is_running(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def exchange(lab: Lab, one: str, other: str, family: str, port: int = 5000) -> tuple[str, int]:
    """Send there and back; returns where the packet seemed to come from."""
    with (
        lab[other].udp(getattr(lab[other], family), port) as server,
        lab[one].udp(getattr(lab[one], family)) as client,
    ):
        for each in (server, client):
            each.settimeout(WAIT)
        client.sendto(b"there", server.getsockname()[:2])
        data, source = server.recvfrom(100)
        assert data == b"there"
        server.sendto(b"back", source)
        assert client.recv(100) == b"back"
        return source[0], source[1]


@pytest.mark.parametrize("emulate", [True, False])
def test_phones_reach_the_server_by_both_families(emulate: bool) -> None:
    with Lab(LabSpec(phones=2, emulate=emulate)) as lab:
        assert exchange(lab, "phone1", "server", "ipv4")[0] == lab.plan.wan(1).ipv4
        assert exchange(lab, "phone2", "server", "ipv6")[0] == lab["phone2"].ipv6
        assert exchange(lab, "server", "core", "ipv4")[0] == lab["server"].ipv4


def test_without_nat_the_server_sees_the_phone() -> None:
    with Lab(LabSpec(nat=False, ipv6=False)) as lab:
        assert exchange(lab, "phone1", "server", "ipv4")[0] == lab["phone1"].ipv4
        assert lab["phone1"].ipv6 == ""


def test_ipv6_alone_is_enough() -> None:
    with Lab(LabSpec(ipv4=False)) as lab:
        assert exchange(lab, "phone1", "server", "ipv6")[0] == lab["phone1"].ipv6


def test_sites_servers_and_a_phone_that_moves() -> None:
    with Lab(LabSpec(sites=2, phones=1, servers=2)) as lab:
        assert exchange(lab, "phone1", "server2", "ipv4")[0] == lab.plan.wan(1).ipv4
        assert exchange(lab, "phone2", "server", "ipv4")[0] == lab.plan.wan(2).ipv4
        before = lab["phone1"].ipv4
        lab.rehome(1, 2)
        assert lab["phone1"].ipv4 != before
        assert lab.site_of(1) == 2
        assert exchange(lab, "phone1", "server", "ipv4")[0] == lab.plan.wan(2).ipv4
        assert exchange(lab, "phone1", "server", "ipv6")[0] == lab["phone1"].ipv6


def test_programs_run_inside_their_host() -> None:
    with Lab(LabSpec(emulate=False)) as lab:
        addresses = lab["phone1"].run(["ip", "-br", "address", "show", "eth0"]).stdout
        assert lab["phone1"].ipv4 in addresses
        function = lab["server"].python("builtins:print", "hello", "you", stdout=subprocess.PIPE, text=True)
        assert function.communicate(timeout=WAIT)[0] == "hello you\n"
        module = lab["server"].python("this", stdout=subprocess.PIPE, text=True)
        assert "Zen" in module.communicate(timeout=WAIT)[0]


async def test_one_program_holds_sockets_of_several_hosts() -> None:
    async with Lab(LabSpec(emulate=False)) as lab:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()
            served.set()

        listener = lab["server"].listen(port=443)
        server = await asyncio.start_server(serve, sock=listener)
        opened = await lab["phone1"].connect_tcp(lab["server"].ipv4, 443)
        reader, writer = await asyncio.open_connection(sock=opened)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
        await served.wait()
        server.close()
        await server.wait_closed()


def test_two_labs_at_once_do_not_meet() -> None:
    with Lab(LabSpec(emulate=False)) as one, Lab(LabSpec(emulate=False)) as other:
        assert one.id != other.id
        with one["server"].udp(port=5000) as here, other["server"].udp(port=5000) as there:
            with one["phone1"].udp() as client:
                client.sendto(b"x", (one["server"].ipv4, 5000))
            here.settimeout(WAIT)
            assert here.recv(10) == b"x"
            with pytest.raises(BlockingIOError):
                there.recv(10)


def test_nothing_is_left_behind() -> None:
    lab = Lab(LabSpec())
    with lab:
        name = lab.id
        child = lab["phone1"].popen(["sleep", "1000"])
        assert registry.running_labs()
        assert namespaces(name)
    assert child.returncode == -signal.SIGTERM
    assert namespaces(name) == []
    assert not registry.lab_directory(name).exists()
    lab.close()


def test_nothing_is_left_behind_when_making_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(namespaces(registry.PREFIX))

    def fail(self: Lab) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Lab, "_make_firewalls", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        Lab(LabSpec()).start()
    assert set(namespaces(registry.PREFIX)) == before


CRASH = """
import os, signal, subprocess
from opentsm.lab import Lab, LabSpec
lab = Lab(LabSpec())
lab.start()
child = lab["phone1"].popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(lab.id, child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_crash_clean_removes_what_is_left_and_nothing_else() -> None:
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    name, child = crashed.stdout.split()
    assert namespaces(name)
    with Lab(LabSpec(emulate=False)) as living:
        removed = clean()
        assert f"{name}-phone1" in removed
        assert namespaces(living.id)
        assert exchange(living, "phone1", "server", "ipv4")
    assert namespaces(name) == []
    assert not registry.lab_directory(name).exists()
    assert not is_running(int(child))


ROOTLESS = """
import socket
from opentsm.lab import Lab, LabSpec, Mode, ensure_privileges, firewall
assert ensure_privileges() is Mode.ROOTLESS
with Lab(LabSpec()) as lab:
    with lab["server"].udp(port=443) as server, lab["phone1"].udp() as client:
        server.settimeout(10)
        with lab["firewall1"].capture("wan0") as wire:
            client.sendto(b"x", (lab["server"].ipv4, 443))
            assert server.recv(10) == b"x"
        assert [p.destination_port for p in wire.select(protocol="udp")] == [443]
        lab.firewall().apply(firewall.tcp_443_only(refuse="reject"))
        client.connect((lab["server"].ipv4, 443))
        client.settimeout(10)
        client.send(b"y")
        try:
            client.recv(10)
        except ConnectionRefusedError:
            print("refused")
        lab.firewall().rebind()
        lab.firewall().timeouts(udp=3)
        assert lab["firewall1"].sysctl("net.netfilter.nf_conntrack_udp_timeout") == "3"
    lab.wan().set(loss=0.5)
print("done")
"""


def test_a_lab_works_inside_a_user_namespace_and_is_invisible_outside() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no user namespaces")
    before = iproute("netns", "list")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", ROOTLESS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "refused\ndone\n", done.stderr
    assert iproute("netns", "list") == before


def test_sockets_outlive_the_call_that_made_them() -> None:
    with Lab(LabSpec(emulate=False)) as lab:
        raw = lab["phone1"].socket(socket.AF_INET, socket.SOCK_DGRAM)
        with raw:
            raw.connect((lab["server"].ipv4, 9))
            assert raw.getsockname()[0] == lab["phone1"].ipv4
