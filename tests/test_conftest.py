# SPDX-License-Identifier: GPL-2.0-only
"""What a run of the tests has to keep; each in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import captured

ROOT = Path(__file__).resolve().parent.parent
ALL_SKIPPED = "FAILED: BPF can be used here, and every test marked kernel was skipped"
KERNEL_TESTS = "tests/firewall/netns/test_namespaces.py"


def run_pytest(tmp_path: Path, plugin: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on this project with a plugin of these lines."""
    (tmp_path / "forced.py").write_text(plugin)
    command = ("-m", "pytest", "-p", "forced", "-p", "no:cacheprovider", *arguments)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return captured(sys.executable, *command, cwd=ROOT, env=environment)


SKIP = "import pytest\ndef pytest_runtest_setup(item): pytest.skip('forced')\n"


@pytest.mark.kernel
def test_a_run_as_root_that_skips_every_kernel_test_fails(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIP, KERNEL_TESTS, "tests/test_errors.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert ALL_SKIPPED in done.stdout.splitlines()


@pytest.mark.kernel
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--collect-only",), id="none was to be run"),
        pytest.param(("-m", "not kernel", "tests/test_errors.py"), id="left out by request"),
    ],
)
def test_a_run_that_was_not_asked_for_kernel_tests_does_not(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = run_pytest(tmp_path, SKIP, KERNEL_TESTS, *arguments)
    assert (done.returncode, done.stderr) == (pytest.ExitCode.OK, "")
    assert ALL_SKIPPED not in done.stdout


@pytest.mark.parametrize(
    "unable",
    [
        pytest.param("import os\nos.geteuid = lambda: 1000\n", id="not root"),
        pytest.param(
            "def pytest_configure():\n"
            "    from zfw_py.errors import KernelError\n"
            "    from zfw_py.kernel import bpf_maps\n"
            "    def refuse(*_): raise KernelError('create map', 1)\n"
            "    bpf_maps.create_map = refuse\n",
            id="no BPF",
        ),
    ],
)
def test_nor_does_one_that_could_not_run_them(tmp_path: Path, unable: str) -> None:
    done = run_pytest(tmp_path, SKIP + unable, KERNEL_TESTS)
    assert (done.returncode, done.stderr) == (pytest.ExitCode.OK, "")
    assert ALL_SKIPPED not in done.stdout


def test_a_test_that_enters_the_kernel_has_to_be_marked(tmp_path: Path) -> None:
    """A file below tests/, as the fixtures are those of its conftest.py."""
    plugin = (
        "import pytest\n"
        "@pytest.hookimpl(tryfirst=True, wrapper=True)\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        for node in item.listchain():\n"
        "            node.own_markers[:] = [m for m in node.own_markers if m.name != 'kernel']\n"
        "    return (yield)\n"
    )
    done = run_pytest(tmp_path, plugin, "--collect-only", KERNEL_TESTS)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"not marked kernel: {KERNEL_TESTS}::" in done.stderr
