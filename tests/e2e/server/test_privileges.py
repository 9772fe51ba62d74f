"""A server that starts as root, opens a port and a TUN device, and goes on as somebody else."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opentsm.lab import Lab, LabSpec
from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.wan import python_environment

pytestmark = pytest.mark.netns

ACCOUNT = "nobody"


@dataclass
class Careful(Shape):
    """A server that becomes ``nobody``."""

    def text(self, folder: Path) -> str:
        return super().text(folder).replace("[server]", f'[server]\nuser = "{ACCOUNT}"')


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    with Lab(LabSpec(phones=1, emulate=False)) as lab:
        make_credentials(folder, lab["server"])
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777 if path.is_dir() else 0o644)
        process = ServerProcess(lab["server"], folder, Careful())
        process.start()
        try:
            yield process
        finally:
            process.stop()
            subprocess.run(["rm", "-r", str(folder)], check=True)


def test_it_is_nobody_and_still_serves_and_reloads(server: ServerProcess) -> None:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert set(uids) == {str(pwd.getpwnam(ACCOUNT).pw_uid)}
    assert (server.folder / "admin.sock").stat().st_uid == pwd.getpwnam(ACCOUNT).pw_uid
    server.reload(services=("SIP",))
    overview = server.command("status")
    assert overview["reload"]["error"] == ""
    assert overview["interfaces"][0]["services"] == "SIP"


def test_the_device_has_the_realms_addresses(server: ServerProcess) -> None:
    shown = server.host.run(["ip", "-brief", "address", "show", "dev", "tsm0"]).stdout
    assert {"10.64.0.1/16", "fd00:64::1/64"} <= set(str(shown).split())
    link = str(server.host.run(["ip", "link", "show", "dev", "tsm0"]).stdout)
    assert "mtu 1400" in link


def test_a_second_server_is_told_that_the_port_is_taken(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "opentsm.cli.main", "serve", str(server.config)]
    second = server.host.popen(command, stderr=subprocess.PIPE, env=python_environment(), text=True)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "cannot listen on 0.0.0.0:443 (tls and dtls): another program has it" in said
    assert server.command("status")["interfaces"][0]["listening"], "the first one goes on"
