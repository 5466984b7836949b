# SPDX-License-Identifier: GPL-2.0-only
"""Names the cgroup that a new guard is for."""

from __future__ import annotations

from typing import NamedTuple, Self

from zfw_py.errors import UsageError
from zfw_py.kernel import cgroup as cgroups


class GuardTarget(NamedTuple):
    """The cgroup that a new guard is for; build it with ``of_cgroup`` or ``of_process``.

    ``cgroup``: an absolute path. ``is_created``: the guard creates a cgroup of its own below
    ``cgroup`` and guards that one. ``moved_pid``: the process that is then moved into it, with
    its descendants.
    """

    cgroup: str
    is_created: bool = False
    moved_pid: int | None = None

    @classmethod
    def of_cgroup(cls, path: str) -> Self:
        """A cgroup by its directory. Raises NotFound, UsageError for the root cgroup."""
        resolved = cgroups.resolve(path)
        if cgroups.is_root(resolved):
            raise UsageError(f"{path}: the root cgroup cannot be guarded")
        return cls(resolved)

    @classmethod
    def of_process(cls, pid: int, *, is_moved: bool) -> Self:
        """The cgroup of a process; with ``is_moved`` a new one, to which the process is moved.

        Raises NotFound, and UsageError for a process in the root cgroup that is not moved.
        """
        path = cgroups.of_process(pid)
        if is_moved:
            return cls(path, is_created=True, moved_pid=pid)
        if cgroups.is_root(path):
            raise UsageError(
                f"process {pid} is in the root cgroup, which cannot be guarded",
                hint="--move puts it into a cgroup of its own",
            )
        return cls(path)
