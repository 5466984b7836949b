# SPDX-License-Identifier: GPL-2.0-only
"""scripts/check changes files only with --fix, and a hook calls each of its steps."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.sandbox import ROOT, Sandbox

if TYPE_CHECKING:
    from pathlib import Path

STEPS = re.findall(r'^\tstep "([^"]+)"', (ROOT / "scripts" / "check").read_text(), re.MULTILINE)
TOOLS = ("clang-format", "codespell", "lint-imports", "mypy", "ruff", "shellcheck")
GENERATORS = ("gen-cli-docs", "gen-layout", "gen-schema")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """Every tool succeeds."""
    made = Sandbox(tmp_path, "scripts/check")
    for tool in (*TOOLS, "validate-pyproject"):
        made.stand_in(f".venv/bin/{tool}")
    for script in (*GENERATORS, "setup", "stack-frames"):
        made.stand_in(f"scripts/{script}")
    for name in (".ci/run", "tests/older_kernels/guest", "zfw_py/compat/files/zfw"):
        made.stand_in(name)
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpf" / "a.h").touch()
    (tmp_path / "scripts" / "commit-msg").write_text("#!/usr/bin/python3\n")
    return made


def test_alone_it_changes_and_installs_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run("scripts/check").returncode == 0
    called = sandbox.called()
    assert called[0] == "setup [--check] [lint]"
    assert not [line for line in called if "[--fix]" in line or "[-i]" in line]
    assert {f"{generator} [--check]" for generator in GENERATORS} <= set(called)
    assert "clang-format [--dry-run] [-Werror] [bpf/a.h]" in called
    assert "ruff [format] [--quiet] [--force-exclude] [--check] [.] [scripts/commit-msg]" in called


def test_fix_lets_the_tools_change_files(sandbox: Sandbox) -> None:
    assert sandbox.run("scripts/check", "--fix").returncode == 0
    called = sandbox.called()
    assert set(GENERATORS) <= set(called)
    assert "clang-format [-i] [bpf/a.h]" in called
    assert not [line for line in called if "[--check]" in line and "setup" not in line]
    ruff = "[--quiet] [--force-exclude]"
    assert f"ruff [check] {ruff} [--fix] [.] [scripts/commit-msg]" in called
    assert f"ruff [format] {ruff} [.] [scripts/commit-msg]" in called


def test_one_step_on_some_files(sandbox: Sandbox) -> None:
    assert sandbox.run("scripts/check", "--only", "shell", "a", "b").returncode == 0
    assert sandbox.called() == ["setup [--check] [lint]", "shellcheck [a] [b]"]


def test_every_step_that_fails_is_named(sandbox: Sandbox) -> None:
    sandbox.stand_in(".venv/bin/shellcheck", "exit 1")
    sandbox.stand_in("scripts/gen-schema", "exit 3")
    done = sandbox.run("scripts/check")
    assert (done.returncode, done.stderr) == (1, "check: failed: shell, document schema\n")


def test_without_the_tools_nothing_is_checked(sandbox: Sandbox) -> None:
    sandbox.stand_in("scripts/setup", "exit 1")
    assert sandbox.run("scripts/check").returncode == 1
    assert sandbox.called() == ["setup [--check] [lint]"]


@pytest.mark.parametrize(
    "arguments", [["--only"], ["--only", "no such step"], ["README.md"], ["-h"]]
)
def test_usage(sandbox: Sandbox, arguments: list[str]) -> None:
    assert sandbox.run("scripts/check", *arguments).returncode == 2
    assert "shellcheck" not in str(sandbox.called())


def test_each_step_has_a_hook() -> None:
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = configuration["repos"]
    hooks = [hook for hook in repository["hooks"] if hook.get("stages") != ["commit-msg"]]
    assert [shlex.split(hook["entry"]) for hook in hooks] == [
        ["scripts/check", "--only", step] for step in STEPS
    ]
    assert [hook["name"] for hook in hooks] == STEPS
