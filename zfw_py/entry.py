# SPDX-License-Identifier: GPL-2.0-only
"""The console entry: the classic grammar's fast path, or else the Typer app. Hot.

A first argument that starts with "-" is the classic grammar, which a router runs
once for each rule: nothing heavy is imported on that way.
"""

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    # One command, then the process ends: a million rules of a batch or a listing
    # would be gone through again and again, and nothing is there to be collected.
    gc.disable()
    argv = sys.argv[1:]
    if argv and argv[0].startswith("-") and argv[0] != "--help":
        from zfw_py.cli.classic.run import run

        sys.exit(run(argv))

    from zfw_py.cli.app import main as run_app

    sys.exit(run_app(argv))
