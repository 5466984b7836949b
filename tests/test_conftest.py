# SPDX-License-Identifier: GPL-2.0-only
"""What a run of the tests has to keep; each in a pytest of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import chain, groupby
from pathlib import Path

import pytest

from tests.support.command import captured
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
ALL_SKIPPED = "FAILED: BPF can be used here, and every test marked kernel was skipped"
KERNEL_TESTS = "tests/firewall/netns/test_namespaces.py"


def run_pytest(tmp_path: Path, plugin: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on this project with a plugin of these lines."""
    (tmp_path / "forced.py").write_text(plugin)
    command = ("-m", "pytest", "-p", "forced", "-p", "no:cacheprovider", *arguments)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return captured(sys.executable, *command, cwd=ROOT, env=environment)


number_of_processes = pytest.mark.parametrize("processes", ["0", "2"])

SKIP = "import pytest\ndef pytest_runtest_setup(item): pytest.skip('forced')\n"


@pytest.mark.kernel
@number_of_processes
def test_a_run_as_root_that_skips_every_kernel_test_fails(tmp_path: Path, processes: str) -> None:
    done = run_pytest(tmp_path, SKIP, "-n", processes, KERNEL_TESTS, "tests/test_errors.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert ALL_SKIPPED in done.stdout.splitlines()


@pytest.mark.kernel
@number_of_processes
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--collect-only",), id="none was to be run"),
        pytest.param(("-m", "not kernel", "tests/test_errors.py"), id="left out by request"),
    ],
)
def test_a_run_that_was_not_asked_for_kernel_tests_does_not(
    tmp_path: Path, arguments: tuple[str, ...], processes: str
) -> None:
    done = run_pytest(tmp_path, SKIP, "-n", processes, KERNEL_TESTS, *arguments)
    assert (done.returncode, done.stderr) == (pytest.ExitCode.OK, "")
    assert ALL_SKIPPED not in done.stdout


@number_of_processes
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
def test_nor_does_one_that_could_not_run_them(tmp_path: Path, unable: str, processes: str) -> None:
    done = run_pytest(tmp_path, SKIP + unable, "-n", processes, KERNEL_TESTS)
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


# Tests are not run, but each says where: the first test of a file may be anywhere in its process.
NOTE = """
import os, pathlib, pytest
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    with pathlib.Path(__file__).with_name("noted").open("a") as file:
        file.write(f"{os.getpid()} {item.path.name}\\n")
    return True
"""


@number_of_processes
def test_the_tests_of_a_file_are_run_together_and_files_with_slow_ones_first(
    tmp_path: Path, processes: str
) -> None:
    done = run_pytest(tmp_path, NOTE, "-q", "-n", processes, "tests/guard/unit", "tests/steer/bpf")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    ran: dict[str, list[str]] = {}
    for line in (tmp_path / "noted").read_text().splitlines():
        process, name = line.split()
        ran.setdefault(process, []).append(name)
    assert len(ran) == max(int(processes), 1)
    files = [[name for name, _ in groupby(names)] for names in ran.values()]
    assert sorted(chain(*files)) == sorted(set(chain(*files)))
    slow = {"test_dns_same.py", "test_differential.py"}
    first = [name for each in files for name in each[:3]]
    assert slow < set(first)


WAIT = """
import os, pathlib, subprocess
def pytest_runtest_call():
    command = ("sh", "-c", "trap '' INT; exec sleep 1000")
    with subprocess.Popen(command) as daemon:
        try:
            pathlib.Path(__file__).with_name(f"waits-{os.getpid()}").touch()
            daemon.wait()
        finally:
            daemon.kill()
"""


@number_of_processes
def test_a_run_that_is_interrupted_leaves_no_process(tmp_path: Path, processes: str) -> None:
    """As Ctrl-C does it: the signal goes to the process group, where the tests' daemons are too."""
    (tmp_path / "forced.py").write_text(WAIT)
    options = ("-p", "forced", "-p", "no:cacheprovider", "-n", processes)
    tests = ("tests/test_errors.py", "tests/test_public_api.py")
    run = subprocess.Popen(
        (sys.executable, "-m", "pytest", *options, *tests),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: len([*tmp_path.glob("waits-*")]) == max(int(processes), 1))
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == pytest.ExitCode.INTERRUPTED
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
