# SPDX-License-Identifier: GPL-2.0-only
"""scripts/release tags only a commit of that version, and pushes nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.sandbox import ROOT, Sandbox
from zfw_py import __version__

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = ["setup [dev]", "check", "test [quick] [-q]"]
BUILD = "python [-m] [build] [--outdir] [dist] [.]"
CHANGELOG = "# Changelog\n\n## [1.2.0] - 2026-11-30\n\n- More.\n\n## [1.1.0] - 2026-01-01\n"


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A repository on main whose commit is version 1.2.0."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    made = Sandbox(tmp_path, "scripts/release")
    for name in ("setup", "check", "test"):
        made.stand_in(f"scripts/{name}")
    made.stand_in(".venv/bin/python", "touch dist/zfw-1.2.0.tar.gz")
    (tmp_path / ".gitignore").write_text("/.venv/\n/dist/\n/log\n")
    (tmp_path / "zfw_py").mkdir()
    (tmp_path / "zfw_py" / "version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    commit(made)
    return made


def commit(sandbox: Sandbox) -> None:
    """Commit every file."""
    sandbox.run("git", "add", "--all")
    assert sandbox.run("git", "commit", "--quiet", "--message", "zfw: change").returncode == 0


def tags(sandbox: Sandbox) -> str:
    return sandbox.run("git", "tag", "--list", "--format", "%(objecttype) %(refname)").stdout


def test_a_release_is_checked_then_built_then_tagged(sandbox: Sandbox) -> None:
    done = sandbox.run("scripts/release", "1.2.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert sandbox.called() == [*CHECKS, BUILD]
    assert tags(sandbox) == "tag refs/tags/v1.2.0\n"
    assert "dist/zfw-1.2.0.tar.gz\n" in done.stdout
    assert done.stdout.endswith("release: to publish: git push origin main v1.2.0\n")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("sed -i s/1.2.0/1.3.0/ zfw_py/version.py", "zfw_py/version.py says 1.3.0"),
        (
            "sed -i '2a ## [Unreleased]' CHANGELOG.md",
            'CHANGELOG.md begins with "## [Unreleased]", not with "## [1.2.0] - DATE"',
        ),
        (
            "sed -i 's/ - 2026-11-30//' CHANGELOG.md",
            'CHANGELOG.md begins with "## [1.2.0]", not with "## [1.2.0] - DATE"',
        ),
        ("git switch --quiet --create other", "on other, not on main"),
        ("git switch --quiet --detach", "on no branch, not on main"),
        ("git tag v1.2.0", "there is a tag v1.2.0"),
    ],
)
def test_a_state_that_is_no_release_is_refused_before_any_step(
    sandbox: Sandbox, command: str, problem: str
) -> None:
    sandbox.run("sh", "-ec", command)
    if sandbox.run("git", "status", "--porcelain").stdout:
        commit(sandbox)
    before = tags(sandbox)
    done = sandbox.run("scripts/release", "1.2.0")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"release: {problem}\n")
    assert (sandbox.called(), tags(sandbox)) == ([], before)


def test_a_change_that_is_not_committed(sandbox: Sandbox) -> None:
    (sandbox.directory / "new").touch()
    done = sandbox.run("scripts/release", "1.2.0")
    assert (done.returncode, done.stderr) == (1, "release: not committed:\n?? new\n")
    assert (sandbox.called(), tags(sandbox)) == ([], "")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("scripts/check", "exit 1"),
        ("scripts/test", "exit 1"),
        ("scripts/check", "touch made"),
        (".venv/bin/python", "exit 1"),
    ],
)
def test_without_checks_and_a_build_there_is_no_tag(sandbox: Sandbox, name: str, code: str) -> None:
    sandbox.stand_in(name, code)
    if name.startswith("scripts"):
        commit(sandbox)
    sandbox.called()
    assert sandbox.run("scripts/release", "1.2.0").returncode == 1
    assert tags(sandbox) == ""


@pytest.mark.parametrize("arguments", [[], ["1.2.0", "more"]])
def test_usage(sandbox: Sandbox, arguments: list[str]) -> None:
    assert sandbox.run("scripts/release", *arguments).returncode == 2


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    """Until a first release there is none, and everything is unreleased."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    unreleased, *releases = headings if headings[0] == "[Unreleased]" else [None, *headings]
    for heading in releases:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading)
    if releases:
        assert releases[0].startswith(f"[{__version__}] - ")
    else:
        assert (unreleased, __version__) == ("[Unreleased]", "0.1.0")
