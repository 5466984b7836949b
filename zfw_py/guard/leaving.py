# SPDX-License-Identifier: GPL-2.0-only
"""Finds processes that may move themselves out of a guarded cgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.kernel import cgroup
from zfw_py.kernel.process import command_name, identity_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class Leaver(NamedTuple):
    """A process whose user may write to ``cgroup.procs`` of a cgroup around the guarded one."""

    pid: int
    command: str  # of the process, as /proc/PID/comm has it; unprintable characters are "?"
    uid: int
    around: str  # the path of that cgroup

    def __str__(self) -> str:
        return (
            f"process {self.pid} ({self.command}) may leave:"
            f" user {self.uid} may write to {self.around}/cgroup.procs"
        )


def leavers(pids: Iterable[int], path: str) -> list[Leaver]:
    """The first process of each user that is not root and may leave the cgroup at ``path``.

    Raises NotFound if there is no such cgroup.
    """
    around = list(cgroup.ancestors(path))
    found: dict[int, Leaver | None] = {0: None}
    for pid in pids:
        try:
            uid, groups = identity_of(pid)
            if uid in found:
                continue
            place = next((each for each in around if cgroup.may_move(each, uid, groups)), None)
            found[uid] = None if place is None else Leaver(pid, command_name(pid), uid, place)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return [each for each in found.values() if each is not None]
