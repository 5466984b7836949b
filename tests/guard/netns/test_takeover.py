# SPDX-License-Identifier: GPL-2.0-only
"""A guard that another build of zfw takes over: its supervisor, and what is left of the old one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from tests.guard.support.dns_process import end_for_good, watcher_of
from tests.guard.support.world import UPSTREAM
from tests.support.waiting import wait_until
from zfw_py.errors import UsageError
from zfw_py.guard import supervisor, takeover, watcher
from zfw_py.guard.events import NO_EVENTS, EventSink
from zfw_py.guard.model import Policy
from zfw_py.guard.service import Guard
from zfw_py.guard.target import GuardTarget
from zfw_py.lifecycle import programs as lifecycle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guard.support.world import World

pytestmark = [
    pytest.mark.kernel,
    # Python 3.12 and later: the thread that answers outside does nothing in a forked process.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

POLICY = Policy.parse(allow=["both.example"], dns_upstreams=[UPSTREAM])


@pytest.fixture
def guard(world: World) -> Iterator[Guard]:
    with world.inside.entered():
        guard = Guard.attach(GuardTarget.of_cgroup(str(world.cgroup)), POLICY)
    yield guard
    guard.detach()


@contextmanager
def another_build(world: World) -> Iterator[None]:
    """In the world's namespace, the same object file as that of another build."""
    with (
        world.inside.entered(),
        patch.object(lifecycle, "digest_of", lambda _: "0" * 64),
        patch.object(takeover, "digest_of", lambda _: "0" * 64),
    ):
        yield


def resolves(world: World) -> bool:
    return world.run("getent", "hosts", "both.example").returncode == 0


def open_sockets(guard: Guard) -> int:
    """How many sockets and pipes the supervisor has open."""
    folder = Path(f"/proc/{guard.status().supervisor_pid}/fd")
    links = [str(path.readlink()) for path in folder.iterdir()]
    return sum(link.startswith(("socket:", "pipe:")) for link in links)


def test_a_new_supervisor_that_fails_leaves_the_old_one(world: World, guard: Guard) -> None:
    def fail(_: takeover.Outputs) -> EventSink:
        raise UsageError("no sink")

    before = guard.status()
    assert resolves(world)
    with another_build(world), pytest.raises(UsageError, match="no sink"):
        guard.upgrade(fail)
    assert guard.status().supervisor_pid == before.supervisor_pid
    assert guard.status().manifest == before.manifest
    assert resolves(world)


def test_one_that_cannot_read_events_leaves_the_sockets_to_the_old_one(
    world: World, guard: Guard
) -> None:
    before = guard.status().supervisor_pid
    with (
        another_build(world),
        patch.object(takeover, "_sockets", lambda *_: []),
        patch.object(watcher, "supervise", side_effect=UsageError("no events")),
        pytest.raises(UsageError, match="no events"),
    ):
        guard.upgrade()
    assert guard.status().supervisor_pid == before
    assert resolves(world)


def test_the_new_supervisor_has_what_the_old_one_had(world: World, guard: Guard) -> None:
    before, opened = guard.status().supervisor_pid, open_sockets(guard)
    assert before is not None
    starter = watcher_of(before)
    with another_build(world):
        assert guard.upgrade()
        assert not guard.upgrade()
    after = guard.status().supervisor_pid
    assert after not in (before, None)
    # Its watcher has seen its end. It is a child of the test, which created the guard.
    assert os.waitpid(starter, 0) == (starter, 0)
    assert not Path(f"/proc/{before}").exists()
    assert resolves(world)
    assert wait_until(lambda: open_sockets(guard) == opened)
    limits = Path(f"/proc/{after}/limits").read_text()
    (row,) = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert row[3] == row[4]


def test_a_supervisor_that_has_died_is_replaced(world: World, guard: Guard) -> None:
    """Of the same build: no programs are exchanged."""
    before = guard.status().supervisor_pid
    assert before is not None
    end_for_good(before)
    assert wait_until(lambda: guard.status().supervisor_pid is None)
    assert not resolves(world)
    with world.inside.entered():
        assert guard.upgrade()
        assert not guard.upgrade()
    assert guard.status().supervisor_pid not in (before, None)
    assert resolves(world)


def test_an_error_in_the_foreground_leaves_the_guard_in_force(world: World) -> None:
    """Its processes would run unguarded otherwise."""
    made = world.new_cgroup()
    target = GuardTarget.of_cgroup(str(made))
    policy = Policy.parse(allow=["both.example"], dns_upstreams=[UPSTREAM])
    ready: list[Guard] = []

    def fail(_context: object, _opened: object, on_ready: Callable[[], None], *_: object) -> None:
        on_ready()
        raise RuntimeError("a bug")

    with patch.object(supervisor, "supervise", fail), pytest.raises(RuntimeError, match="a bug"):
        Guard.attach_in_foreground(target, policy, NO_EVENTS, ready.append)
    try:
        assert ready[0].status().manifest.cgroup == str(made)
    finally:
        ready[0].detach()
