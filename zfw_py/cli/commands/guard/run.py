# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options

# The command's own options are the command's.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def command(
    arguments: Annotated[list[str], typer.Argument(metavar="-- COMMAND ARG...")],
    allow: options.Allow = [],  # noqa: B006 - Typer reads it, and makes another
    block: options.Block = [],  # noqa: B006
    default: options.DefaultOption = None,
    dns_upstream: options.DnsUpstream = [],  # noqa: B006
    policy: options.PolicyFile = None,
    no_loopback: options.NoLoopback = False,
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Run it as this user: root can leave its cgroup."),
    ] = None,
    log: options.Log = None,
    log_only: options.LogOnly = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print all that is decided, not denials alone.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing of it.")] = False,
) -> None:
    """Run a command that is guarded, with all its children, from its first instruction.

    Exits as the command does; 127 if there is none of that name, 126 if it cannot be run. What is
    denied is printed on stderr. What the command leaves running stays guarded until it ends.
    """
    from zfw_py.guard import command as running
    from zfw_py.guard import service as guard

    made = options.policy_of(
        allow,
        block,
        default,
        dns_upstream,
        policy,
        no_loopback=no_loopback,
        log_only=log_only,
    )
    who = None if user is None else running.find_user(user)
    # sys.stderr is None where it was closed.
    events = None if quiet or not sys.stderr else output.Events(sys.stderr)
    tell = guard_log.teller(log, events, has_all=verbose, has_time=False)
    status = guard.run(arguments, made, tell, output.warning, who)
    raise typer.Exit(running.exit_as(status))
