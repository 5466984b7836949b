# SPDX-License-Identifier: GPL-2.0-only
"""What the demonstrations say where they cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STEPS = Path(__file__).resolve().parents[2] / "scripts" / "demos" / "steps.py"


@pytest.mark.kernel
def test_a_chroot_whose_root_is_no_mount_point_is_named(tmp_path: Path) -> None:
    """It has the machine's files, each folder mounted, and is a plain directory itself."""
    binds = []
    for name in ("usr", "proc", "sys", "dev", "etc", "run"):
        (tmp_path / name).mkdir()
        binds.append(f"mount --rbind /{name} {tmp_path}/{name}")
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path(f"/{name}").is_symlink():
            (tmp_path / name).symlink_to(f"usr/{name}")
    (tmp_path / "steps.py").write_bytes(STEPS.read_bytes())
    code = "import sys; sys.path.insert(0, '/'); import steps; steps.check_machine()"
    python = Path(sys.executable).resolve()
    command = f'{"; ".join(binds)}; exec chroot {tmp_path} {python} -c "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", command, code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert "demo: / is not a mount point" in done.stderr
    assert "mount --bind DIR DIR" in done.stderr
    assert "Traceback" not in done.stderr
