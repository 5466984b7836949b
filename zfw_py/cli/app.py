# SPDX-License-Identifier: GPL-2.0-only
"""The modern grammar: a Typer app whose commands are imported as they are called.

Errors become one line on stderr and an exit code here, and nowhere else.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, cast

import typer
from typer._click.exceptions import UsageError
from typer.core import TyperGroup
from typer.main import get_command

from zfw_py.cli import output
from zfw_py.errors import ZfwError

if TYPE_CHECKING:
    from types import ModuleType

    from typer._click.core import Command

# Each is the function ``command`` of the module of its name in zfw_py.cli.commands, with _
# for a hyphen. A package there is a group, whose own COMMANDS are modules in it.
COMMANDS = (
    "attach",
    "detach",
    "insert",
    "delete",
    "list",
    "flush",
    "status",
    "flows",
    "set",
    "guard",
    "docker-dns",
    "steer",
    "batch",
    "classic",
    "save",
    "restore",
    "upgrade",
    "systemd",
    "completion",
)

# Rich costs 40 ms, and a bug is better told by a plain traceback.
_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"max_content_width": 100},
}


class _Commands(TyperGroup):
    """The commands by name; none is imported before it is asked for."""

    names: tuple[str, ...] = COMMANDS
    package = "zfw_py.cli.commands"

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(self.names)

    def get_command(self, ctx: object, cmd_name: str) -> Command | None:
        if cmd_name not in self.names:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"{self.package}.{cmd_name.replace('-', '_')}")
            self.commands[cmd_name] = _made_of(cmd_name, module)
        return self.commands[cmd_name]

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        result = super().invoke(ctx)
        # While Typer still looks: it takes a reader that has gone for no error.
        sys.stdout.flush()
        return result


def _made_of(name: str, module: ModuleType) -> Command:
    """The command, or the group of commands, that a module is."""
    if not hasattr(module, "COMMANDS"):
        single = typer.Typer(**_PLAIN)
        single.command(name, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(
            module.command
        )
        return get_command(single)
    several = typer.Typer(cls=_Commands, name=name, **_PLAIN)
    several.callback()(module.command)
    group: Any = get_command(several)
    group.names, group.package = module.COMMANDS, module.__name__
    return cast("Command", group)


app = typer.Typer(cls=_Commands, **_PLAIN)


@app.callback()
def zfw() -> None:
    """Interception firewall: hands the packets that its rules name to local listeners.

    Options first, as in zfw -I, is the classic grammar: see zfw -?.
    """


def main(argv: list[str]) -> int:
    """Run a command line, without the command's own name; the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A service's name may have letters that the locale has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    # A command makes its objects, prints them and ends: a listing or a batch of
    # many rules would spend a third of its time on looking for garbage.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run(argv or ["--help"])
    finally:
        if collects:
            gc.enable()


def _run(argv: list[str]) -> int:
    if "_ZFW_COMPLETE" in os.environ:
        # A shell asks for completions; Typer knows shells only where it adds options for them.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        # Whatever Typer itself ends early, such as Ctrl-C, comes back as its exit code.
        return get_command(app).main(argv, prog_name="zfw", standalone_mode=False) or 0
    except UsageError as error:
        output.error(f"{error.format_message()} Try '{_command_of(argv)} --help'.")
        return error.exit_code
    except ZfwError as error:
        output.error(error.message, error.hint)
        return error.exit_code
    except SystemExit as done:
        # Completion, or a reader of the output that has gone.
        return done.code if isinstance(done.code, int) else 1


def _command_of(argv: list[str]) -> str:
    """The command that a line names, as far as its words are commands."""
    names = ["zfw"]
    found: Any = get_command(app)
    for word in argv:
        found = found.get_command(None, word) if isinstance(found, _Commands) else None
        if found is None:
            break
        names.append(word)
    return " ".join(names)
