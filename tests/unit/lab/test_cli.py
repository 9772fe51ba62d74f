from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opentsm.lab import registry
from opentsm.lab.cli import app
from opentsm.lab.registry import LabRecord

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def _private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_help_teaches_by_example() -> None:
    text = run(app, ["--help"]).output
    assert "opentsm lab set delay=40ms" in text
    for command in ("up", "shell", "set", "firewall", "status", "probe", "clean"):
        assert command in text


@pytest.mark.parametrize("command", ["up", "shell", "set", "firewall", "probe"])
def test_every_command_has_examples(command: str) -> None:
    assert f"opentsm lab {command}" in run(app, [command, "--help"]).output


def test_without_a_lab_the_next_step_is_named() -> None:
    assert "opentsm lab up" in run(app, ["status"]).output
    result = run(app, ["set", "delay=40ms"])
    assert result.exit_code == 1
    assert "opentsm lab up" in result.output


def test_wrong_words_are_refused_before_anything_is_made() -> None:
    result = run(app, ["up", "--wan", "delay=40"])
    assert result.exit_code == 1
    assert "40ms" in result.output
    result = run(app, ["up", "--firewall", "leaky"])
    assert result.exit_code == 1
    assert "tcp-443-only" in result.output


def two_labs() -> list[str]:
    records = [LabRecord(registry.new_lab_id(), os.getpid(), False, {"phone1": "ns"}) for _ in range(2)]
    for record in records:
        registry.write_record(record)
    return [record.lab for record in records]


def test_of_several_labs_one_must_be_named() -> None:
    labs = two_labs()
    result = run(app, ["set", "delay=1ms"])
    assert result.exit_code == 1
    assert all(lab in result.output for lab in labs)
    assert all(lab in run(app, ["status"]).output for lab in labs)


def test_an_unknown_host_is_answered_with_those_there_are() -> None:
    lab = two_labs()[0]
    result = run(app, ["shell", "laptop", "--lab", lab])
    assert result.exit_code == 1
    assert "phone1" in result.output
