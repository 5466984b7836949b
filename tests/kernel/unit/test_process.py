# SPDX-License-Identifier: GPL-2.0-only
"""Processes by id and start time: the id alone may be that of another one by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zfw_py.kernel import process as kernel_process
from zfw_py.kernel.process import Process, inheritable_descriptors


def identity_of(process: subprocess.Popen[bytes]) -> Process:
    """As the process itself would have it."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return Process(process.pid, int(stat.rpartition(")")[2].split()[19]))


def started(code: str = "import time; time.sleep(1000)") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_process_lives_until_it_ends() -> None:
    assert Process.current().is_alive()
    with started() as process:
        identity = identity_of(process)
        assert identity.is_alive()
        assert not identity._replace(start_time=identity.start_time + 1).is_alive()
        process.kill()
        # A zombie does not live.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.is_alive()
    assert not identity.is_alive()
    assert not Process(0, 0).is_alive()


def test_a_command_with_any_name_is_read_past() -> None:
    code = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (\\n) 2', 0, 0, 0); print(flush=True)"
    )
    with started(f"{code}; import time; time.sleep(1000)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert identity_of(process).is_alive()
        process.kill()


def test_to_end_it_is_to_wait_for_its_end() -> None:
    with started() as process:
        identity_of(process).end()
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
        identity_of(process).end()
        assert time.monotonic() - before >= kernel_process._PATIENCE
        assert not Path(f"/proc/{process.pid}").exists()
        process.returncode = -signal.SIGKILL


def test_another_one_of_that_id_is_left_alone() -> None:
    with started() as process:
        identity = identity_of(process)
        identity._replace(start_time=identity.start_time - 1).end()
        assert process.poll() is None
        process.kill()
    identity.end()
    Process(0, 0).end()
    Process.current().end()


def test_inheritable_descriptors_are_those_that_stay_open_across_exec() -> None:
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(write_end, True)
        found = inheritable_descriptors()
        assert write_end in found
        assert read_end not in found
    finally:
        os.close(read_end)
        os.close(write_end)
