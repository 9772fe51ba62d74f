"""``opentsm connect`` as a user or a script sees it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opentsm.admin.certificates import Issued
from tests.unit.client.hosting import peer_in_a_thread
from tests.unit.client.peer import PASSWORD, Peer, make_authority, server_certificate

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "opentsm.cli.main", "connect"]


@pytest.fixture(scope="module")
def authority() -> Issued:
    return make_authority()


@pytest.fixture
def peer(authority: Issued) -> Iterator[Peer]:
    with peer_in_a_thread(server_certificate(authority)) as peer:
        yield peer


@pytest.fixture
def ca(authority: Issued, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.chain_pem)
    return str(path)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm", "COLUMNS": "120"}


def opentsm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_test_call_flipped_between_the_paths_loses_nothing(peer: Peer, ca: str) -> None:
    told = records(opentsm(peer.url, "--ca", ca, "--ping", "--flip", "0.6", "--seconds", "2", "--json"))
    events = [record["event"] for record in told]
    assert events[0] == "up"
    assert told[0]["inner_addresses"] == ["10.99.0.11"]
    assert {"switch", "ddt-available", "ddt-enabled", "ddt-disabled"} <= set(events)
    assert events[-1] == "summary"
    call = told[-1]["test_call"]
    for path in ("stream", "datagram"):
        assert call[path]["sent"] == call[path]["received"] > 10
        assert call[path]["lost"] == 0
    assert call["duplicates"] == 0


def test_plain_output_for_a_pipe(peer: Peer, ca: str, tmp_path: Path) -> None:
    peer.password = PASSWORD
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    done = opentsm(
        peer.url, "--ca", ca, "--user", "alice", "--password-file", str(secret), "--ddt", "--seconds", "0.5"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "inner addresses: 10.99.0.11" in done.stdout
    assert "ddt-up" in done.stdout
    assert "services: DDT" in done.stdout
    assert "\x1b[" not in done.stdout


def test_errors_are_one_message_that_helps(peer: Peer, ca: str) -> None:
    peer.password = PASSWORD
    refused = opentsm(peer.url, "--ca", ca, "--user", "alice")
    assert refused.returncode == 1
    assert refused.stderr.startswith("opentsm: the server refused: unauthorized")
    distrusted = opentsm(peer.url)
    assert distrusted.returncode == 1
    assert "tls_unknown_issuer" in distrusted.stderr
    assert "pin" in distrusted.stderr
    assert "Traceback" not in refused.stderr + distrusted.stderr
    assert opentsm(peer.url, "--mode", "sideways").returncode == 2


def test_keys_turn_the_switch_and_q_ends_with_a_summary(peer: Peer, ca: str) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, peer.url, "--ca", ca, "--ping"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    try:
        shown = _read_until(ours, "keys: s stream")
        os.write(ours, b"d")
        shown += _read_until(ours, "ddt-enabled")
        os.write(ours, b"q")
        shown += _read_until(ours, None)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "switch datagram, now on datagram" in shown
    assert "10.99.0.11" in shown


def _read_until(terminal: int, text: str | None) -> str:
    """What the program shows until ``text`` has been seen (None: until it ends)."""
    shown = ""
    while text is None or text not in shown:
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the program has ended
            assert text is None, shown
            return shown
    return shown
