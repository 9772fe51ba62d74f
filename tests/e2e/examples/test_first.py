"""The README's first server and first program run as they stand there, and two softphones call each other."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
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


class Terminal:
    """A program on a terminal of its own: what it shows, and keys for it."""

    def __init__(self, command: list[str], server: Running) -> None:
        self._here, there = pty.openpty()
        # Wide enough for a live line in one piece.
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 250, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=server.folder, env=server.environment, stdin=there, stdout=there, stderr=there
        )
        os.close(there)
        self.shown = ""

    def press(self, key: str) -> None:
        os.write(self._here, key.encode())

    def until(self, pattern: str) -> None:
        """Until it shows something new that matches."""
        begin, end = len(self.shown), time.monotonic() + 60
        while not re.search(pattern, self.shown[begin:]):
            assert time.monotonic() < end, self.shown[-2000:]
            if select.select([self._here], [], [], 0.1)[0]:
                self.shown += os.read(self._here, 65536).decode(errors="replace")

    def close(self) -> None:
        """Read what is left, so that nothing waits for a reader."""
        with contextlib.suppress(OSError):  # the terminal ends with its last program
            while data := os.read(self._here, 65536):
                self.shown += data.decode(errors="replace")
        os.close(self._here)
        self.process.wait(20)


def test_keys_turn_the_switch_dial_and_hang_up_while_a_line_shows_the_call(server: Running) -> None:
    bob = Terminal([*server.softphone("answer", "bob"), "--calls", "1"], server)
    bob.until("waiting for calls")
    alice = subprocess.Popen(
        [*server.softphone("call", "alice"), "bob", "--json"],
        cwd=server.folder,
        env=server.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    bob.until(r"on stream \| lost .* % \| late .* \| jitter .* ms \| round trip .* \| MOS \d\.\d\d")
    bob.press("d")
    bob.until("on datagram")
    bob.press("5")
    bob.press("#")
    bob.until(r"0:0[2-9] \| on datagram")
    bob.press("s")
    bob.until("on stream")
    bob.press("q")
    report = json.loads(alice.communicate(timeout=30)[0])
    bob.close()
    assert re.search(r"sent .*\(\d+ by stream, \d+ by datagram\)", bob.shown)
    assert (report["ended_by"], report["keys"]) == ("remote", "5#")


@pytest.mark.parametrize(("name", "language"), [("first_server.sh", "sh"), ("first_program.py", "python")])
def test_the_readme_shows_these_very_files(name: str, language: str) -> None:
    text = (ROOT / "examples" / name).read_text()
    assert f"[examples/{name}](examples/{name})" in README
    assert f"```{language}\n{text}```\n" in README
    assert text.count("\n") <= 50  # one screen
