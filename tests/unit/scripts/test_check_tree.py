"""scripts/check_tree.py finds what it is for, and hears excuses with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import check_tree

Check = Callable[[str, str], list[str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Put text at a path of an otherwise empty tree; the rules it breaks, with the lines."""
    monkeypatch.setattr(check_tree, "ROOT", tmp_path)

    def run(path: str, text: str) -> list[str]:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return [f"{found.line} {found.rule}" for found in check_tree.checked(file)]

    return run


def long_function(lines: int, head: str, line: str, end: str = "") -> str:
    return "\n".join([head, *[line] * (lines - 1 - bool(end)), *([end] if end else [])]) + "\n"


@pytest.mark.parametrize(
    ("path", "text", "rules"),
    [
        ("src/a.py", "x = 1\n" * 800, []),
        ("src/a.py", "x = 1\n" * 801, ["1 file-size"]),
        ("rust/src/a.rs", "// x\n" * 801, ["1 file-size"]),
        ("docs/a.md", "x\n" * 2000, []),
        ("src/a.py", long_function(80, "def f() -> None:", "    pass"), []),
        ("src/a.py", "\n" + long_function(81, "async def f() -> None:", "    pass"), ["2 function-size"]),
        ("rust/src/a.rs", long_function(80, "pub(crate) fn f() {", "    g();", "}"), []),
        (
            "rust/src/a.rs",
            long_function(81, "    unsafe fn f() {", "        g();", "    }"),
            ["1 function-size"],
        ),
        ("tests/unit/test_a.py", "import time\n\n\ntime." + "sleep(0.1)\n", ["4 sleep"]),
        ("tests/unit/test_a.py", "await asyncio." + "sleep(delay)\n", ["1 sleep"]),
        ("tests/unit/test_a.py", "await asyncio." + "sleep(0)\n", []),
        ("src/a.py", "await asyncio." + "sleep(1)\n", []),
        ("README.md", "see https://py" + "pi.org/project/x\n", ["1 registry"]),
        ("Makefile", "cp a /ho" + "me/alice/b\n", ["1 home-path"]),
        ("README.md", "in https://example.org/ho" + "me/alice and $HOME/x\n", []),
        ("Cargo.lock", 'source = "registry+https://github.com/rust-lang/crates' + '.io-index"\n', []),
    ],
)
def test_rules(check: Check, path: str, text: str, rules: list[str]) -> None:
    assert check(path, text) == rules


@pytest.mark.parametrize(
    ("excuse", "rules"),
    [
        ("# tree: allow sleep because the kernel's timer is what is tested", []),
        ("# tree: allow sleep", ["2 sleep"]),
        ("# tree: allow registry because wrong rule", ["2 sleep"]),
    ],
)
def test_an_excuse_needs_the_rule_and_a_reason(check: Check, excuse: str, rules: list[str]) -> None:
    assert check("tests/test_a.py", f"{excuse}\ntime." + "sleep(1)\n") == rules
