"""`opentsm lab` as a person at two terminals uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

COMMAND = [sys.executable, "-m", "opentsm.lab"]
WAIT = 30.0


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A state directory of our own, so that other labs on this machine do not matter."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(tmp_path_factory.mktemp("labs")),
        "COLUMNS": "120",
    }


@pytest.fixture(scope="module", params=["root", "rootless"])
def up(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if request.param == "root":
        unshare = []
    elif subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no user namespaces")
    argv = [*unshare, *COMMAND, "up", "--wan", "delay=10ms", "--firewall", "tcp-udp-443"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "is up" in line:
                break
        yield process
        process.send_signal(signal.SIGINT)
        assert "The lab is gone." in process.stdout.read()
        assert process.wait(WAIT) == 0


def lab(environment: dict[str, str], *arguments: str, ok: bool = True) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout + done.stderr


def test_a_second_terminal_sees_and_changes_the_lab(
    up: subprocess.Popen[str], environment: dict[str, str], tmp_path: Path
) -> None:
    assert "delay=10ms" in lab(environment, "status")
    assert "192.168.1.11" in lab(environment, "shell", "phone1", "--", "ip", "-br", "address")
    assert "up   delay=10ms loss=1% udp=reject" in lab(
        environment, "set", "-d", "up", "loss=1%", "udp=reject"
    )
    assert "perfect" in lab(environment, "set", "--reset")
    # The probe's port is not 443: the firewall counts it.
    assert "100.00" in lab(environment, "probe", "--seconds", "0.2")
    assert "refuse-udp-up" in lab(environment, "firewall")
    assert "everything" not in lab(environment, "firewall", "everything", "--rebind", "--udp-timeout", "9")
    page = tmp_path / "report.html"
    assert " 0.00 " in lab(environment, "probe", "--seconds", "0.2", "--html", str(page))
    assert "<svg" in page.read_text()
    lab(environment, "clean")
    assert "192.168.1.11" in lab(environment, "status")
    assert "no host laptop" in lab(environment, "shell", "laptop", ok=False)
    assert "no site 9" in lab(environment, "set", "--site", "9", ok=False)
