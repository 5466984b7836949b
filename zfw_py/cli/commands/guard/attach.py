# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard attach."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options

if TYPE_CHECKING:
    from zfw_py.guard.service import Made


def command(
    cgroup: options.CgroupPath = None,
    pid: options.Pid = None,
    docker: options.Docker = None,
    move: options.Move = False,
    allow: options.Allow = [],  # noqa: B006 - Typer reads it, and makes another
    block: options.Block = [],  # noqa: B006
    default: options.DefaultOption = None,
    dns_upstream: options.DnsUpstream = [],  # noqa: B006
    policy: options.PolicyFile = None,
    no_loopback: options.NoLoopback = False,
    log: options.Log = None,
    log_only: options.LogOnly = False,
    foreground: options.Foreground = False,
) -> None:
    """Guard the processes of a cgroup, and whatever starts there, until it is detached.

    Prints the guard's id; a process in the background answers DNS. Sockets that were made outside
    of the cgroup are not guarded; processes that hold such are warned of.
    """
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
    target = options.target_of(cgroup, pid, docker, move=move)
    if foreground:
        events = output.Events(sys.stdout)
        tell = guard_log.teller(log, events, has_all=True, has_time=True)
        guard.attach_here(target, made, tell, show)
    else:
        show(guard.attach(target, made, guard_log.teller(log, None, has_all=False, has_time=True)))


def show(made: Made) -> None:
    """Print a new guard's id, and warn of what it does not reach."""
    for foreign in made.foreign:
        output.warning(f"{foreign}; it is not guarded")
    output.line(made.id)
    sys.stdout.flush()
