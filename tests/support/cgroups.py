# SPDX-License-Identifier: GPL-2.0-only
"""Cgroups for tests, below the cgroup of the test's own process."""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.kernel.cgroup import Population

_numbers = itertools.count(1)


def cgroup_of(pid: int) -> Path:
    """The cgroup2 directory of a process, where all of cgroup2 is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
    places = [Path(fields[1]) / path for fields in mounts if fields[2] == "cgroup2"]
    # A later mount may hide an earlier one.
    return next(place for place in reversed(places) if place.is_dir())


@contextmanager
def private_cgroup() -> Iterator[Path]:
    """A new cgroup. At the end its processes are killed, and it is removed with its children."""
    path = cgroup_of(os.getpid()) / f"zfw-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    inside = [Path(place) for place, _, _ in os.walk(path, topdown=False)]
    deadline = time.monotonic() + 30
    for cgroup in inside:
        while True:
            # SIGKILL to a thread kills its process. A threaded cgroup lists threads only.
            for thread in (cgroup / "cgroup.threads").read_text().split():
                try:
                    os.kill(int(thread), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                cgroup.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)


def enter(cgroup: Path | str) -> None:
    """Move the calling process to a cgroup."""
    (Path(cgroup) / "cgroup.procs").write_text("0")


@contextmanager
def within(cgroup: Path | str) -> Iterator[None]:
    """In the block this process is in the cgroup; the kernel assigns its new sockets to it."""
    before = cgroup_of(os.getpid())
    enter(cgroup)
    try:
        yield
    finally:
        enter(before)


def is_empty_within(population: Population, seconds: float) -> bool:
    """Whether the last process of a cgroup ends in time; polls nothing but the descriptor."""
    deadline = time.monotonic() + seconds
    while population.is_populated():
        left = max(deadline - time.monotonic(), 0)
        if not select.select([population], [], [], left)[0]:
            return not population.is_populated()
    return True
