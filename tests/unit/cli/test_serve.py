"""`opentsm serve` and `opentsm status`, as one types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.cli.main import run
from tests.unit.server.harness import configuration, make_certificates

SOURCE = Path(__file__).parents[3] / "src"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    make_certificates(tmp_path)
    path = tmp_path / "server.toml"
    path.write_text(configuration(tmp_path))
    return path


def test_check_says_what_a_good_file_serves(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"{file}: good. Interfaces: access (127.0.0.1 port 0)." in shown


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("address-pools", "adress-pools", "did you mean 'address-pools'?"),
        ("server.pem", "other.pem", "No such file or directory"),
        ("server.key", "ca.key", "this is not the key of"),
    ],
)
def test_check_says_what_is_wrong_with_a_bad_one(
    file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, says: str
) -> None:
    file.write_text(file.read_text().replace(old, new))
    assert run(["serve", "--check", str(file)]) == 1
    assert says in capsys.readouterr().err


def test_without_a_file_it_says_how_to_try(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("opentsm.cli.serve.DEFAULT_CONFIGURATION", tmp_path / "none.toml")
    assert run(["serve"]) == 1
    assert "`opentsm serve --dev` to try it" in capsys.readouterr().err


def test_dev_goes_with_no_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--dev", str(file)]) == 2
    capsys.readouterr()


@pytest.fixture
def development(tmp_path: Path) -> Iterator[tuple[list[str], Path]]:
    """A running development server: what it printed, and its admin socket."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-u", "-m", "opentsm.cli.main", "serve", "--dev", "--port", "0"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed: list[str] = []
    for line in process.stdout:
        printed.append(line.rstrip())
        if line.startswith("Ctrl-C"):
            break
    yield printed, tmp_path / "opentsm" / "dev" / "admin.sock"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "server stopped" in errors


def test_dev_runs_without_anything_and_says_how_to_connect(
    development: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    printed, socket = development
    (connect,) = [line.strip() for line in printed if "opentsm connect" in line]
    match = re.fullmatch(r"opentsm connect tls://127\.0\.0\.1:(\d+) --ca (\S+) --ping", connect)
    assert match
    assert Path(match.group(2)).read_text().startswith("-----BEGIN CERTIFICATE")
    assert run(["status", "--socket", str(socket), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["interfaces"][0]["ports"][0]["port"] == int(match.group(1))
    assert status["interfaces"][0]["services"] == "SIP, DDT"


def test_status_shows_a_running_server(
    development: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, socket = development
    shown: dict[str, str] = {}
    for what in ("status", "tunnels", "pools", "drops", "counters", "metrics", "reload"):
        code = run(["status", "--socket", str(socket), what])
        assert code == (1 if what == "reload" else 0), what
        shown[what] = capsys.readouterr().out
    assert "No warnings." in shown["status"]
    assert "Tunnels (0 of 0)" in shown["tunnels"]
    assert "inner_rx" in shown["counters"]
    assert "opentsm_uptime_seconds" in shown["metrics"]
    assert "is not a file" in shown["reload"]
    assert run(["status", "--socket", str(socket), "log-level", "debug"]) == 0
    assert run(["status", "--socket", str(socket), "tunnel", "12"]) == 1
    assert "there is no tunnel with TSID 0000000000000012" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["everything"], ["tunnel"], ["pools", "office"]])
def test_a_wrong_question_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", *words]) == 2
    capsys.readouterr()


def test_no_server_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--socket", str(tmp_path / "none")]) == 1
    assert "start one with `opentsm serve`" in capsys.readouterr().err
