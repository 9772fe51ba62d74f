"""The repository's own promises: pins, rows, versions, files that must agree with each other."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import opentsm

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    """Distribution names of requirement lines, normalised."""
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in requirements)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}


def pins(name: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def test_everything_that_runs_or_checks_the_package_is_pinned() -> None:
    settings = project()["project"]
    runtime = names(settings["dependencies"])
    assert runtime <= names(pins("runtime"))
    assert names(settings["optional-dependencies"]["dev"]) <= names(pins("dev")) | names(pins("runtime"))


@pytest.mark.parametrize("name", ["runtime", "dev", "quality"])
def test_pins_are_exact_and_stand_once(name: str) -> None:
    lines = pins(name)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+(; .*)?", line) for line in lines)
    assert len(names(lines)) == len(lines)


def test_the_two_planes_have_one_version() -> None:
    crate = tomllib.loads((ROOT / "rust/Cargo.toml").read_text())
    assert crate["package"]["version"] == opentsm.__version__


def test_every_package_has_its_row() -> None:
    """The contract is exhaustive; this says so before lint does, and that no row is misspelt."""
    contract = project()["tool"]["importlinter"]["contracts"][0]
    rows = {re.sub(r"[()\s]", "", part) for row in contract["layers"] for part in re.split(r"[|:]", row)}
    package = ROOT / "src/opentsm"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.name for path in package.iterdir() if (path / "__init__.py").exists()
    }
    assert modules - {"__init__", "__main__"} <= rows


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src/opentsm/py.typed").exists()


def test_scripts_can_be_run() -> None:
    for script in (".ci/run", "scripts/bootstrap", "scripts/lint", "scripts/fuzz", "scripts/in-namespace"):
        assert os.access(ROOT / script, os.X_OK), script


def test_make_alone_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    help_text = "\n".join(line for line in makefile.splitlines() if line.startswith("#|"))
    for target in set(phony.group(1).split()) - {"help"}:
        assert re.search(rf"make {target}\b", help_text), target
