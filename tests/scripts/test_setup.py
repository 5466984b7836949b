# SPDX-License-Identifier: GPL-2.0-only
"""scripts/setup installs what is missing or out of date, and --check installs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = '[project]\nname = "zfw"\n[project.optional-dependencies]\nlint = ["ruff==1"]\n'
PIP = (
    "python [-m] [pip] [install] [--quiet] [--no-input] [--disable-pip-version-check]"
    " [--root-user-action=ignore] [--editable]"
)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A checkout with an empty environment, on a machine that has every Debian package."""
    made = Sandbox(tmp_path, "scripts/setup")
    made.stand_in(".venv/bin/python")
    made.stand_in("bin/dpkg-query", "echo install ok installed")
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(
        f"command = /usr/bin/python3 -m venv --clear {tmp_path}/.venv\n"
    )
    for name in ("hatch_build.py", "bpf/build.py", "bpf/a.h", "zfw_py/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "zfw_py" / "__main__.py").touch()
    (tmp_path / "zfw_py" / "objects").mkdir()
    (tmp_path / "pyproject.toml").write_text(f"{PROJECT}[tool.ruff]\n")
    return made


def installed(sandbox: Sandbox, *extras: str) -> list[str]:
    """What pip installs."""
    done = sandbox.run("scripts/setup", *extras)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.removeprefix(f"{PIP} ") for line in sandbox.called() if line.startswith(PIP)]


def check(sandbox: Sandbox, *extras: str) -> int:
    done = sandbox.run("scripts/setup", "--check", *extras)
    assert sandbox.called() == []
    if done.returncode:
        assert done.stderr == (
            "setup: not installed, or older than pyproject.toml:"
            f" run scripts/setup {' '.join(extras)}\n"
        )
    return done.returncode


@pytest.mark.parametrize(
    ("extras", "pip"),
    [
        ([], "[.]"),
        (["lint", "test"], "[.[lint,test]]"),
        (["quick"], "[.[test]]"),
        (["dev"], "[.[dev,lint,test]]"),
    ],
)
def test_it_installs_once(sandbox: Sandbox, extras: list[str], pip: str) -> None:
    assert installed(sandbox, *extras) == [pip]
    assert installed(sandbox, *extras) == []


def test_check(sandbox: Sandbox) -> None:
    assert check(sandbox, "lint") == 1
    installed(sandbox, "lint")
    assert check(sandbox, "lint") == 0
    assert check(sandbox, "lint", "test") == 1
    installed(sandbox, "dev")
    assert check(sandbox, "lint", "test") == 0


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("pyproject.toml", PROJECT.replace("==1", "==2"), 1),
        ("pyproject.toml", f"{PROJECT}[tool.ruff]\nline-length = 100\n", 0),
        ("bpf/a.h", "/* changed */\n", 0),
    ],
)
def test_a_change_is_installed_and_concerns_check_only_if_it_is_one_of_dependencies(
    sandbox: Sandbox, name: str, text: str, code: int
) -> None:
    installed(sandbox, "lint")
    (sandbox.directory / name).write_text(text)
    assert check(sandbox, "lint") == code
    assert installed(sandbox, "lint") == ["[.[lint]]"]
    assert check(sandbox, "lint") == 0


@pytest.mark.parametrize(("extra", "has_nginx"), [("test", True), ("quick", False), ("dev", False)])
def test_only_test_asks_for_the_packages_of_tests_with_root(
    sandbox: Sandbox, extra: str, has_nginx: bool
) -> None:
    sandbox.run("scripts/setup", extra)
    called = sandbox.called()
    assert any(line.endswith("[clang]") for line in called)
    assert any(line.endswith("[nginx]") for line in called) == has_nginx
