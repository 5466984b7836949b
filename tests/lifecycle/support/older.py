# SPDX-License-Identifier: GPL-2.0-only
"""An older version of zfw, built from this repository's history, whose commands can be run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# The last version whose systems had a life cycle of their own each.
COMMIT = "921b3f1"
_PATHS = ("zfw_py", "bpf", "scripts/build_bpf.py")
_RUN = "import sys; sys.path.insert(0, {!r}); from zfw_py.entry import main; main()"


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # The checkout may belong to another user than the one who runs the tests.
    return subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments],
        capture_output=True,
        check=False,
    )


def build(folder: Path) -> Path:
    """Unpack and compile it; the folder to run it from.

    Skips the test in a source tree without history; in a checkout that lacks the commit, fails.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("a source tree without history: no older version to build")
    packed = _git("archive", COMMIT, *_PATHS)
    if packed.returncode != 0:
        pytest.fail(f"git fetch --unshallow brings what is missing: {packed.stderr.decode()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    subprocess.run([sys.executable, "scripts/build_bpf.py"], cwd=folder, check=True)
    for built in (folder / "zfw_py/objects").glob("*.bpf.o"):
        # A byte behind the end, which no loader reads: another digest, even where a compiler
        # makes the same programs of both versions.
        built.write_bytes(built.read_bytes() + b"\0")
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    """A command line of the older version, run by this interpreter with its libraries."""
    return [sys.executable, "-c", _RUN.format(str(folder)), *arguments]
