# SPDX-License-Identifier: GPL-2.0-only
"""Files below another root directory, and links that another user may have made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.children import NOBODY
from zfw_py.kernel.files import open_directory, open_in_root

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


# Directories in whose path another user can put a link


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with ``target``, which has ``log``."""
    (tmp_path / "target/log").mkdir(parents=True)
    return tmp_path


def opened(path: Path | str) -> int:
    """The inode of the directory that is opened."""
    fd = open_directory(str(path))
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_links_of_the_caller_are_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/var/run is a link to /run, and other directories are links on other machines."""
    inode = (folder / "target/log").stat().st_ino
    (folder / "absolute").symlink_to(folder / "target")
    (folder / "relative").symlink_to("./target/../target/")
    (folder / "twice").symlink_to("absolute/log")
    (folder / "loop").symlink_to("loop")
    assert opened(folder / "absolute/log") == inode
    assert opened(folder / "relative/log/.") == inode
    assert opened(folder / "twice/../log//") == inode
    monkeypatch.chdir(folder)
    assert opened("twice") == inode
    assert opened("") == folder.stat().st_ino
    with pytest.raises(OSError, match="symbolic links"):
        opened("loop/log")
    with pytest.raises(FileNotFoundError):
        opened("target/no")
    (folder / "file").touch()
    with pytest.raises(NotADirectoryError):
        opened("file")
    with pytest.raises(NotADirectoryError):
        opened("file/log")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o755])
def test_a_link_in_a_directory_of_others_is_not_followed(folder: Path, mode: int) -> None:
    place = folder / "place"
    place.mkdir()
    place.chmod(mode)
    (place / "link").symlink_to(folder / "target")
    if mode == 0o755:
        assert opened(place / "link/log") == (folder / "target/log").stat().st_ino
        return
    for path in (place / "link/log", place / "link", folder / "place/../place/link"):
        with pytest.raises(OSError, match="symbolic links"):
            opened(path)
    # What is no link is opened.
    (place / "own/log").mkdir(parents=True)
    assert opened(place / "own/log") == (place / "own/log").stat().st_ino


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file to another user")
def test_a_link_of_another_user_is_not_followed(folder: Path) -> None:
    """Also not in a directory with the sticky bit, such as /tmp. Root's link there stays."""
    place = folder / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    for name in ("roots", "theirs"):
        (place / name).symlink_to(folder / "target")
    os.chown(place / "theirs", NOBODY, NOBODY, follow_symlinks=False)
    assert opened(place / "roots/log") == (folder / "target/log").stat().st_ino
    with pytest.raises(OSError, match="symbolic links"):
        opened(place / "theirs/log")
    # A directory of that user: the link may be exchanged at any time.
    os.chown(place, NOBODY, NOBODY)
    place.chmod(0o755)
    with pytest.raises(OSError, match="symbolic links"):
        opened(place / "roots/log")
