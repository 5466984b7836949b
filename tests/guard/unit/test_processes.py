# SPDX-License-Identifier: GPL-2.0-only
"""Which process a guard is kept by: its id is not enough, ids are given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zfw_py.guard import processes
from zfw_py.guard.codec import Keeper


def keeper_of(process: subprocess.Popen[bytes]) -> Keeper:
    """As the process itself would write it."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return Keeper(int(stat.rpartition(")")[2].split()[19]), process.pid)


def started(code: str = "import time; time.sleep(1000)") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_process_lives_until_it_ends() -> None:
    assert processes.is_alive(processes.this_process())
    with started() as process:
        keeper = keeper_of(process)
        assert processes.is_alive(keeper)
        assert not processes.is_alive(keeper._replace(start_time=keeper.start_time + 1))
        process.kill()
        # A zombie does not live.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.is_alive(keeper)
    assert not processes.is_alive(keeper)
    assert not processes.is_alive(Keeper(0, 0))


def test_a_command_with_any_name_is_read_past() -> None:
    code = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (\\n) 2', 0, 0, 0); print(flush=True)"
    )
    with started(f"{code}; import time; time.sleep(1000)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes.is_alive(keeper_of(process))
        process.kill()


def test_to_end_it_is_to_wait_for_its_end() -> None:
    with started() as process:
        processes.end(keeper_of(process))
        # It was ours, and is waited for.
        assert not Path(f"/proc/{process.pid}").exists()
        process.returncode = -signal.SIGTERM


@pytest.mark.slow
def test_one_that_will_not_is_killed() -> None:
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True)"
    with started(f"{ignoring}; import time; time.sleep(1000)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = time.monotonic()
        processes.end(keeper_of(process))
        assert time.monotonic() - before >= processes._PATIENCE
        assert not Path(f"/proc/{process.pid}").exists()
        process.returncode = -signal.SIGKILL


def test_another_one_of_that_id_is_left_alone() -> None:
    with started() as process:
        keeper = keeper_of(process)
        processes.end(keeper._replace(start_time=keeper.start_time - 1))
        assert process.poll() is None
        process.kill()
    processes.end(keeper)
    processes.end(Keeper(0, 0))
    processes.end(processes.this_process())
