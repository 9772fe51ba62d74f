"""The README's first server and first program run as they stand there, and two softphones call each other."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from opentsm.lab.demo.stage import free_port
from opentsm.lab.waiting import until_now

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Running:
    """The first server, and an environment in which ``opentsm`` is this one."""

    url: str
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def softphone(self, name: str, user: str) -> list[str]:
        (self.folder / "secret").write_text("secret\n")
        who = ["--user", user, "--password-file", "secret", "--ca", "first-server/ca.pem"]
        return ["opentsm", name, "--server", self.url, *who]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("first")
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "opentsm"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m opentsm.cli.main "$@"\n')
    wrapper.chmod(0o755)
    port = free_port()
    path = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = os.environ | {"PATH": path, "PORT": str(port), "PYTHONPATH": str(ROOT / "src")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", str(ROOT / "examples/first_server.sh")],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )

    def listens() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until_now(listens, within=60, what="the first server")
        yield Running(f"tls://127.0.0.1:{port}", folder, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_the_first_program_hears_itself_on_both_tunnels(server: Running) -> None:
    program = str(ROOT / "examples/first_program.py")
    said = server.run(sys.executable, program, server.url, "first-server/ca.pem").splitlines()
    assert said[0].startswith("inside the tunnel I am 10.64.1.")
    assert re.fullmatch(r"50 packets there and back by the stream tunnel, \d+\.\d ms", said[1])
    assert re.fullmatch(r"50 packets there and back by the datagram tunnel, \d+\.\d ms", said[2])


def test_two_softphones_call_each_other_through_it(server: Running) -> None:
    answer = server.softphone("answer", "bob")
    bob = subprocess.Popen(
        [*answer, "--calls", "1", "--json"],
        cwd=server.folder,
        env=server.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bob.stdout is not None
    assert '"ready"' in bob.stdout.readline()
    call = server.softphone("call", "alice")
    said = server.run(*call, "bob", "--seconds", "2s", "--ddt-after", "1s")
    assert re.search(r"sent .*packets \(\d+ by stream, \d+ by datagram\)", said)
    heard, _ = bob.communicate(timeout=30)
    assert bob.returncode == 0
    assert '"ended_by":"remote"' in heard


@pytest.mark.parametrize(("name", "language"), [("first_server.sh", "sh"), ("first_program.py", "python")])
def test_the_readme_shows_these_very_files(name: str, language: str) -> None:
    text = (ROOT / "examples" / name).read_text()
    assert f"[examples/{name}](examples/{name})" in README
    assert f"```{language}\n{text}```\n" in README
    assert text.count("\n") <= 50  # one screen
