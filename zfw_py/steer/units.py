# SPDX-License-Identifier: GPL-2.0-only
"""Finds the processes of a systemd unit by its cgroup, without a request to systemd.

systemd puts the cgroup of each system unit into slices, so only slices are searched. Inside a
service or scope that was delegated, its user can create cgroups of any name.
"""

from __future__ import annotations

import os
from contextlib import suppress

from zfw_py.errors import ZfwError
from zfw_py.kernel.cgroup import systemd_mounts

_SLICE = ".slice"
# cgroup v2 allows deeper trees; systemd does not create them.
_MOST_DEPTH = 16


def cgroups_of(unit: str) -> list[str]:
    """The paths of a unit's cgroups, one in each hierarchy; [] if it does not run.

    Raises ZfwError if no hierarchy that systemd uses is mounted.
    """
    mounts = systemd_mounts()
    if not mounts:
        raise ZfwError(
            "no cgroup hierarchy that systemd uses is mounted",
            hint="units need cgroup2, or the named hierarchy of cgroup v1, name=systemd",
        )
    return [path for mount in mounts for path in _within(mount, unit, _MOST_DEPTH)]


def _within(directory: str, unit: str, depth: int) -> list[str]:
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name == unit:
                    found.append(entry.path)
                elif entry.name.endswith(_SLICE) and depth:
                    found += _within(entry.path, unit, depth - 1)
    except OSError:
        return []  # it was removed meanwhile
    return found


def processes_of(unit: str) -> set[int]:
    """The ids of a unit's processes, in all of its cgroups. Raises as ``cgroups_of``."""
    pids: set[int] = set()
    for path in cgroups_of(unit):
        for directory, _, _ in os.walk(path):
            with suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                pids.update(int(line) for line in file)
    return pids - {0}
