"""The examples do what they say, as programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.admin.certificates import Issued
from tests.unit.client.hosting import peer_in_a_thread
from tests.unit.client.peer import Peer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def served(certificate: Issued) -> Iterator[Peer]:
    with peer_in_a_thread(certificate) as peer:
        yield peer


@pytest.fixture
def ca_file(ca: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(ca)
    return path


def run(name: str, peer: Peer, ca_file: Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, peer.url, ca_file],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_echo_client(served: Peer, ca_file: Path) -> None:
    said = run("echo_client.py", served, ca_file)
    assert "inner address 10.99.0.11" in said
    assert "'hello' came back from 10.99.0.1 port 7" in said


def test_ddt_switch(served: Peer, ca_file: Path) -> None:
    said = run("ddt_switch.py", served, ca_file)
    kinds = [line for line in said.splitlines() if line.startswith("[call 1]")]
    assert kinds[:6] == [
        "[call 1] ddt-available",
        "[call 1] ddt-up",
        "[call 1] ddt-enabled",
        "[call 1] path-switched",
        "[call 1] ddt-disabled",
        "[call 1] path-switched",
    ]
    stream, datagram, duplicated = _numbers(said)
    for line in (stream, datagram):
        words = line.replace(",", "").split()
        assert int(words[1]) > 20
        assert (words[1], words[5]) == (words[3], "0")
    assert duplicated == "0 duplicated"


def _numbers(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(("stream:", "datagram:", "0 dup"))]


def test_tsc_style(served: Peer, ca_file: Path) -> None:
    said = run("tsc_style.py", served, ca_file)
    assert "DDT: available True, enabled False, opaque 'my own pointer'" in said
    assert "DDT: available True, enabled True, opaque 'my own pointer'" in said
    assert "(b'media', ('10.99.0.1', 7))" in said


def test_a_library_that_knows_nothing_of_us(served: Peer, ca_file: Path) -> None:
    pytest.importorskip("aiortp", reason="the package aiortp is not installed; requirements/dev.txt has it")
    said = run("aiortp_call.py", served, ca_file).splitlines()
    assert said[0] == "aiortp on 10.99.0.11: 0 packets lost"
    heard = {line.split()[5]: int(line.split()[0]) for line in said[1:]}
    assert set(heard) == {"stream", "datagram"}
    assert min(heard.values()) > 50
