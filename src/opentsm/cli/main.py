"""Entry point of the ``opentsm`` command.

Commands are listed in ``COMMANDS`` and imported when they are used, so that ``opentsm --help`` and shell
completion answer at once. A command is a module with a ``typer.Typer`` named ``app``.

Exit codes: 0 done; 1 it could not be done, and one sentence says why; 2 the command line is wrong.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from opentsm import __version__
from opentsm.errors import OpenTsmError


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One command: its name, one line for the list, and the module with its ``app``."""

    name: str
    summary: str
    module: str

    def is_installed(self) -> bool:
        """Whether the module is there. Unlike importlib.util.find_spec this does not import its package."""
        where: Sequence[str] | None = None
        name = ""
        for part in self.module.split("."):
            name = f"{name}.{part}" if name else part
            spec = PathFinder.find_spec(name, where)
            if spec is None:
                return False
            where = spec.submodule_search_locations or ()
        return True


COMMANDS: Final = (
    CommandEntry("serve", "Run a TSM server.", "opentsm.cli.serve"),
    CommandEntry("connect", "Make a tunnel and show it live.", "opentsm.cli.connect"),
    CommandEntry("up", "Give this machine a tunnel (TUN device; root).", "opentsm.cli.up"),
    CommandEntry("run", "Run one program whose only way out is a tunnel.", "opentsm.cli.run"),
    CommandEntry("media", "Show or change where media of a running tunnel goes.", "opentsm.cli.media"),
    CommandEntry("call", "Place a call through the tunnel.", "opentsm.cli.call"),
    CommandEntry("answer", "Take calls through the tunnel.", "opentsm.cli.answer"),
    CommandEntry("call-test", "Test the line to a server, on each path.", "opentsm.cli.call_test"),
    CommandEntry("status", "Show a running server: tunnels, pools, services, drops.", "opentsm.cli.status"),
    CommandEntry("certs", "Make certificates: a development CA, servers, clients.", "opentsm.cli.certs"),
    CommandEntry("passwd", "Keep the file of accounts.", "opentsm.cli.passwd"),
    CommandEntry("lab", "Networks in a box: firewalls, NATs, bad lines.", "opentsm.lab.cli"),
)

_COMPLETION_OPTIONS: Final = ("install_completion", "show_completion")


class LazyCommand(TyperCommand):
    """Stands in for a command until it is used: knows name and summary, imports the rest."""

    def __init__(self, entry: CommandEntry) -> None:
        super().__init__(entry.name, help=entry.summary, short_help=entry.summary)
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over to the real command, which parses the arguments."""
        app = importlib.import_module(self._entry.module).app
        command = get_command(app)
        command.name = self._entry.name
        # Completion is installed for `opentsm` as a whole.
        command.params = [p for p in command.params if p.name not in _COMPLETION_OPTIONS]
        return command.make_context(info_name, args, parent=parent, **extra)


app = typer.Typer(
    name="opentsm",
    help="Tunneled session management: SIP calls through any firewall on one port.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opentsm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Tunneled session management: SIP calls through any firewall on one port."""


def root_command() -> TyperGroup:
    """The whole command tree, its leaves not yet imported."""
    group = get_command(app)
    if not isinstance(group, TyperGroup):
        raise TypeError("the root of the command tree must be a group")
    for entry in COMMANDS:
        if entry.is_installed():
            group.commands[entry.name] = LazyCommand(entry)
    return group


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code. Errors of ours and of the system's files are one sentence."""
    try:
        root_command().main(args=None if arguments is None else list(arguments), prog_name="opentsm")
    except SystemExit as exit_:
        return _exit_code(exit_.code)
    except OpenTsmError as error:
        return _complain(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}")
    return 0


def _exit_code(code: object) -> int:
    if isinstance(code, int):
        return code
    return 0 if code is None else 1


def _complain(text: str) -> int:
    print(f"opentsm: {text}", file=sys.stderr)
    return 1


def main() -> None:
    """Console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
