"""The tables: complete, without dead ends, with a handler behind every name."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path

import pytest

from opentsm.protocol import states as s
from opentsm.protocol.client import ClientSession
from opentsm.protocol.client_ddt import ClientDatagram
from opentsm.protocol.server import ServerSession
from opentsm.protocol.server_ddt import ServerDatagram

MACHINES: list[tuple[s.Table, Iterable[enum.Enum], Iterable[enum.Enum], type]] = [
    (s.CLIENT, s.Client, s.ClientInput, ClientSession),
    (s.CLIENT_DDT, s.ClientDdt, s.ClientDdtInput, ClientDatagram),
    (s.SERVER, s.Server, s.ServerInput, ServerSession),
    (s.SERVER_DDT, s.ServerDdt, s.ServerDdtInput, ServerDatagram),
]


@pytest.mark.parametrize(("table", "states", "inputs", "owner"), MACHINES)
def test_every_pair_is_handled_or_deliberately_ignored(
    table: s.Table, states: Iterable[enum.Enum], inputs: Iterable[enum.Enum], owner: type
) -> None:
    assert set(table) == {(state, given) for state in states for given in inputs}
    for (state, _), row in table.items():
        if row.ignored:
            assert (row.next, row.handler) == (state, "")


@pytest.mark.parametrize(("table", "states", "inputs", "owner"), MACHINES)
def test_every_handler_exists_and_every_handler_is_used(
    table: s.Table, states: Iterable[enum.Enum], inputs: Iterable[enum.Enum], owner: type
) -> None:
    named = {row.handler for row in table.values()} - {""}
    written = {name.removeprefix("_do_") for name in vars(owner) if name.startswith("_do_")}
    assert named == written


@pytest.mark.parametrize(("table", "states", "inputs", "owner"), MACHINES)
def test_every_state_can_be_reached_and_every_input_matters_somewhere(
    table: s.Table, states: Iterable[enum.Enum], inputs: Iterable[enum.Enum], owner: type
) -> None:
    reached = {next(iter(states))}
    while more := {row.next for (state, _), row in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(states)
    assert {given for (_, given), row in table.items() if not row.ignored} == set(inputs)


@pytest.mark.parametrize("table", [s.CLIENT, s.SERVER])
def test_closed_is_final(table: s.Table) -> None:
    closed = [row.next for (state, _), row in table.items() if state.name == "CLOSED"]
    assert {state.name for state in closed} == {"CLOSED"}


def test_a_table_is_drawn_with_one_line_per_pair() -> None:
    text = s.render_table(s.SERVER_DDT)
    assert "| absent | service enabled | reserved | reserve |" in text
    assert len(text.splitlines()) == 2 + sum(not row.ignored for row in s.SERVER_DDT.values())


def test_a_diagram_starts_where_the_machine_starts() -> None:
    text = s.render_diagram(s.CLIENT)
    assert text.startswith("stateDiagram-v2\n    [*] --> connecting\n")
    assert "configuring --> active: configuration granted" in text


@pytest.mark.parametrize("name", s.TABLES)
def test_the_document_shows_these_tables(name: str) -> None:
    """docs/protocol.md holds what ``render_table`` makes; paste it again when a table changes."""
    document = (Path(__file__).parents[3] / "docs/protocol.md").read_text()
    assert s.render_table(s.TABLES[name]) in document
