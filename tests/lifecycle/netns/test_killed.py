# SPDX-License-Identifier: GPL-2.0-only
"""The kill matrix: four systems x {install, change, upgrade, remove} x each thing they change.

A test kills the process before its n-th change. The kernel then has the state before the command
or the state after it, and the same command, run again, completes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lifecycle.support.subjects import SUBJECTS, Subject, subject
from tests.support.killed import killed_at
from zfw_py.lifecycle.store import UNNAMED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(params=SUBJECTS)
def system(
    request: pytest.FixtureRequest, _private_bpffs: None, tmp_path: Path
) -> Iterator[Subject]:
    with subject(request.param, tmp_path) as made:
        yield made


def each_step(system: Subject, action: Callable[[], None]) -> Iterator[str]:
    """Kill before each change; what was about to be done."""
    for number in range(1000):
        step = killed_at(number, action, system.enter, is_maker=True)
        if step is None:
            return
        yield step
    raise AssertionError("it never ends")


def is_tidy(system: Subject) -> bool:
    """Whether nothing is left that is not part of an instance."""
    names = [name for identifier in system.identifiers for name in system.pins(identifier)]
    return not system.system.store.unfinished() and not any(
        name.startswith(UNNAMED) for name in names
    )


def test_install(system: Subject) -> None:
    steps = 0
    for step in each_step(system, system.install):
        assert system.probe(is_whole=False) in ("before", "installed"), step
        system.heal()
        assert system.probe() == "installed", step
        assert is_tidy(system), step
        system.remove()
        assert system.probe() == "before", step
        assert is_tidy(system), step
        steps += 1
    assert system.probe() == "installed"
    assert steps > 10


@pytest.mark.usefixtures("_private_bpffs")
@pytest.mark.parametrize("name", ["firewall", "steering"])
def test_change(name: str, tmp_path: Path) -> None:
    """The other two have nothing that is changed: they are removed and made anew."""
    with subject(name, tmp_path) as system:
        _change(system)


def _change(system: Subject) -> None:
    system.install()
    steps = 0
    for step in each_step(system, system.change):
        assert system.probe() in ("installed", "changed"), step
        system.change()
        assert system.probe() == "changed", step
        assert is_tidy(system), step
        system.undo_change()
        assert system.probe() == "installed", step
        steps += 1
    assert system.probe() == "changed"
    assert steps > 5


def test_upgrade(system: Subject) -> None:
    system.install()
    before = system.running()
    steps = 0
    for step in each_step(system, system.upgrade):
        assert None not in system.running(), step
        assert system.probe() == "installed", step
        system.upgrade()
        after = system.running()
        assert None not in after
        assert not set(after) & set(before), step
        assert system.probe() == "installed", step
        assert is_tidy(system), step
        before = after
        system.next_build()
        steps += 1
    assert not set(system.running()) & set(before)
    assert steps > len(before)


def test_remove(system: Subject) -> None:
    system.install()
    steps = 0
    for step in each_step(system, system.remove):
        assert system.probe(is_whole=False) in ("before", "installed"), step
        # Another is made: what the killed process left is not in the way.
        system.heal()
        assert system.probe() == "installed", step
        assert is_tidy(system), step
        steps += 1
    assert system.probe() == "before"
    assert is_tidy(system)
    assert steps > 10
