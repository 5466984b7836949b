# SPDX-License-Identifier: GPL-2.0-only
"""The subject rule of commits, as the hook applies it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[2] / "scripts" / "commit-msg"
LONGEST = "steer: " + "x" * 65
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example", "-c", "commit.gpgsign=false")


def run(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and stderr."""
    done = subprocess.run(
        [COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "message",
    [
        "steer: cache the cgroup id\n",
        "docker-dns: a body follows\n\nWhy: and as long a line as the writer likes, " + "x" * 80,
        "cli/classic, docs: two areas",
        LONGEST,
        "steer: " + "ß" * 65,
        "\n# a comment\nguard: after what an editor shows\n# Please enter\n",
        "Merge branch 'wip' into main",
        'Revert "A subject from before the rule, which was longer than seventy-two characters"',
        "fixup! guard: cache",
        "",
        "# nothing\n",
    ],
)
def test_accepted(message: str, tmp_path: Path) -> None:
    (tmp_path / "message").write_text(message)
    assert run(tmp_path / "message") == (0, "")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Cache the cgroup id", 'not "area: what changes": Cache the cgroup id'),
        ("Guard: cache", 'not "area: what changes": Guard: cache'),
        ("guard:cache", 'not "area: what changes": guard:cache'),
        ("guard: ", 'not "area: what changes": guard:'),
        (LONGEST + "x", f"73 characters, at most 72: {LONGEST}x"),
        ("guard: cache.", "ends with a full stop: guard: cache."),
        ("guard: cache\nthe id", "no empty line after the subject: guard: cache"),
    ],
)
def test_refused(message: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "message").write_text(message)
    assert run(tmp_path / "message") == (1, f"commit-msg: {problem}\n")


def test_each_commit_of_a_range(tmp_path: Path) -> None:
    subprocess.run([*GIT, "init", "-q"], cwd=tmp_path, check=True)
    for subject in ("Before the rule", "guard: good\n\nWhy.", "Bad one", "docs: good"):
        command = [*GIT, "commit", "-q", "--allow-empty", "-m", subject]
        subprocess.run(command, cwd=tmp_path, check=True)
    refused = (1, 'commit-msg: not "area: what changes": Bad one\n')
    assert run("--commits", "HEAD~3..", cwd=tmp_path) == refused
    assert run("--commits", "HEAD~1..", cwd=tmp_path) == (0, "")


def test_usage() -> None:
    code, text = run()
    assert code == 2
    assert "--commits RANGE" in text
