"""House rules that no linter knows: sizes, sleeps in tests, names that must not be in the repository.

Prints ``file:line: what`` for each finding and exits with 1 if any of them is an error. A line can be
excused with a comment ``tree: allow RULE because ...`` on it or right above; without a reason it is not.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

MAX_FILE_LINES: Final = 800
"""What a reader can still hold in mind; the usual size is half of it."""

MAX_FUNCTION_LINES: Final = 80
"""Two screens. Nine functions in ten should be under 40; this is where lint says no."""

SOURCE_SUFFIXES: Final = {".py", ".pyi", ".rs", ".toml", ".sh", ".md", ".txt", ".yml", ".yaml", ".cfg", ""}
SIZED_SUFFIXES: Final = {".py", ".pyi", ".rs"}

# Written in two halves so that this file does not find itself.
REGISTRIES: Final = tuple(
    head + "." + tail
    for head, tail in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("crates", "io"),
        ("deb.debian", "org"),
        ("security.debian", "org"),
        ("registry.npmjs", "org"),
        ("proxy.golang", "org"),
        ("repo1.maven", "org"),
    )
)
HOME_PATH: Final = re.compile(r"(?<![\w.$}])/(?:home/[a-z]\w*|root|Users/[A-Za-z]\w*|work)/\w")
SLEEP: Final = re.compile(r"\b(?:time|asyncio|anyio|thread)(?:\.|::)sleep\(\s*(?!0\s*\))")
EXCUSE: Final = re.compile(r"tree: allow ([\w-]+) because \w")

# Cargo.lock names its registry in each entry; it is written by cargo alone.
SKIPPED_FILES: Final = {"Cargo.lock", "LICENSE"}
FUNCTION_NODES: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule at one place."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text} [{self.rule}]"


def tree_files() -> Iterator[Path]:
    """Files that are or could be committed; every file where this is no git clone."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        yield from (ROOT / name for name in sorted(set(done.stdout.split("\0"))) if name)
    else:
        hidden = {".venv", ".git", "target"}
        yield from (p for p in sorted(ROOT.rglob("*")) if hidden.isdisjoint(p.relative_to(ROOT).parts))


def excused(lines: list[str], line: int, rule: str) -> bool:
    """Whether the line (1-based) or the one above it carries an excuse for this rule."""
    near = lines[max(0, line - 2) : line]
    return any(match.group(1) == rule for text in near for match in EXCUSE.finditer(text))


def line_findings(path: str, lines: list[str]) -> Iterator[Finding]:
    """Rules that look at one line at a time."""
    is_test = path.startswith("tests/") or "/tests/" in path
    for number, text in enumerate(lines, start=1):
        if any(host in text for host in REGISTRIES):
            yield Finding(path, number, "registry", "names the host of a package registry")
        if HOME_PATH.search(text):
            yield Finding(path, number, "home-path", "names a folder of one machine")
        if is_test and SLEEP.search(text):
            yield Finding(path, number, "sleep", "sleeps in a test; wait for what must happen instead")


def oversized(path: str, line: int, name: str, length: int) -> Finding:
    """A function that does not fit on two screens."""
    text = f"{name} has {length} lines, more than {MAX_FUNCTION_LINES}; split it"
    return Finding(path, line, "function-size", text)


def function_findings(path: str, source: str) -> Iterator[Finding]:
    """Python functions that cannot be seen whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTION_NODES):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield oversized(path, node.lineno, node.name, length)


RUST_FUNCTION: Final = re.compile(
    r"^( *)(?:pub(?:\([\w:]+\))? )?(?:(?:async|const|unsafe|extern \"C\") )*fn (\w+)"
)


def rust_function_findings(path: str, lines: list[str]) -> Iterator[Finding]:
    """Rust functions that cannot be seen whole; rustfmt puts the closing brace under the ``fn``."""
    for start, text in enumerate(lines):
        if found := RUST_FUNCTION.match(text):
            closing = found.group(1) + "}"
            end = next((i for i in range(start, len(lines)) if lines[i].rstrip() == closing), start)
            if end - start + 1 > MAX_FUNCTION_LINES:
                yield oversized(path, start + 1, found.group(2), end - start + 1)


def file_findings(file: Path) -> Iterator[Finding]:
    """Everything wrong with one file, excuses not yet heard."""
    path = file.relative_to(ROOT).as_posix()
    source = file.read_text(encoding="utf-8", errors="replace")
    lines = source.splitlines()
    if file.suffix in SIZED_SUFFIXES and len(lines) > MAX_FILE_LINES:
        yield Finding(path, 1, "file-size", f"{len(lines)} lines, more than {MAX_FILE_LINES}; split it")
    yield from line_findings(path, lines)
    if file.suffix == ".py":
        yield from function_findings(path, source)
    if file.suffix == ".rs":
        yield from rust_function_findings(path, lines)


def checked(file: Path) -> list[Finding]:
    """The findings of one file that have no excuse."""
    if not file.is_file() or file.name in SKIPPED_FILES or file.suffix not in SOURCE_SUFFIXES:
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [found for found in file_findings(file) if not excused(lines, found.line, found.rule)]


def main() -> int:
    """Check the tree; the exit code."""
    findings = [found for file in tree_files() for found in checked(file)]
    for found in sorted(findings):
        print(found)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
