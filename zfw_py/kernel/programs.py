# SPDX-License-Identifier: GPL-2.0-only
"""Other programs, for the few verbs that exist to run one. The only importer of subprocess.

Each is named by its absolute path and started without a shell, with nothing on
stdin and an environment that does not depend on who called us; what it prints
goes where our own output goes, which the caller flushes before.
"""

from __future__ import annotations

import os
import signal
import subprocess

from zfw_py.errors import KernelError, NotFound, ZfwError

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def run(path: str, *arguments: str, timeout: float) -> int:
    """Run a program to its end; its exit code, negative for a signal.

    One that is not done after ``timeout`` seconds is killed with all that it
    started in its process group. Raises NotFound, KernelError, ZfwError.
    """
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NotFound(f"{path}: no such program, or what it is run by is missing") from None
    except OSError as error:
        raise KernelError(f"run {path}", error.errno or 0) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise ZfwError(f"{path}: not done after {timeout:.0f} s, killed") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
