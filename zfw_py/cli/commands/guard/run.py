# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard run."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options
from zfw_py.cli.options import takes

# Options after the command belong to the command.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}


@takes(options.RUN)
def command(
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND ARG...", help="The command.")
    ],
    **values: Any,
) -> None:
    """Run a command, with all its children, under a guard.

    The guard is attached before the first instruction of the command. Denials are
    printed to stderr. The exit code is that of the command, 127 if it does not exist
    and 126 if it cannot be run. Processes that the command leaves behind stay
    guarded until they end.
    """
    from zfw_py.guard import command as running
    from zfw_py.guard.service import Guard

    policy = options.policy_of(values)
    user = options.user_of(values)
    # sys.stderr is None where it was closed.
    events = None if values["quiet"] or not sys.stderr else output.Events(sys.stderr)
    sink = guard_log.event_sink(values["log"], events, has_all=values["verbose"], has_time=False)
    status = Guard.run(arguments, policy, sink, output.warning, user)
    raise typer.Exit(running.exit_as(status))
