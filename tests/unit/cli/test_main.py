"""The `opentsm` command as a person meets it: help, errors, exit codes, and how soon it answers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from opentsm import __version__
from opentsm.cli import main as module
from opentsm.cli.main import COMMANDS, CommandEntry, run
from opentsm.errors import ConfigError, PlatformError


def test_help_lists_every_installed_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for entry in COMMANDS:
        assert (f" {entry.name} " in shown) == entry.is_installed()
    assert " certs " in shown


def test_help_imports_no_command() -> None:
    """What makes `opentsm --help` quick."""
    code = (
        "import sys; from opentsm.cli.main import run; run(['--help']);"
        "print('LOADED', *sorted(m for m in sys.modules if m.startswith(('opentsm', 'cryptography'))))"
    )
    source = Path(__file__).parents[3] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=source
    )
    loaded = "LOADED opentsm opentsm.cli opentsm.cli.main opentsm.errors"
    assert done.stdout.splitlines()[-1] == loaded


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"opentsm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["certss"], "Did you mean"),
        (["certs", "server", "somewhere"], "give --name HOST or --address IP"),
        (["certs", "server", "somewhere", "--address", "host.example"], "not an IP address"),
        (["certs", "init", "--wrong"], "--wrong"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_command_whose_module_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = CommandEntry("gone", "Not here.", "opentsm.nowhere.gone")
    monkeypatch.setattr(module, "COMMANDS", (*COMMANDS, gone))
    assert run(["--help"]) == 0
    assert "Not here." not in capsys.readouterr().out
    assert run(["gone"]) == 2


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Exception]:
    """A command `fail` that raises what the test puts into the list."""
    (tmp_path / "opentsm_failing.py").write_text(
        "import typer\n"
        "app = typer.Typer()\n"
        "raises = []\n"
        "@app.command()\n"
        "def fail() -> None:\n"
        "    raise raises[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "opentsm_failing", raising=False)
    monkeypatch.setattr(module, "COMMANDS", (CommandEntry("fail", "Fails.", "opentsm_failing"),))
    raises: list[Exception] = importlib.import_module("opentsm_failing").raises
    return raises


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ConfigError("no such realm", source="a.toml", line=7, hint="name one"),
            "opentsm: a.toml:7: no such realm (name one)\n",
        ),
        (PlatformError("there is no /dev/net/tun here"), "opentsm: there is no /dev/net/tun here\n"),
        (PermissionError(13, "Permission denied", "a.toml"), "opentsm: a.toml: Permission denied\n"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], failing: list[Exception], error: Exception, sentence: str
) -> None:
    failing.append(error)
    assert run(["fail"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", sentence)


def test_a_bug_is_not_dressed_up_as_an_error(failing: list[Exception]) -> None:
    failing.append(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        run(["fail"])
