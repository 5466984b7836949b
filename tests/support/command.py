# SPDX-License-Identifier: GPL-2.0-only
"""The path of the installed command ``zfw``, and commands whose output a test reads."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

ZFW = Path(sysconfig.get_path("scripts")) / "zfw"


def captured(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command for at most 120 s, and return its exit code and its output as text."""
    defaults = {"capture_output": True, "text": True, "check": False, "timeout": 120}
    return subprocess.run(words, **(defaults | options))
