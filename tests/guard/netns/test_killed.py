# SPDX-License-Identifier: GPL-2.0-only
"""Guards whose processes are killed: nothing opens up, and the next command finds all in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UPSTREAM
from tests.support.cgroups import enter
from tests.support.command import ZFW
from tests.support.killed import killed_at
from tests.support.waiting import wait_until
from zfw_py import NotFound
from zfw_py.guard import listing
from zfw_py.guard.events import EventSink
from zfw_py.guard.model import Policy, parse_entry
from zfw_py.guard.service import Guard
from zfw_py.guard.target import GuardTarget
from zfw_py.kernel import cgroup
from zfw_py.values.endpoint import parse_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

RUN = (str(ZFW), "guard", "run", "--dns-upstream", UPSTREAM, "--")
POLICY = Policy(
    allow=(parse_entry("both.example", "here"),), dns_upstreams=(parse_server(UPSTREAM, "here"),)
)


def ignore(_: object) -> None:
    pass


NOBODY = EventSink(ignore, wants_all=False)


def run(*command: str) -> int:
    return Guard.run(command, POLICY, NOBODY, ignore)


def each_step(
    world: World,
    action: Callable[[], object],
    check: Callable[[], object],
    *,
    is_maker: bool = True,
    stride: int = 1,
) -> list[str]:
    """Kill before each step, or each of so many, and check each time; what the steps were."""

    def go_in() -> None:
        enter(world.cgroup)

    steps = []
    for number in range(0, 1000, stride):
        with world.inside.entered():
            step = killed_at(number, action, go_in, is_maker=is_maker)
        if step is None:
            return steps
        steps.append(step)
        check()
    raise AssertionError("it never ends")


def next_command_works(world: World) -> None:
    """And it takes away what is left."""
    done = world.guarded(["--allow", "both.example"], "getent", "hosts", "both.example")
    assert (done.returncode, done.stderr) == (0, "")
    assert world.is_clean(), world.left()


# At each step of making and taking away


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run(world: World) -> None:
    steps = each_step(world, lambda: run("true"), lambda: next_command_works(world))
    assert len(steps) > 60


@pytest.mark.timeout(600)
def test_the_process_of_run(world: World) -> None:
    steps = each_step(world, lambda: run("true"), lambda: next_command_works(world), is_maker=False)
    assert len(steps) >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_process_of_run_that_takes_the_guard_away(world: World) -> None:
    # The command ends zfw, and itself: what is left is the process in the background.
    steps = each_step(
        world,
        lambda: run("sh", "-c", "kill -9 $PPID"),
        lambda: next_command_works(world),
        is_maker=False,
    )
    assert len(steps) > 30


def in_force_or_nothing(world: World) -> None:
    """What is listed is whole, and can be taken away."""
    found, foreign = listing.guards()
    assert foreign == []
    for status in found:
        assert status.problem == ""
        done = world.zfw("detach", status.manifest.id)
        # A supervisor removes a guard whose own cgroup is empty: perhaps just before this.
        is_empty = status.manifest.is_cgroup_ours and status.processes == 0
        assert done.returncode == 0 or (is_empty and done.returncode == NotFound.exit_code), done
    next_command_works(world)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_maker", [True, False], ids=["zfw", "its process"])
def test_attach_and_detach(world: World, is_maker: bool) -> None:
    def action() -> None:
        made = Guard.attach(GuardTarget.of_cgroup(str(world.cgroup)), POLICY, NOBODY)
        made.detach()

    # The process that is killed is in what it guards, and so in a cgroup of its own beside it.
    steps = each_step(world, action, lambda: in_force_or_nothing(world), is_maker=is_maker)
    assert len(steps) > (60 if is_maker else 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_attach_to_a_process_that_is_moved(world: World) -> None:
    with world.bystander() as pid:

        def action() -> None:
            made = Guard.attach(GuardTarget.of_process(pid, is_moved=True), POLICY, NOBODY)
            made.detach()

        assert len(each_step(world, action, lambda: in_force_or_nothing(world), stride=2)) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_redirect(world: World) -> None:
    with world.bystander() as pid:

        def action() -> None:
            made = Guard.redirect(
                GuardTarget.of_process(pid, is_moved=True), [parse_server(UPSTREAM, "")]
            )
            made.detach()

        assert len(each_step(world, action, lambda: in_force_or_nothing(world), stride=2)) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_guard_around_one_whose_process_is_elsewhere(world: World) -> None:
    """The inner one's process is taken in."""
    inner = world.cgroup / "around" / "inner"
    inner.mkdir(parents=True)
    attach = ("attach", "--allow", "both.example", "--dns-upstream", UPSTREAM, "--cgroup")
    identifier = world.zfw(*attach, str(inner)).stdout.strip()

    def action() -> None:
        made = Guard.attach(GuardTarget.of_cgroup(str(inner.parent)), POLICY, NOBODY)
        made.detach()

    def check() -> None:
        found, foreign = listing.guards()
        assert foreign == []
        assert [status.problem for status in found if status.manifest.id == identifier] == [""]
        for status in found:
            if status.manifest.id != identifier:
                assert world.zfw("detach", status.manifest.id).returncode == 0
        done = world.guarded(["--allow", "both.example"], "getent", "hosts", "both.example")
        assert (done.returncode, done.stderr) == (0, "")

    assert len(each_step(world, action, check, stride=2)) > 20
    assert world.zfw("detach", identifier).returncode == 0
    assert wait_until(
        lambda: [p for p in world.left() if "zfw-" in p.partition(world.cgroup.name)[2]] == []
    )


# At any moment


def own_processes(world: World) -> list[int]:
    """Those of zfw in the world's cgroup: the one that was started, and those in the background."""
    found = []
    for pid in cgroup.processes(str(world.cgroup)):
        with suppress(FileNotFoundError):  # it has ended
            if b"guard\0run" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def kill_own(world: World, which: str, started: int) -> None:
    """Kill these processes at once: before one of them starts another one, it is stopped."""
    killed = [
        pid
        for pid in own_processes(world)
        if which == "both" or (pid == started) == (which == "zfw")
    ]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@pytest.mark.parametrize("which", ["zfw", "its processes", "both"])
@pytest.mark.parametrize("seed", range(6))
def test_run_at_any_moment(world: World, which: str, seed: int) -> None:
    process = world.start(*RUN, "sleep", "1000", stdout=None, stderr=subprocess.DEVNULL)
    time.sleep(random.Random(f"{which} {seed}").uniform(0.05, 0.5))
    kill_own(world, which, process.pid)
    time.sleep(0.1)
    process.terminate()
    process.wait(60)

    def is_over() -> bool:
        kill_commands(world)
        return not cgroup.processes(str(world.cgroup), is_recursive=True)

    assert wait_until(is_over)
    next_command_works(world)


def kill_commands(world: World) -> None:
    for status in listing.guards()[0]:
        for pid in cgroup.processes(status.manifest.cgroup, is_recursive=True):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# And then


POLICY_OPTIONS = ("--allow", "v4.example", "--allow", "short.example", "--dns-upstream", UPSTREAM)
GUARDED = (str(ZFW), "guard", "run", "-q", *POLICY_OPTIONS, "--")
WEB = "curl --silent --max-time 10 --output /dev/null http://10.9.0.11"
NAME = "getent ahostsv4 v4.example > /dev/null"
SHORT = "getent ahostsv4 short.example > /dev/null"
DENIED = "curl --silent --max-time 5 http://10.9.0.13"


def test_without_its_process_dns_fails_and_nothing_opens_up(world: World) -> None:
    with world.shell(*GUARDED) as shell:
        assert shell.ask(NAME) == (0, "")
        assert shell.ask(WEB) == (0, "")
        [before], _ = listing.guards()
        kill_own(world, "its processes", shell.process.pid)
        assert wait_until(lambda: listing.guards()[0][0].supervisor_pid is None)
        with world.capture() as arrived:
            assert shell.ask(NAME) == (2, "")
            # What was resolved holds for as long as it was to.
            assert shell.ask(WEB) == (0, "")
            assert shell.ask(DENIED) == (7, "")
        assert {one.port for one in arrived} <= {0, 80}
        assert {one.destination for one in arrived if one.port == 80} == {"10.9.0.11"}
        done = world.zfw("list")
        assert done.stdout.splitlines()[1].split()[:2] == [before.manifest.id, "run"]
        assert " not kept " in done.stdout
        problem = "DNS proxy process died: name look-ups fail, address rules still apply"
        assert done.stderr == f"zfw: warning: guard {before.manifest.id}: {problem}\n"
        # Other guards leave it alone while somebody is in it.
        assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
        assert [status.manifest.id for status in listing.guards()[0]] == [before.manifest.id]
        shell.end()
        assert shell.process.wait(60) == 0
        assert shell.process.stderr is not None
        note = "zfw: warning: the guard's process has ended: DNS fails from now on\n"
        assert shell.process.stderr.read() == note
    assert world.is_clean(), world.left()


def test_without_zfw_itself_it_stays_guarded(world: World) -> None:
    with world.shell(*GUARDED) as shell:
        assert shell.ask(NAME) == (0, "")
        shell.process.kill()
        assert shell.process.wait(60) == -signal.SIGKILL
        [status], _ = listing.guards()
        assert (status.problem, status.processes) == ("", 1)
        assert shell.ask(SHORT) == (0, "")
        assert shell.ask(DENIED) == (7, "")
        shell.end()
        assert world.is_clean(), world.left()


def test_without_both_the_next_command_collects_what_nobody_is_in(world: World) -> None:
    with world.shell(*GUARDED) as shell:
        assert shell.ask(NAME) == (0, "")
        kill_own(world, "both", shell.process.pid)
        assert shell.process.wait(60) == -signal.SIGKILL
        assert shell.ask(SHORT) == (2, "")
        assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
        [status], _ = listing.guards()
        assert (status.supervisor_pid, status.processes) == (None, 1)
        shell.end()
        assert wait_until(lambda: listing.guards()[0][0].processes == 0)
        assert world.left() != []
        next_command_works(world)


def test_a_killed_guard_can_be_detached_and_then_traffic_flows(world: World) -> None:
    with world.shell(*GUARDED) as shell:
        assert shell.ask(WEB) == (7, "")
        kill_own(world, "its processes", shell.process.pid)
        [status], _ = listing.guards()
        assert world.zfw("detach", status.manifest.id).stdout == f"detached {status.manifest.id}\n"
        assert shell.ask(NAME) == (0, "")
        assert shell.ask(WEB) == (0, "")
        assert [each for each in world.left() if "zfw-guard" in each or "/bpf/" in each] == []
        shell.end()
        shell.process.wait(60)
