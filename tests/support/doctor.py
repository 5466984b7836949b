# SPDX-License-Identifier: GPL-2.0-only
"""Asks the installed ``zfw doctor``, and types what it says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.command import ZFW, captured

CODES = {"note": 20, "warning": 21, "error": 22}
_ENVIRONMENT = os.environ | {"PATH": f"{Path(ZFW).parent}:{os.environ['PATH']}"}


def findings() -> list[dict[str, Any]]:
    """What it finds; its exit code is that of the worst."""
    done = captured(ZFW, "doctor", "--json", check=False)
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == max((CODES[each["severity"]] for each in found), default=0)
    for each in found:
        assert list(each) == ["id", "severity", "what", "why", "command"]
    return found


def mend(*ids: str) -> list[str]:
    """Exactly these kinds are found; type each command, once. What was wrong, a line each.

    Then nothing is found any more.
    """
    found = findings()
    assert {each["id"] for each in found} == set(ids), found
    for command in dict.fromkeys(each["command"] for each in found):
        run(command)
    assert findings() == []
    return [each["what"] for each in found]


def run(command: str) -> None:
    """Type a command that a finding has."""
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=_ENVIRONMENT
    )
    assert done.returncode == 0, (command, done.stderr)
