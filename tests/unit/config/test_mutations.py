"""Whatever a file contains, the answer is settings or ConfigErrors with a place; never another exception."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.config import ConfigErrors, Settings, diff, loads
from opentsm.config.schema import OBJECTS

EXAMPLES = Path(__file__).parents[3] / "examples"
TEXTS = {name: (EXAMPLES / f"server.{name}").read_text() for name in ("toml", "xml")}
WORDS = [field.key for kind in OBJECTS for field in kind.fields] + [kind.key for kind in OBJECTS]
BITS = [
    *WORDS, "[", "]", "[[", "{", "}", "=", '"', "'", '"""', "\n", "#", ",", ".", "-", "0", "-1", "1e9", "nan",
    "inf", "true", "on", "9" * 30, "::", "::/0", "0.0.0.0/0", "10.64.1.5", "2020-01-01", "\x00", "\ufeff",
    "\u2028", "%", "é", "<", ">", "</", "/>", "&amp;", "&x;", "<!DOCTYPE x>", "<![CDATA[", "]]>", 'name="a"',
    "<a>", "x" * 300,
]  # fmt: skip


def load_or_refuse(text: str, format: str) -> Settings | None:
    try:
        return loads(text, source="f", format=format)
    except ConfigErrors as errors:
        problems = errors.problems
    lines = text.count("\n") + text.count("\r") + 1
    assert problems
    assert all(problem.message for problem in problems)
    assert all(problem.line is None or 1 <= problem.line <= lines for problem in problems)
    return None


def mutate(chance: random.Random, text: str) -> str:
    """A few edits: insert, delete, double or move a piece, swap words."""
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 1, 5, 40, 400]))
        piece = chance.choice([*BITS, text[start:end], "", ""])
        text = text[:start] + piece + text[end:]
    return text


def swap_values(chance: random.Random, text: str) -> str:
    """Give some settings the values of others: well-formed, and mostly wrong."""
    lines = text.splitlines()
    numbers = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    for _ in range(chance.choice([1, 2, 4])):
        one, other = chance.choice(numbers), chance.choice(numbers)
        lines[one] = lines[one].partition(" = ")[0] + " = " + lines[other].partition(" = ")[2]
    return "\n".join(lines)


@pytest.mark.parametrize("format", ["toml", "xml"])
def test_random_edits_give_settings_or_errors(format: str) -> None:
    chance = random.Random(17)
    outcomes = {True: 0, False: 0}
    for _ in range(1_500):
        outcomes[load_or_refuse(mutate(chance, TEXTS[format]), format) is not None] += 1
    assert min(outcomes.values()) > 10, "the edits must leave some files right and break some"


def test_swapped_values_give_settings_or_errors_and_what_loads_can_be_compared() -> None:
    chance = random.Random(23)
    base = loads(TEXTS["toml"])
    loaded = 0
    for _ in range(1_500):
        settings = load_or_refuse(swap_values(chance, TEXTS["toml"]), "toml")
        if settings is not None:
            loaded += 1
            assert bool(diff(base, settings)) == bool(str(diff(base, settings)) != "nothing changes")
            settings.rewrite_rows()
            assert all(interface.listeners for interface in settings.interfaces.values())
    assert loaded > 10


@pytest.mark.fuzz
@given(st.text(max_size=200), st.sampled_from(["toml", "xml"]))
def test_any_text_is_settings_or_errors(text: str, format: str) -> None:
    assert load_or_refuse(text, format) is None


@pytest.mark.fuzz
@given(
    st.dictionaries(
        st.sampled_from([kind.key for kind in OBJECTS]),
        st.dictionaries(
            st.sampled_from([*WORDS, "a", "b"]),
            st.one_of(
                st.integers(),
                st.text("ab0.,:-/ []", max_size=12),
                st.lists(st.one_of(st.integers(), st.text("ab", max_size=2)), max_size=3),
                st.dictionaries(st.sampled_from(WORDS), st.text("a10.:/", max_size=9), max_size=4),
            ),
            max_size=5,
        ),
        max_size=5,
    )
)
def test_any_tree_is_settings_or_errors(tree: dict[str, dict[str, object]]) -> None:
    lines = []
    for kind, settings in tree.items():
        lines += [f"[{kind}]", *(f"{key} = {as_toml(value)}" for key, value in settings.items())]
    load_or_refuse("\n".join(lines), "toml")


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(inner) for inner in value) + "]"
    return f"'{value}'" if isinstance(value, str) else str(value)
