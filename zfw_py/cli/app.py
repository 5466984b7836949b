# SPDX-License-Identifier: GPL-2.0-only
"""The modern grammar: a Typer app that imports a command when it is called.

This is the only place where errors become a line on stderr and an exit code.
"""

from __future__ import annotations

import gc
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

import typer
from typer._click.exceptions import UsageError
from typer.core import TyperCommand, TyperGroup, TyperOption
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
    "doctor",
    "flows",
    "explain",
    "set",
    "follow",
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

# Importing rich takes 40 ms, and plain tracebacks show a bug better.
_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"max_content_width": 100},
}


class _Commands(TyperGroup):
    """The commands by name; each is imported when it is looked up."""

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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            # Typer looks among the commands that are imported, which are none.
            if args and (likely := get_close_matches(args[0], self.names, n=1)):
                error.message = f"{error.message} Did you mean {likely[0]}?"
            raise

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        result = super().invoke(ctx)
        sys.stdout.flush()
        return result


class _Command(TyperCommand):
    """A command that does not take ``--``, the end of options, for the value of an option.

    Options of ``with_optional_value`` have the value "" where none follows; Typer has no such.
    """

    with_optional_value: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete = []
        for word, following in zip_longest(args, args[1:], fillvalue="-"):
            complete.append(word)
            if word in self.with_optional_value and following.startswith("-"):
                complete.append("")
        left = super().parse_args(ctx, complete)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            values = value if isinstance(value, list | tuple) else [value]
            if isinstance(parameter, TyperOption) and "--" in values:
                raise UsageError(f"Option '{parameter.opts[-1]}' requires an argument.", ctx)
        return left


def _made_of(name: str, module: ModuleType) -> Command:
    """The command or the group of commands of a module."""
    if not hasattr(module, "COMMANDS"):
        single = typer.Typer(**_PLAIN)
        settings = getattr(module, "CONTEXT_SETTINGS", None)
        single.command(name, cls=_Command, context_settings=settings)(module.command)
        made: Any = get_command(single)
        made.with_optional_value = getattr(module, "WITH_OPTIONAL_VALUE", ())
        return cast("Command", made)
    several = typer.Typer(cls=_Commands, name=name, **_PLAIN)
    several.callback()(module.command)
    group: Any = get_command(several)
    group.names, group.package = module.COMMANDS, module.__name__
    return cast("Command", group)


app = typer.Typer(cls=_Commands, **_PLAIN)


@app.callback()
def zfw() -> None:
    """Filter, intercept and steer connections with eBPF.

    A command line that begins with an option, such as zfw -I, is in the classic
    grammar, which zfw -? explains.
    """


def main(argv: list[str]) -> int:
    """Run a command line, without the command's own name; return the exit code."""
    # A command creates its objects, prints them and ends: a listing or a batch of many rules
    # would spend a third of its time in the garbage collector.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run(argv or ["--help"])
    finally:
        if collects:
            gc.enable()


def _run(argv: list[str]) -> int:
    if "_ZFW_COMPLETE" in os.environ:
        # A shell's completion; Typer sets this up only with its own completion options.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        # Typer returns the exit code where it ends a command itself, as on Ctrl-C.
        code = get_command(app).main(argv, prog_name="zfw", standalone_mode=False) or 0
        # A help text is still in the buffer.
        sys.stdout.flush()
    except UsageError as error:
        output.error(f"{error.format_message()} Try '{_command_of(argv)} --help'.")
        return error.exit_code
    except ZfwError as error:
        if error.message:
            output.error(error.message, error.hint)
        return error.exit_code
    except SystemExit as done:
        # Completion.
        return done.code if isinstance(done.code, int) else 1
    return code


def _command_of(argv: list[str]) -> str:
    """The command of a command line, up to the first word that is no command."""
    names = ["zfw"]
    found: Any = get_command(app)
    for word in argv:
        found = found.get_command(None, word) if isinstance(found, _Commands) else None
        if found is None:
            break
        names.append(word)
    return " ".join(names)
