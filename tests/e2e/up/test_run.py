"""One unmodified program whose only way out is the tunnel: `opentsm run`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opentsm.lab.serving import ServerProcess, Shape
from opentsm.lab.topology import Lab
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment
from tests.e2e.tunnels.harness import start_echo
from tests.e2e.up.harness import OPENTSM, network, reach

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

NOBODY = 65534

PROBE = """
import opentsm.userplane
from opentsm.client import system
system.unshare(system.CLONE_NEWUSER | system.CLONE_NEWNET)
"""

PROGRAM = """
import json, os, socket, sys
echo, others = (sys.argv[1], int(sys.argv[2])), sys.argv[3:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.sendto(b"from a program", echo)
data, source = sock.recvfrom(2048)
sock.connect(echo)
for other in others:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"leak?", (other, 9))
    except OSError:
        pass
print(json.dumps({
    "answer": data.decode(), "source": source[0], "own": sock.getsockname()[0], "uid": os.getuid(),
    "devices": sorted(name for _, name in socket.if_nameindex()),
    "capabilities": [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")][0],
}))
sys.exit(7)
"""


class NamedShape(Shape):
    """A server that names a name server."""

    def text(self, folder: Path) -> str:
        return super().text(folder).replace("ranges =", 'dns = ["10.200.1.53"]\nranges =')


def command(server: ServerProcess, *program: str, folder: Path | None = None) -> list[str]:
    return [*OPENTSM, "run", *reach(server, folder), "--", *program]


def test_a_program_talks_through_the_tunnel_and_through_nothing_else(lab: Lab, server: ServerProcess) -> None:
    phone = lab["phone1"]
    echo = start_echo(lab)
    before = network(phone)
    others = [phone.ipv4, lab["firewall1"].ipv4, "192.168.1.1", "203.0.113.9"]
    words = command(server, sys.executable, "-c", PROGRAM, echo[0], str(echo[1]), *others)
    with phone.capture("eth0") as wire:
        done = phone.run(words, check=False, env=python_environment())
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert (told["answer"], told["source"]) == ("from a program", echo[0])
    assert told["own"].startswith("10.64.1.")
    assert told["devices"] == ["lo", "tsm0"]
    sent = {(p.protocol, p.destination, p.destination_port) for p in wire.select(direction="out")}
    ours = {(protocol, where, port) for protocol, where, port in sent if protocol in ("tcp", "udp")}
    assert ours == {("tcp", lab["server"].ipv4, 443)}
    assert network(phone) == before


@pytest.fixture
def readable(server: ServerProcess) -> Iterator[Path]:
    """A copy of the credentials that everybody may read; pytest's own folders are root's."""
    folder = Path(tempfile.mkdtemp(prefix="opentsm-run-"))
    folder.chmod(0o755)
    shutil.copy(server.folder / "ca.pem", folder)
    yield folder
    shutil.rmtree(folder)


def test_without_root_it_works_as_well(lab: Lab, server: ServerProcess, readable: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("the program `setpriv` is missing (Debian: apt-get install util-linux)")
    phone = lab["phone1"]
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    probe = phone.run([*drop, sys.executable, "-c", PROBE], check=False, env=python_environment())
    if probe.returncode:
        pytest.skip(f"another user cannot make namespaces or use this Python here: {probe.stderr[-200:]}")
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable
    echo = start_echo(lab)
    words = command(server, python, "-c", PROGRAM, echo[0], str(echo[1]), phone.ipv4, folder=readable)
    done = phone.run([*drop, *words], check=False, env=python_environment())
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert told["answer"] == "from a program"
    assert (told["uid"], int(told["capabilities"], 16)) == (NOBODY, 0)
    assert told["devices"] == ["lo", "tsm0"]


def test_a_program_that_is_not_there_is_the_shells_127(lab: Lab, server: ServerProcess) -> None:
    done = lab["phone1"].run(command(server, "no-such-program"), check=False, env=python_environment())
    assert done.returncode == 127
    assert "no-such-program: no such program" in done.stderr


def start(lab: Lab, server: ServerProcess, script: str) -> subprocess.Popen[Any]:
    """A shell script that says `ready`."""
    process = lab["phone1"].popen(
        command(server, "sh", "-c", script), env=python_environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_sigterm_is_the_programs_to_answer(lab: Lab, server: ServerProcess) -> None:
    process = start(lab, server, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    process.terminate()
    assert process.wait(20) == 9


def test_if_the_tunnel_is_killed_its_program_ends_and_nothing_stays(lab: Lab, server: ServerProcess) -> None:
    phone = lab["phone1"]
    before = network(phone)
    process = start(lab, server, "echo ready; exec sleep 3600")
    # `ip netns exec` became `opentsm run`; its child is the keeper, and that one's is the program.
    keeper = _children(process.pid)[0]
    program = _children(keeper)[0]
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    until_now(lambda: not _alive(keeper) and not _alive(program), what="keeper and program to end")
    assert network(phone) == before


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return fields.rpartition(")")[2].split()[0] != "Z"


class TestNameServers:
    @pytest.fixture
    def shape(self) -> Shape:
        return NamedShape()

    def test_the_program_asks_those_inside_and_the_machine_its_own(
        self, lab: Lab, server: ServerProcess
    ) -> None:
        phone = lab["phone1"]
        show = ("sh", "-c", "cat /etc/resolv.conf")
        if not Path("/etc/resolv.conf").exists():
            pytest.skip("there is no /etc/resolv.conf on this machine")
        before = Path("/etc/resolv.conf").read_text()
        inside = phone.run(command(server, *show), env=python_environment()).stdout
        assert "nameserver 10.200.1.53" in inside.splitlines()
        words = [*OPENTSM, "run", *reach(server), "--no-dns", "--", *show]
        assert phone.run(words, env=python_environment()).stdout == before
        assert Path("/etc/resolv.conf").read_text() == before
