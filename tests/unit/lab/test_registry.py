from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from opentsm.errors import PlatformError
from opentsm.lab import registry
from opentsm.lab.registry import LabRecord


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(registry, "NETNS_DIRECTORY", tmp_path / "netns")
    return registry.state_directory()


def a_dead_process() -> str:
    """A lab id whose process has ended."""
    script = "from opentsm.lab.registry import new_lab_id; print(new_lab_id())"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", script], env=path, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_lab_has_a_name_of_its_own() -> None:
    names = {registry.new_lab_id() for _ in range(10)}
    assert len(names) == 10
    assert all(registry.owner_alive(name) and registry.owner_alive(f"{name}-phone1") for name in names)


def test_a_name_of_a_dead_process_is_known_as_such() -> None:
    assert not registry.owner_alive(a_dead_process())


def test_a_pid_used_again_is_not_mistaken_for_the_owner() -> None:
    assert not registry.owner_alive(f"opentsm-{os.getpid()}-1-1")


@pytest.mark.parametrize("name", ["", "opentsm", "opentsm-x-y-z", "myns", "opentsm-1-1-1-../../etc"])
def test_other_names_are_nobodys_lab(name: str) -> None:
    assert not registry.owner_alive(name)


def test_a_running_lab_can_be_found(state: Path) -> None:
    record = LabRecord(registry.new_lab_id(), os.getpid(), False, {"phone1": "ns"}, {"phone1": ["10.0.0.1"]})
    registry.write_record(record)
    assert registry.running_labs() == [record]


def test_only_what_the_dead_left_is_cleaned(state: Path) -> None:
    dead, alive = a_dead_process(), registry.new_lab_id()
    for name in (dead, alive, "somebody-elses"):
        (state / name).mkdir()
    assert registry.clean() == [dead]
    assert sorted(entry.name for entry in state.iterdir()) == sorted([alive, "somebody-elses"])


def test_a_state_directory_that_others_can_write_is_refused(state: Path) -> None:
    state.chmod(0o777)
    with pytest.raises(PlatformError, match="not a private directory"):
        registry.state_directory()


def test_a_state_directory_that_is_a_link_is_refused(state: Path, tmp_path: Path) -> None:
    state.rmdir()
    state.symlink_to(tmp_path)
    with pytest.raises(PlatformError, match="not a private directory"):
        registry.state_directory()
