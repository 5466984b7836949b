# SPDX-License-Identifier: GPL-2.0-only
"""scripts/test: the pytest command that it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

QUICK = "python [-m] [pytest] [-rs] [-m] [not kernel and not slow]"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """The user is root, and BPF can be used."""
    made = Sandbox(tmp_path, "scripts/test")
    for name in ("scripts/setup", "bin/bpftool", ".venv/bin/python"):
        made.stand_in(name)
    made.stand_in("bin/id", "echo 0")
    for folder in ("guard", "docker_dns", "cli", "steer"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("arguments", "pytest_arguments"),
    [
        ([], ""),
        (["guard"], " [tests/guard]"),
        (["docker-dns", "cli"], " [tests/docker_dns] [tests/cli]"),
        (["-k", "restore or guard"], " [-k] [restore or guard]"),
        (["guard", "-k", "steer"], " [tests/guard] [-k] [steer]"),
        (["tests/test_errors.py", "-x"], " [tests/test_errors.py] [-x]"),
        (["no-such"], " [no-such]"),
    ],
)
def test_as_root(sandbox: Sandbox, arguments: list[str], pytest_arguments: str) -> None:
    assert sandbox.run("scripts/test", *arguments).returncode == 0
    called = sandbox.called()
    assert called[0] == "setup [test]"
    assert called[-1] == f"python [-m] [pytest] [-rs]{pytest_arguments}"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["quick"], QUICK),
        (["quick", "steer"], f"{QUICK.replace('[-rs]', '[-rs] [tests/steer]')}"),
        (["quick", "-k", "policy"], f"{QUICK} [-k] [policy]"),
    ],
)
def test_quick(sandbox: Sandbox, arguments: list[str], command: str) -> None:
    """The same for every user; it installs no Debian package that only tests with root need."""
    assert sandbox.run("scripts/test", *arguments).returncode == 0
    assert sandbox.called() == ["setup [quick]", command]


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
    assert sandbox.called()[-1] == (
        "python [-m] [pytest] [-rs] [tests/guard] [-m] [not kernel] [-x]"
    )
