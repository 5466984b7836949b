# SPDX-License-Identifier: GPL-2.0-only
"""The boot and revert programs, with the command's output. Installed programs import ``main``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.compat.programs import run

if TYPE_CHECKING:
    from typing import NoReturn


def main(verb: str, kind: str) -> NoReturn:
    """Run the program of this process, "start" or "revert", and exit with its code."""
    sys.exit(run(verb, kind, sys.argv[1:], say=_say, warn=output.warning, fail=output.error))


def _say(text: str) -> None:
    output.line(text)
    sys.stdout.flush()
