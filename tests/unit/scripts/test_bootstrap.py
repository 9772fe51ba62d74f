"""scripts/bootstrap.py: what makes it build again, and what it says when something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import bootstrap

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree in a folder with a space in its name."""
    root = tmp_path / "a clone"
    (root / "rust/src").mkdir(parents=True)
    (root / "rust/target").mkdir()
    (root / "rust/src/lib.rs").write_text("// one\n")
    (root / "pyproject.toml").write_text("[build-system]\n[project]\nname='x'\n[tool.maturin]\n[tool.ruff]\n")
    monkeypatch.setattr(bootstrap, "ROOT", root)
    return root


def test_only_content_makes_the_user_plane_build_again(tree: Path) -> None:
    before = bootstrap.native_digest()
    os.utime(tree / "rust/src/lib.rs", (1, 1))
    (tree / "rust/target/output").write_text("anything")
    with (tree / "pyproject.toml").open("a") as file:
        file.write("line-length = 100\n")
    assert bootstrap.native_digest() == before
    (tree / "rust/src/lib.rs").write_text("// two\n")
    assert bootstrap.native_digest() != before


def test_a_renamed_source_counts_as_a_change(tree: Path) -> None:
    before = bootstrap.native_digest()
    (tree / "rust/src/lib.rs").rename(tree / "rust/src/main.rs")
    assert bootstrap.native_digest() != before


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.85.0", (1, 85, 0)), ("1.97.0-nightly", (1, 97, 0)), ("1.85", (1, 85))],
)
def test_versions_compare_as_numbers(text: str, expected: tuple[int, ...]) -> None:
    assert bootstrap.version_tuple(text) == expected
    assert bootstrap.version_tuple("1.100.0") > bootstrap.version_tuple("1.85.0")


def test_services_are_kept_quiet_only_of_packages_that_are_installed_here() -> None:
    packages = {need.package for group in bootstrap.GROUPS.values() for need in group}
    assert set(bootstrap.UNWANTED_SERVICES) <= packages


@pytest.mark.parametrize("package", ["ocserv", "openvpn", "softether-vpnserver", "softether-vpnclient"])
def test_a_rival_whose_daemon_debian_starts_is_kept_quiet(package: str) -> None:
    assert f"{package}.service" in bootstrap.UNWANTED_SERVICES[package]
    assert package in {need.package for need in bootstrap.GROUPS["bench"]}


def needs(*packages: str) -> tuple[bootstrap.Need, ...]:
    return tuple(bootstrap.Need(name, lambda: False, f"no {name}") for name in packages)


@pytest.mark.parametrize(("group", "fatal"), [("build", True), ("test", False)])
def test_what_cannot_be_installed_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str, fatal: bool
) -> None:
    monkeypatch.setenv("OPENTSM_NO_APT", "1")
    monkeypatch.setattr(bootstrap, "GROUPS", {"build": (), "test": ()} | {group: needs("one", "two")})
    try:
        bootstrap.provide_packages(["build", "test"])
        stopped = False
    except SystemExit:
        stopped = True
    said = capsys.readouterr().err
    assert stopped == fatal
    assert "one: without it no one" in said
    if shutil.which("apt-get"):
        assert "apt-get install one two" in said


def test_without_a_new_python_it_says_what_to_install(tmp_path: Path) -> None:
    """With a PATH on which there is no Python at all."""
    for tool in ("dirname", "sh"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        [ROOT / "scripts/bootstrap", "build"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bootstrap.main(["everything"])
    assert "build" in capsys.readouterr().err


def test_without_pesq_the_rest_goes_on(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "requirements").mkdir()
    (tree / "requirements/quality.txt").write_text("pesq==0.0.4\n")
    monkeypatch.setattr(bootstrap, "STAMP", tree / "stamp.json")
    monkeypatch.setattr(bootstrap, "PYTHON", Path("/bin/false"))
    bootstrap.provide_scoring()
    assert "going on without PESQ" in capsys.readouterr().out
    monkeypatch.setattr(bootstrap, "PYTHON", Path("/bin/true"))
    bootstrap.provide_scoring()
    assert "quality" in bootstrap.read_stamp()
