# SPDX-License-Identifier: GPL-2.0-only
"""The file of --log, which logrotate(8) renames and its users may tamper with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zfw_py.cli import json_log
from zfw_py.cli.json_log import JsonLog
from zfw_py.errors import NotFound, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the file is looked at for each line."""
    monkeypatch.setattr(json_log, "_LOOK_INTERVAL", 0.0)


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_a_renamed_or_removed_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonLog(str(path), "zfw")
    log.write({"n": 1})
    path.rename(tmp_path / "log.1")
    log.write({"n": 2})
    path.unlink()
    log.write({"n": 3})
    path.rename(tmp_path / "log.2")
    path.touch()  # "create" of logrotate
    log.write({"n": 4})
    assert numbers(tmp_path / "log.1") == [1]
    assert numbers(tmp_path / "log.2") == [3]
    assert numbers(path) == [4]


def test_the_file_of_another_process_is_followed_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as first:
        log = JsonLog.of(first.fileno(), str(path), "zfw")
    path.rename(tmp_path / "log.1")
    log.write({"n": 1})
    assert numbers(path) == [1]


def test_a_link_that_is_put_in_the_path_leads_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in the place of the file nor in that of its directory."""
    directory, target = tmp_path / "logs", tmp_path / "etc"
    directory.mkdir()
    target.mkdir()
    log = JsonLog(str(directory / "log"), "zfw")
    directory.rename(tmp_path / "moved")
    directory.symlink_to(target)
    (tmp_path / "moved/log").unlink()
    log.write({"n": 1})
    assert list(target.iterdir()) == []
    assert numbers(tmp_path / "moved/log") == [1]
    (tmp_path / "moved/log").rename(tmp_path / "kept")
    (tmp_path / "moved/log").symlink_to(target / "passwd")
    log.write({"n": 2})
    assert list(target.iterdir()) == []
    assert numbers(tmp_path / "kept") == [1, 2]
    assert "symbolic links" in capsys.readouterr().err


def test_a_link_in_a_directory_that_others_can_write_to_is_not_followed(tmp_path: Path) -> None:
    """Any link in the path, not only the last one."""
    shared, target = tmp_path / "shared", tmp_path / "etc"
    shared.mkdir()
    shared.chmod(0o777)
    target.mkdir()
    (shared / "logs").symlink_to(target)
    for path in (shared / "logs/log", shared / "logs/deeper/log"):
        with pytest.raises(UsageError, match="a symbolic link, which zfw does not follow"):
            JsonLog(str(path), "zfw")
    assert list(target.iterdir()) == []
    (target / "log").touch()
    with (target / "log").open("a") as first:
        log = JsonLog.of(first.fileno(), str(shared / "logs/log"), "zfw")
    (target / "log").unlink()
    log.write({"n": 1})
    assert list(target.iterdir()) == []


def test_a_directory_that_is_removed_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    log = JsonLog(str(tmp_path / "logs/log"), "zfw")
    (tmp_path / "logs/log").unlink()
    (tmp_path / "logs").rmdir()
    log.write({"n": 1})
    assert capsys.readouterr().err == ""


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "log")
    for path, error in ((tmp_path, UsageError), (tmp_path / "link", UsageError)):
        with pytest.raises(error):
            JsonLog(str(path), "zfw")
    with pytest.raises(NotFound):
        JsonLog(str(tmp_path / "no/log"), "zfw")
