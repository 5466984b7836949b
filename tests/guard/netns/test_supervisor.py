# SPDX-License-Identifier: GPL-2.0-only
"""The process that keeps a guard: when it ends, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.dns_process import watcher_of
from tests.guard.support.world import UPSTREAM
from tests.support.command import ZFW
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _supervisor(world: World) -> int | None:
    listed = json.loads(world.zfw("list", "--json").stdout)
    return listed[0]["keeper_pid"] if listed else None


@contextmanager
def _running(world: World) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``zfw guard run`` of a command that ends with its stdin, and the process that keeps it."""
    command = (str(ZFW), "guard", "run", "--dns-upstream", UPSTREAM, "--", "cat")
    with world.start(*command, stdin=subprocess.PIPE) as running:
        try:
            assert wait_until(lambda: _supervisor(world) is not None)
            supervisor = _supervisor(world)
            assert supervisor is not None
            yield running, supervisor
        finally:
            running.kill()


def test_that_it_ends_with_the_command_is_nothing_to_warn_of(world: World) -> None:
    """Also where the command is seen to have ended late: until then the guard is kept."""
    with _running(world) as (running, supervisor):
        os.kill(running.pid, signal.SIGSTOP)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        (command,) = {int(child) for child in children} - {watcher_of(supervisor)}
        assert running.stdin is not None
        running.stdin.close()
        running.stdin = None
        assert wait_until(lambda: _is_zombie(command))
        assert _supervisor(world) == supervisor
        os.kill(running.pid, signal.SIGCONT)
        assert running.communicate(timeout=60) == ("", "")
        assert running.returncode == 0
        assert _supervisor(world) is None


def test_that_it_ends_for_good_is_warned_of(world: World) -> None:
    with _running(world) as (running, supervisor):
        # The watcher last: zfw sees the end of that one.
        watcher = watcher_of(supervisor)
        os.kill(watcher, signal.SIGSTOP)
        os.kill(supervisor, signal.SIGKILL)
        os.kill(watcher, signal.SIGKILL)
        assert running.stderr is not None
        warning = "zfw: warning: the guard's process has ended: DNS fails from now on\n"
        assert running.stderr.readline() == warning
        assert running.communicate(timeout=60) == ("", "")
        assert running.returncode == 0
