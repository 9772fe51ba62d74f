"""What was measured, as plain numbers: metric -> row -> series -> one value per round.

Everything that is shown (tables, ratios, verdicts, plots) is made from these, so that measurements of several
runs can be put together and be shown again without being measured again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ".1f") -> str:
        """``5.1 (4.9-5.6)``; without the brackets where there is but one value."""
        median, least, most = (f"{value:{form}}" for value in (self.median, self.least, self.most))
        return median if least == most else f"{median} ({least}-{most})"


@dataclass(slots=True)
class Figures:
    """The figures of one part.

    Args:
        values: metric -> row -> series -> one value per round.
        left_out: what was not measured (or not to the end) -> why.
    """

    values: Values = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, metric: str, row: str, series: str, value: float | None) -> None:
        """Keep the value of a round; None is none."""
        if value is not None:
            self.values.setdefault(metric, {}).setdefault(row, {}).setdefault(series, []).append(value)

    def get(self, metric: str, row: str, series: str) -> list[float]:
        """The rounds' values; none is an empty list."""
        return self.values.get(metric, {}).get(row, {}).get(series, [])

    def spread(self, metric: str, row: str, series: str) -> Spread | None:
        """Of the rounds' values."""
        values = self.get(metric, row, series)
        return Spread.of(values) if values else None

    def rows(self, metric: str) -> list[str]:
        """In the order in which they were measured."""
        return list(self.values.get(metric, {}))

    def series(self, metric: str) -> list[str]:
        """Of all rows, in the order in which they were measured."""
        return list(dict.fromkeys(name for row in self.values.get(metric, {}).values() for name in row))

    def ratio(self, metric: str, row: str, ours: str, theirs: Iterable[str]) -> Spread | None:
        """Ours over the least of theirs, round by round, so that noise hits both."""
        columns = [values for name in theirs if (values := self.get(metric, row, name))]
        best = [min(round_) for round_ in zip(*columns, strict=False)]
        pairs = zip(self.get(metric, row, ours), best, strict=False)
        shares = [a / b for a, b in pairs if b]
        return Spread.of(shares) if shares else None

    def best(self, metric: str, row: str, names: Iterable[str]) -> str | None:
        """Whose median is least."""
        spreads = {name: spread for name in names if (spread := self.spread(metric, row, name))}
        return min(spreads, key=lambda name: spreads[name].median) if spreads else None

    def as_json(self) -> dict[str, Any]:
        """The same in plain values."""
        return {"values": self.values, "left_out": self.left_out}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Figures:
        return cls(stored["values"], stored["left_out"])


def table(figures: Figures, metric: str, form: str = ".1f", *, head: str = "load") -> list[str]:
    """Rows down, series across, as Markdown."""
    names = figures.series(metric)
    lines = [f"| {head} | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for row in figures.rows(metric):
        spreads = (figures.spread(metric, row, name) for name in names)
        lines.append(f"| {row} | {' | '.join(s.text(form) if s else '-' for s in spreads)} |")
    return lines


def verdict(target: str, value: Spread | None, most: float, form: str = ".1f") -> str:
    """Met or missed if every round says so; anything else is for a quieter machine to decide."""
    if value is None:
        return f"not measured: {target}"
    word = "met" if value.most <= most else "MISSED" if value.least > most else "undecided"
    return f"{word}: {target}: {value.text(form)}"


def verdict_least(target: str, value: Spread | None, least: float, form: str = ".1f") -> str:
    """As ``verdict``, where more is better."""
    if value is None:
        return f"not measured: {target}"
    word = "met" if value.least >= least else "MISSED" if value.most < least else "undecided"
    return f"{word}: {target}: {value.text(form)}"
