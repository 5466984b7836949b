# SPDX-License-Identifier: GPL-2.0-only
"""An installation as users have it: from a wheel, byte-compiled, not editable."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.report import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
SOURCES = ("bpf", "scripts", "zfw_py", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")

# The interpreter starts as it does for a router: nothing of ours in its environment.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Run(NamedTuple):
    """A process that has ended."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None  # None where it is below our own, from which the kernel starts


class Installation(NamedTuple):
    """Where the command is."""

    zfw: str


@contextmanager
def installed(work: Path) -> Iterator[Installation]:
    """Build and install this tree into a virtual environment under ``work``."""
    progress("installing zfw into an environment of its own")
    # From a copy: a build writes objects into its tree, and this one's may be in use.
    source = work / "source"
    source.mkdir()
    for name in SOURCES:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    environment = work / "environment"
    pip = (f"{environment}/bin/python", "-m", "pip", "-qq", "--disable-pip-version-check")
    for command in (
        (PYTHON, "-m", "venv", str(environment)),
        (*pip, "install", "--no-input", "--root-user-action=ignore", str(source)),
    ):
        subprocess.run(command, check=True, env=ENVIRONMENT, timeout=300)
    try:
        yield Installation(f"{environment}/bin/zfw")
    finally:
        shutil.rmtree(environment)
        shutil.rmtree(source)


def run(*command: str, output: Path | None = None) -> Run:
    """Run a command to its end; fork, exec and exit are in the time, all else is not.

    Raises CalledProcessError where it fails.
    """
    to = str(output or os.devnull)
    actions = [(os.POSIX_SPAWN_OPEN, 1, to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, ENVIRONMENT, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss * 1024 if usage.ru_maxrss > own else None
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)
