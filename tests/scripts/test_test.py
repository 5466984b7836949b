# SPDX-License-Identifier: GPL-2.0-only
"""scripts/test: the pytest command that it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

PYTEST = "python [-m] [pytest] [-rs]"
PARALLEL = f"{PYTEST} [-n] [3]"
CHOSEN = "[-m] [not kernel and not slow]"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """The user is root, BPF can be used, and there are three processors."""
    made = Sandbox(tmp_path, "scripts/test")
    for name in ("scripts/setup", "bin/bpftool", ".venv/bin/python"):
        made.stand_in(name)
    made.stand_in("bin/id", "echo 0")
    made.stand_in("bin/nproc", "echo 3")
    for folder in ("guard", "docker_dns", "cli", "steer"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], PARALLEL),
        (["guard"], f"{PARALLEL} [tests/guard]"),
        (["docker-dns", "cli"], f"{PARALLEL} [tests/docker_dns] [tests/cli]"),
        (["guard", "-x"], f"{PARALLEL} [tests/guard] [-x]"),
        (["guard", "-n", "0"], f"{PARALLEL} [tests/guard] [-n] [0]"),
        (["no-such"], f"{PARALLEL} [no-such]"),
        (["-k", "restore or guard"], f"{PYTEST} [-k] [restore or guard]"),
        (["guard", "-k", "steer"], f"{PYTEST} [tests/guard] [-k] [steer]"),
        (["guard", "--pdb"], f"{PYTEST} [tests/guard] [--pdb]"),
        (["tests/test_errors.py", "-x"], f"{PYTEST} [tests/test_errors.py] [-x]"),
    ],
)
def test_as_root(sandbox: Sandbox, arguments: list[str], command: str) -> None:
    """Whole folders are run in parallel; of two options -n pytest takes the last one."""
    assert sandbox.run("scripts/test", *arguments).returncode == 0
    called = sandbox.called()
    assert called[0] == "setup [test]"
    assert called[-1] == command


def test_with_one_processor(sandbox: Sandbox) -> None:
    sandbox.stand_in("bin/nproc", "echo 1")
    assert sandbox.run("scripts/test", "guard").returncode == 0
    assert sandbox.called()[-1] == f"{PYTEST} [tests/guard]"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["quick"], f"{PARALLEL} {CHOSEN}"),
        (["quick", "steer"], f"{PARALLEL} [tests/steer] {CHOSEN}"),
        (["quick", "-k", "policy"], f"{PYTEST} {CHOSEN} [-k] [policy]"),
    ],
)
def test_quick(sandbox: Sandbox, arguments: list[str], command: str) -> None:
    """The same for every user; it installs no Debian package that only tests with root need."""
    assert sandbox.run("scripts/test", *arguments).returncode == 0
    called = sandbox.called()
    assert called[0] == "setup [quick]"
    assert called[1:] == ["nproc", command]


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("bin/id", "echo 1000", "not root"),
        ("bin/bpftool", "echo no >&2; exit 1", "no BPF on this machine: no"),
    ],
)
def test_where_the_kernel_is_out_of_reach(
    sandbox: Sandbox, name: str, code: str, reason: str
) -> None:
    sandbox.stand_in(name, code)
    done = sandbox.run("scripts/test", "guard", "-x")
    assert done.stdout == f"test: {reason}; skipping the tests that need it (marked kernel)\n"
    assert sandbox.called()[-1] == f"{PARALLEL} [tests/guard] [-m] [not kernel] [-x]"
