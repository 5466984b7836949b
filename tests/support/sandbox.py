# SPDX-License-Identifier: GPL-2.0-only
"""A directory with copies of some scripts, and stand-ins for the commands that they call."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Sandbox:
    """Scripts run here; a stand-in writes its name and arguments into a log."""

    def __init__(self, directory: Path, *scripts: str) -> None:
        self.directory = directory
        self._log = directory / "log"
        for script in scripts:
            to = directory / script
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / script, to)

    def stand_in(self, name: str, code: str = "") -> None:
        """Make a stand-in: a path below the directory, and shell code after the logging."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        log = 'printf "%s" "${0##*/}" >>"$LOG"; for a; do printf " [%s]" "$a" >>"$LOG"; done\n'
        path.write_text(f'#!/bin/sh\n{log}echo >>"$LOG"\n{code}\n')
        path.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command; ``bin`` is first in PATH."""
        environment = os.environ | {
            "LOG": str(self._log),
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
        }
        return subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        """The lines of the log since the last time."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return lines
