# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard attach."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options
from zfw_py.cli.options import takes

if TYPE_CHECKING:
    from zfw_py.guard.service import Guard


@takes(options.ATTACH)
def command(**values: Any) -> None:
    """Guard the processes of a cgroup until zfw guard detach.

    Processes that start in the cgroup later are guarded as well. Prints the guard's
    id; a background process answers DNS. Sockets that were created outside of the
    cgroup are not guarded: a warning names the processes that hold such sockets.
    """
    from zfw_py.guard.service import Guard

    policy = options.policy_of(values)
    target = options.target_of(values)
    if values["foreground"]:
        events = output.Events(sys.stdout)
        sink = guard_log.event_sink(values["log"], events, has_all=True, has_time=True)
        Guard.attach_in_foreground(target, policy, sink, show)
    else:
        sink = guard_log.event_sink(values["log"], None, has_all=False, has_time=True)
        show(Guard.attach(target, policy, sink))


def show(guard: Guard) -> None:
    """Print a new guard's id, and warn of what it does not hold."""
    for foreign in guard.foreign_sockets:
        output.warning(f"{foreign}; it is not guarded")
    for leaver in guard.leavers:
        output.warning(str(leaver))
    output.line(guard.id)
    sys.stdout.flush()
