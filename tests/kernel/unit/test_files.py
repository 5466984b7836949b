# SPDX-License-Identifier: GPL-2.0-only
"""Files below another root directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from zfw_py.kernel.files import open_in_root

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with an ``etc``, and a file outside of it."""
    (tmp_path / "outside").write_text("outside")
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    return made


def read(root: Path) -> bytes:
    fd = open_in_root(str(root), "/etc/resolv.conf")
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_links_lead_to_where_a_process_with_that_root_finds_them(root: Path) -> None:
    (root / "run").mkdir()
    (root / "run/file").write_text("inside")
    for target in ("/run/file", "../run/file", "../../../../run/file"):
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/resolv.conf").symlink_to(target)
        assert read(root) == b"inside"


def test_no_link_leads_out(root: Path) -> None:
    for target in (f"{root.parent}/outside", "../../outside", "/proc/self/root/etc/passwd"):
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/resolv.conf").symlink_to(target)
        with pytest.raises(FileNotFoundError):
            read(root)


def test_what_is_no_regular_file_is_not_opened(root: Path) -> None:
    """Opening a FIFO would wait, and opening a device may do anything."""
    os.mkfifo(root / "etc/resolv.conf")
    with pytest.raises(OSError, match="not a regular file"):
        read(root)
    (root / "etc/resolv.conf").unlink()
    (root / "etc/resolv.conf").mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        read(root)
