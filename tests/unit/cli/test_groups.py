from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from opentsm.cli.groups import grouped


@dataclass(frozen=True)
class Where:
    host: Annotated[str, typer.Option(help="Where to.")] = "here"
    port: Annotated[int, typer.Option(min=1)] = 443


@dataclass(frozen=True)
class How:
    loud: Annotated[bool, typer.Option("--loud")] = False


def run(*arguments: str) -> tuple[int, str, list[Any]]:
    seen: list[Any] = []
    app = typer.Typer()

    @app.command()
    @grouped
    def command(name: Annotated[str, typer.Argument()], where: Where, how: How, times: int = 1) -> None:
        """Say it."""
        seen.append((name, where, how, times))

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output, seen


def test_fields_are_options_and_the_command_gets_the_groups() -> None:
    assert run("x", "--port", "5", "--loud", "--times", "2") == (
        0,
        "",
        [("x", Where("here", 5), How(True), 2)],
    )
    assert run("x")[2] == [("x", Where(), How(), 1)]


def test_checks_and_help_are_those_of_single_options() -> None:
    code, said, seen = run("x", "--port", "0")
    assert (code, seen) == (2, [])
    assert "--port" in said
    assert "Where to." in run("--help")[1]


def test_one_name_cannot_stand_for_two() -> None:
    with pytest.raises(ValueError, match="host"):

        @grouped
        def command(where: Where, host: str) -> None: ...
