"""``make bench``: measure, part by part, say what was found, keep everything in bench-results/."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import busy, curves, one_client, program_parts, relay_parts, rivals
from benchmarks.figures import Figures
from benchmarks.machine import build_load_tool, load_average, machine_facts
from benchmarks.parts import Part, Settings, say
from benchmarks.rig import ROOT
from opentsm.errors import PlatformError
from opentsm.lab.privileges import Mode, ensure_privileges

PARTS: Final[dict[str, Part]] = {
    part.name: part
    for part in (
        *(one_client.PART, relay_parts.RELAY, relay_parts.TRUNK, program_parts.SET_UP, rivals.PART),
        *(program_parts.DELAY, busy.PART, program_parts.ROWS_PART, curves.PART, program_parts.FALLBACK),
    )
}

RESULTS: Final = ROOT / "bench-results"
VARIANTS: Final = tuple(kind.name for kind in one_client.VARIANTS)
CURVES: Final = tuple(curves.CURVES)


def parse_arguments() -> argparse.Namespace:
    """The command line: ``make bench BENCH_ARGS='--rounds 7'``."""
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--list", action="store_true", help="say which parts there are and how long they take"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--no-warm-up", action="store_true", help="no round is thrown away")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="variants to compare")
    parser.add_argument(
        "--loads",
        nargs="+",
        choices=one_client.LOADS,
        default=one_client.LOADS,
        help="loads to compare under",
    )
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES, help="curves to draw")
    parser.add_argument("--into", type=Path, help="add to the results in this folder, and show them together")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of two seconds, to see that it works"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 2.0
    return options


class Folder:
    """The results of one run, or of several that were put together.

    Args:
        path: the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, str]] = []
        self.figures: dict[str, Figures] = {}
        path.mkdir(parents=True, exist_ok=True)
        if self._json.exists():
            stored: dict[str, Any] = json.loads(self._json.read_text())
            self.runs = stored["runs"]
            self.figures = {name: Figures.from_json(part) for name, part in stored["parts"].items()}

    @property
    def _json(self) -> Path:
        return self.path / "results.json"

    def keep(self) -> str:
        """Write everything down; returns the report."""
        parts = {name: figures.as_json() for name, figures in self.figures.items()}
        self._json.write_text(json.dumps({"runs": self.runs, "parts": parts}, indent=1) + "\n")
        text = self._report()
        (self.path / "results.md").write_text(text)
        return text

    def _report(self) -> str:
        verdicts, body = [], []
        for part in PARTS.values():
            figures = self.figures.get(part.name)
            if figures is None:
                verdicts.append(f"not measured: {part.title}")
                continue
            shown = part.show(figures)
            verdicts += shown.verdicts
            body += [f"## {part.title}", ""]
            for heading, lines in shown.sections.items():
                if lines:
                    body += [f"### {heading}", "", *lines, ""]
            for name, svg in shown.plots.items():
                (self.path / f"{name}.svg").write_text(svg)
                body += [f"![{name}]({name}.svg)", ""]
            if figures.left_out:
                body += ["### Left out", "", *(f"- {n}: {why}" for n, why in figures.left_out.items()), ""]
        head = ["# Results", ""]
        for facts in self.runs:
            head += [*(f"- {name}: {value}" for name, value in facts.items()), ""]
        head += ["## Verdicts", "", *(f"- {line}" for line in verdicts), ""]
        return "\n".join([*head, *body, "Median (least-most) of the rounds. `-`: not measured."]) + "\n"


def run(parts: list[Part], settings: Settings, folder: Folder) -> None:
    """The parts in turn; what one has found is kept before the next begins."""
    left = sum(part.estimate(settings) for part in parts)
    for part in parts:
        say(f"{part.title}: about {_minutes(part.estimate(settings))}; the whole: {_minutes(left)}")
        left -= part.estimate(settings)
        figures = folder.figures.setdefault(part.name, Figures())
        try:
            part.run(settings, figures)
        except (PlatformError, ConnectionError) as error:
            figures.left_out[part.title] = str(error)
            say(f"{part.title} is left out from here on: {error}")
        folder.keep()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"


def _without_root(names: list[str]) -> list[str]:
    """The variants that can do without the machine's root."""
    for name in names:
        if not name.startswith(("opentsm", "plain")):
            print(f"{name} needs real root; this is a user namespace")
    return [name for name in names if name.startswith(("opentsm", "plain"))]


def main() -> int:
    """Returns the exit status: 0 if there are results."""
    options = parse_arguments()
    # Also where a shell that started us in the background has told us to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = [PARTS[name] for name in options.parts]
    settings = Settings(
        rounds=options.rounds,
        warm_up=not options.no_warm_up,
        seconds=options.seconds,
        variants=list(options.only),
        loads=list(options.loads),
        curves=list(options.curves),
        tool=Path(),
    )
    if options.list:
        for part in parts:
            print(f"{part.name:12} {part.title}, about {_minutes(part.estimate(settings))}")
        return 0
    try:
        mode = ensure_privileges()
        if (os.cpu_count() or 1) < 2:
            raise PlatformError("two processor cores are needed: one for the server, one for all else")
        names = _without_root(list(options.only)) if mode is Mode.ROOTLESS else list(options.only)
        facts = machine_facts()
        settings = Settings(
            rounds=settings.rounds,
            warm_up=settings.warm_up,
            seconds=settings.seconds,
            variants=names,
            loads=settings.loads,
            curves=settings.curves,
            tool=build_load_tool(),
        )
    except PlatformError as error:
        print(f"bench: nothing can be measured here: {error}", file=sys.stderr)
        return 1
    folder = Folder(options.into or RESULTS / datetime.now(UTC).strftime("%Y%m%d-%H%M%S"))
    facts["command"] = f"make bench BENCH_ARGS='{' '.join(sys.argv[1:])}'"
    folder.runs.append(facts)
    try:
        run(parts, settings, folder)
    except KeyboardInterrupt:
        say("interrupted; what there is follows")
    facts["load after the run"] = load_average()
    print(f"\n{folder.keep()}\nKept in {folder.path}")
    return 0 if any(figures.values for figures in folder.figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
