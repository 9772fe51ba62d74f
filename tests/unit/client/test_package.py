"""``import opentsm`` is light, and its lists of names agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import opentsm

ROOT = Path(__file__).resolve().parents[3]


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, opentsm; print([m for m in sys.modules if m.startswith('opentsm.') or m == 'asyncio'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_type_checkers_know_the_same() -> None:
    stub = (ROOT / "src/opentsm/__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r"import .* as (\w+)$", stub, re.MULTILINE)) == set(opentsm.__all__)
    for name in opentsm.__all__:
        assert getattr(opentsm, name) is not None
        assert name in dir(opentsm)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = opentsm.conect  # type: ignore[attr-defined]
