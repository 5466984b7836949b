# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures that several systems need: a private bpffs, network namespaces, a container engine.

And two rules for a run of the tests. A test that enters the kernel has the mark ``kernel``. A
run that skips every such test fails on a machine where BPF can be used.
"""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.support import podman as engines
from tests.support.netns import Namespace, Network, use_private_bpffs
from zfw_py import Firewall, NotInstalled
from zfw_py.errors import KernelError
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ALL_SKIPPED = pytest.StashKey[bool]()
GRACE_PERIODS_ARE_OURS = pytest.StashKey[bool]()
RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")

# Of the tests marked kernel.
_run: list[str] = []
_skipped: list[str] = []


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process runs a part of the tests for another one."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that enters the kernel without the mark by which scripts/test leaves it out.

    Such a test may fork: the threads that created its namespaces have ended by then, which
    Python 3.12 and later does not know when it warns.

    Files with slow tests come first: of several processes none has to wait for the last one.
    """
    unmarked = [
        item.nodeid
        for item in items
        if "_private_bpffs" in getattr(item, "fixturenames", ())
        and not item.get_closest_marker("kernel")
    ]
    if unmarked:
        raise pytest.UsageError(f"not marked kernel: {', '.join(unmarked)}")
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the objects of collection, which live until the end.

    There are hundreds of thousands. Walking them was a third of a run without root.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the kernel expedite RCU's grace periods while tests run.

    Each change of a map in a map waits for one. Without this, that is two thirds of a run.
    """
    if _is_worker(session.config):
        return
    try:
        is_ours = int(RCU_EXPEDITED.read_text()) == 0
        if is_ours:
            RCU_EXPEDITED.write_text("1")
    except OSError:
        is_ours = False  # not root, or /sys is read-only: the tests only take longer
    session.config.stash[GRACE_PERIODS_ARE_OURS] = is_ours


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each kernel test that was run, and each that was skipped."""
    if "kernel" in report.keywords:
        if report.skipped:
            _skipped.append(report.nodeid)
        elif report.when == "call":
            _run.append(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape bytes that are not UTF-8, which one process of a run cannot send to another."""
    return _escaped((yield))


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_escaped(each) for each in value)
    return value


def _has_bpf() -> bool:
    try:
        bpf_maps.create_map((2, 4, 4, 1, 0), "probe")  # an array; its destructor closes it
    except KernelError:
        return False
    return True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that has skipped every kernel test although BPF can be used."""
    if session.config.stash.get(GRACE_PERIODS_ARE_OURS, False):
        RCU_EXPEDITED.write_text("0")
    if _is_worker(session.config) or exitstatus != pytest.ExitCode.OK:
        return
    if _skipped and not _run and os.geteuid() == 0 and _has_bpf():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[ALL_SKIPPED] = True


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say why such a run has failed."""
    if config.stash.get(ALL_SKIPPED, False):
        terminalreporter.write_line(
            "FAILED: BPF can be used here, and every test marked kernel was skipped", red=True
        )


@pytest.fixture(scope="session")
def _private_bpffs() -> None:
    """Mount a bpffs of this process's own, before the first test that enters the kernel."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    use_private_bpffs()


@pytest.fixture(autouse=True)
def _is_within_private_bpffs(request: pytest.FixtureRequest) -> None:
    """Run each test that enters the kernel there, whatever tests its process has run before."""
    if request.node.get_closest_marker("kernel"):
        request.getfixturevalue("_private_bpffs")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test enters here is left when the test ends."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def namespace(_private_bpffs: None) -> Iterator[Namespace]:
    """The test runs inside a new network namespace, which has only lo."""
    with Namespace() as made, made.entered():
        yield made
        remove_firewall()


@pytest.fixture
def network(_private_bpffs: None) -> Iterator[Network]:
    """A client and a gateway; the test runs inside the gateway."""
    with Network() as made, made.gateway.entered():
        yield made
        remove_firewall()


@pytest.fixture
def firewall(network: Network) -> Firewall:
    """A firewall without rules on the gateway's interface, IPv6 on."""
    made = Firewall()
    made.attach(network.interface, "ingress")
    made.set([network.interface], "ipv6", True)
    return made


@pytest.fixture(scope="session")
def podman(_private_bpffs: None) -> Iterator[engines.Podman]:
    """A container engine, which all tests of this process share."""
    absent = engines.missing()
    if absent is not None:
        pytest.skip(absent)
    # Podman takes no directory whose path is longer than 50 characters.
    with TemporaryDirectory(prefix="podman-") as directory, engines.podman(Path(directory)) as made:
        yield made


def remove_firewall() -> None:
    """Remove the firewall that a test may have left in this namespace."""
    try:
        Firewall().detach_all()
    except NotInstalled:
        pass
