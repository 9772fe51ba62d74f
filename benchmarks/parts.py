"""What a part of the benchmark is, and what it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from benchmarks.rig import ROOT
from opentsm.errors import PlatformError


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Args:
        rounds: that count. warm_up: a round before them is thrown away.
        seconds: length of each load.
        variants: names of the variants to compare. loads: names of the loads to compare them under.
        curves: names of the curves to draw.
        tool: tsm-load.
    """

    rounds: int
    warm_up: bool
    seconds: float
    variants: Sequence[str]
    loads: Sequence[str]
    curves: Sequence[str]
    tool: Path

    def numbers(self) -> Iterator[int]:
        """The rounds; 0 is the one that is thrown away."""
        return iter(range(0 if self.warm_up else 1, self.rounds + 1))

    @property
    def all_rounds(self) -> int:
        """How many there are, with the one that is thrown away."""
        return self.rounds + self.warm_up

    def say_round(self, number: int, what: str) -> None:
        """Progress."""
        say(f"round {number} of {self.rounds}{'' if number else ' (thrown away)'}: {what}")


@dataclass(slots=True)
class Shown:
    """What there is to say of a part's figures.

    Args:
        verdicts: a line for each target.
        sections: heading -> lines of Markdown.
        plots: name of the file, without its ending -> SVG.
    """

    verdicts: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmark; each runs alone, too.

    Args:
        name: on the command line. title: its heading.
        estimate: about how many seconds it takes.
        run: measures into figures that may have some already.
        show: tables, verdicts and plots of figures.
    """

    name: str
    title: str
    estimate: Callable[[Settings], float]
    run: Callable[[Settings, Figures], None]
    show: Callable[[Figures], Shown]


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(f"-- {text}", flush=True)


def module_rows(module: str, *arguments: str, apart: bool = True) -> list[dict[str, Any]]:
    """Run a benchmark that is a program of its own, and read its JSON: objects, or lists of them, in lines.

    Args:
        apart: it uses the loopback interface, and gets a network namespace of its own, where its ports are
            free.

    Raises:
        PlatformError: it failed; its words are on standard error.
    """
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if apart else []
    words += [sys.executable, "-m", module, *arguments]
    done = subprocess.run(words, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise PlatformError(f"`python -m {module} {' '.join(arguments)}` failed; its words are above")
    rows: list[dict[str, Any]] = []
    for line in done.stdout.splitlines():
        if line.startswith(("{", "[")):
            found = json.loads(line)
            rows += found if isinstance(found, list) else [found]
    return rows
