# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures: a private bpffs, network namespaces, a firewall in one of them.

And what a run has to keep: a test that enters the kernel is marked so, and where BPF can
be used, a run that skips all of these is no success.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker_dns.support.world import World as DockerWorld
from tests.docker_dns.support.world import docker_world
from tests.guard.support.world import World
from tests.guard.support.world import world as make_world
from tests.support import podman as engines
from tests.support.netns import Namespace, Network, use_private_bpffs
from zfw_py import Firewall, NotInstalled
from zfw_py.errors import KernelError
from zfw_py.guard.service import detach_all
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL_SKIPPED = pytest.StashKey[bool]()
RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")

_kernel_tests_run: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the mark, a test would fail where scripts/test leaves kernel tests out."""
    unmarked = [
        item.nodeid
        for item in items
        if "_private_bpffs" in getattr(item, "fixturenames", ())
        and not item.get_closest_marker("kernel")
    ]
    if unmarked:
        raise pytest.UsageError(f"not marked kernel: {', '.join(unmarked)}")


def pytest_collection_finish() -> None:
    """Spare the garbage collector the objects of collection, which live until the end.

    There are hundreds of thousands. Walking them was a third of a run without root.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _prompt_grace_periods() -> Iterator[None]:
    """Have the kernel hurry RCU's grace periods while tests run.

    Each change of a map within a map waits for one, which was two thirds of a run.
    """
    try:
        is_ours = int(RCU_EXPEDITED.read_text()) == 0
        if is_ours:
            RCU_EXPEDITED.write_text("1")
    except OSError:
        is_ours = False  # not root, or /sys is not ours to write: it takes longer, and no more
    yield
    if is_ours:
        RCU_EXPEDITED.write_text("0")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take note of a kernel test that is over and was not skipped."""
    if report.when == "call" and not report.skipped and "kernel" in report.keywords:
        _kernel_tests_run.append(report.nodeid)


def _all_kernel_tests_were_skipped(config: pytest.Config, session: pytest.Session) -> bool:
    return (
        not config.option.collectonly
        and any(item.get_closest_marker("kernel") for item in session.items)
        and not _kernel_tests_run
        and os.geteuid() == 0
        and _has_bpf()
    )


def _has_bpf() -> bool:
    try:
        bpf_maps.create_map((2, 4, 4, 1, 0), "probe")  # an array; closed when it is let go
    except KernelError:
        return False
    return True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A success that has shown nothing of the kernel is none."""
    if exitstatus == pytest.ExitCode.OK and _all_kernel_tests_were_skipped(session.config, session):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[ALL_SKIPPED] = True


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say why."""
    if config.stash.get(ALL_SKIPPED, False):
        terminalreporter.write_line(
            "FAILED: BPF can be used here, and every test marked kernel was skipped", red=True
        )


@pytest.fixture(scope="session")
def _private_bpffs() -> None:
    """Before the first test that enters the kernel: nothing of the machine's is touched."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    use_private_bpffs()


@pytest.fixture
def namespace(_private_bpffs: None) -> Iterator[Namespace]:
    """The test is inside a network namespace of its own, with nothing but lo."""
    made = Namespace()
    try:
        with made.entered():
            yield made
            remove_firewall()
    finally:
        made.close()


@pytest.fixture
def network(_private_bpffs: None) -> Iterator[Network]:
    """The test is inside the gateway of a client and a gateway."""
    made = Network()
    try:
        with made.gateway.entered():
            yield made
            remove_firewall()
    finally:
        made.close()


@pytest.fixture
def firewall(network: Network) -> Firewall:
    """A firewall on the gateway's interface, IPv6 on, without a rule."""
    made = Firewall()
    made.attach(network.interface)
    made.set([network.interface], "ipv6", True)
    return made


@pytest.fixture
def world(_private_bpffs: None, tmp_path: Path) -> Iterator[World]:
    """A place for guarded programs; no guard is left when the test ends."""
    with make_world(tmp_path) as made:
        yield made
        detach_all()


@pytest.fixture(scope="session")
def podman(
    _private_bpffs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[engines.Podman]:
    """A container engine, the same for all tests."""
    absent = engines.missing()
    if absent is not None:
        pytest.skip(absent)
    with engines.podman(tmp_path_factory.mktemp("podman")) as made:
        yield made


@pytest.fixture
def docker(_private_bpffs: None, tmp_path: Path) -> Iterator[DockerWorld]:
    """A container's network, with a daemon's resolver in it and a server outside."""
    with docker_world(tmp_path) as made:
        yield made


def remove_firewall() -> None:
    """Take off whatever a test left in this namespace."""
    try:
        Firewall().detach_all()
    except NotInstalled:
        pass
