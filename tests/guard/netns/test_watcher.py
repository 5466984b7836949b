# SPDX-License-Identifier: GPL-2.0-only
"""A guard's DNS process that ends, whatever ends it, is started again by its watcher."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.dns_process import end_for_good, watcher_of
from tests.guard.support.questions import addresses_in, ask_over_tcp, question
from tests.guard.support.ways.way import NAME_SERVER
from tests.guard.support.world import UPSTREAM
from tests.support.command import ZFW
from tests.support.sockets import FAMILIES, tcp_socket, udp_socket
from tests.support.waiting import wait_until
from zfw_py.guard import watcher
from zfw_py.guard.maps import STORE, Maps
from zfw_py.guard.model import Policy
from zfw_py.guard.service import Guard
from zfw_py.guard.target import GuardTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import Attached, World

pytestmark = pytest.mark.kernel

NAME = "both.example"


def dns_process(guard: Attached) -> int:
    pid = guard.status()["keeper_pid"]
    assert isinstance(pid, int)
    return pid


def kill(guard: Attached, number: signal.Signals = signal.SIGKILL) -> None:
    """End the guard's DNS process, and wait for another one."""
    before = dns_process(guard)
    os.kill(before, number)
    assert wait_until(lambda: guard.status()["keeper_pid"] not in (before, None))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_it_is_started_again(world: World, number: signal.Signals) -> None:
    def program() -> Iterator[object]:
        while True:
            with udp_socket(4) as s:
                s.settimeout(30)
                s.sendto(question(NAME), (NAME_SERVER[4], 53))
                yield addresses_in(s.recv(4096))

    with world.attached("--allow", NAME) as guard, guard.stages(program) as go_on:
        assert go_on() == ["10.9.0.10"]
        assert (guard.status()["problem"], guard.status()["restarts"]) == (None, 0)
        kill(guard, number)
        assert go_on() == ["10.9.0.10"]
        status = guard.status()
        how = "exit code 0" if number == signal.SIGTERM else f"signal {int(number)}"
        assert (status["restarts"], status["last_end"]) == (1, how)
        times = f"started again 1 time, the last time after {how}"
        assert status["problem"] == f"DNS proxy process died and runs again ({times})"
        assert "guarding" in world.zfw("list").stdout
        assert status["problem"] in world.zfw("list").stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_its_sockets_are_the_same_and_queries_wait_in_them(world: World, family: int | str) -> None:
    """Also those of a socket that was connected before, and what was sent meanwhile."""
    server = (NAME_SERVER[family], 53)

    def program() -> Iterator[object]:
        connected, stream = udp_socket(family), tcp_socket(family)
        connected.connect(server)
        connected.send(question(NAME))
        yield addresses_in(connected.recv(4096))
        # The DNS process has ended, and no other runs yet.
        connected.send(question(NAME))
        stream.connect(server)
        yield None
        yield [
            addresses_in(connected.recv(4096)),
            addresses_in(ask_over_tcp(stream, question(NAME))),
        ]

    with world.attached("--allow", NAME) as guard, guard.stages(program) as go_on:
        assert go_on() == ["10.9.0.10"]
        before = dns_process(guard)
        starter = watcher_of(before)
        os.kill(starter, signal.SIGSTOP)
        try:
            os.kill(before, signal.SIGKILL)
            assert wait_until(lambda: guard.status()["keeper_pid"] is None)
            assert "DNS proxy process died: name look-ups fail" in guard.status()["problem"]
            go_on()
        finally:
            os.kill(starter, signal.SIGCONT)
        assert go_on() == [["10.9.0.10"], ["10.9.0.10"]]
        assert guard.count("no_proxy") == 0


def test_that_of_run_too(world: World) -> None:
    command = (str(ZFW), "guard", "run", "--dns-upstream", UPSTREAM, "--allow", NAME, "--")
    with world.shell(*command) as shell:
        assert shell.ask(f"getent hosts {NAME} > /dev/null") == (0, "")
        (identifier,) = STORE.identifiers()
        guard = Guard(identifier)
        before = guard.status().supervisor_pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        assert wait_until(lambda: guard.status().supervisor_pid not in (before, None))
        assert shell.ask(f"getent hosts {NAME} > /dev/null") == (0, "")
        assert shell.ask("getent hosts other.example")[0] == 2
        shell.end()
        assert shell.process.wait(60) == 0
        assert shell.process.stderr is not None
        # The new process prints denials too, and there is nothing else to say.
        lines = shell.process.stderr.read().splitlines()
        assert lines
        assert all("other.example" in line for line in lines)
    assert world.is_clean(), world.left()


def test_the_end_of_stderr_waits_for_no_process_of_a_guard(world: World) -> None:
    """Both let go of it when the command has ended, though the guard stays."""
    run = f"{ZFW} guard run --dns-upstream {UPSTREAM} -- sh -c 'sleep 1000 > /dev/null 2>&1 &'"
    done = world.run("sh", "-c", f"{run} 2>&1 | cat")
    assert "stays for 1 process" in done.stdout
    (identifier,) = STORE.identifiers()
    assert world.zfw("detach", identifier).returncode == 0
    for pid in map(int, (world.cgroup / "cgroup.procs").read_text().split()):
        if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
            os.kill(pid, signal.SIGKILL)
    assert world.is_clean(), world.left()


def _asked() -> list[str]:
    with udp_socket(4) as s:
        s.settimeout(30)
        s.sendto(question(NAME), (NAME_SERVER[4], 53))
        return addresses_in(s.recv(4096))


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}/fd").exists()


def kill_until_the_watcher_waits(guard: Attached) -> int:
    """The pauses are 0, 1, 2 and 4 s; the watcher."""
    kill(guard)
    kill(guard)
    starter = watcher_of(dns_process(guard))
    os.kill(dns_process(guard), signal.SIGKILL)
    assert wait_until(lambda: guard.status()["keeper_pid"] is None)
    return starter


def test_one_that_ends_again_and_again_is_started_ever_more_rarely(world: World) -> None:
    with world.attached("--allow", NAME) as guard:
        kill_until_the_watcher_waits(guard)
        ended = time.monotonic()
        status = guard.status()
        assert status["restarts"] == 2
        assert status["problem"] == (
            "DNS proxy process died: name look-ups fail, address rules still apply"
            " (started again 2 times, the last time after signal 9)"
        )
        assert " not kept " in world.zfw("list").stdout
        assert wait_until(lambda: guard.status()["keeper_pid"] is not None)
        assert time.monotonic() - ended > 1
        assert guard.call(_asked) == ["10.9.0.10"]
        # And the next pause is longer.
        os.kill(dns_process(guard), signal.SIGKILL)
        ended = time.monotonic()
        assert wait_until(lambda: guard.status()["restarts"] == 4)
        assert time.monotonic() - ended > 3.5


def test_a_guard_is_detached_while_its_watcher_waits(world: World) -> None:
    with world.attached("--allow", NAME) as guard:
        starter = kill_until_the_watcher_waits(guard)
    assert wait_until(lambda: has_ended(starter))
    assert not STORE.identifiers()


def test_an_upgrade_replaces_what_waits(world: World) -> None:
    """The watcher that waited finds that the guard has another process, and ends."""
    with world.attached("--allow", NAME) as guard:
        starter = kill_until_the_watcher_waits(guard)
        assert world.zfw("upgrade", guard.id).stdout == f"guard {guard.id}: upgraded\n"
        made = dns_process(guard)
        assert wait_until(lambda: has_ended(starter))
        assert dns_process(guard) == made
        assert guard.call(_asked) == ["10.9.0.10"]
        # The new one has a watcher too.
        kill(guard)
        assert guard.call(_asked) == ["10.9.0.10"]


def test_without_its_watcher_it_goes_on(world: World) -> None:
    with world.attached("--allow", NAME) as guard:
        before = dns_process(guard)
        os.kill(watcher_of(before), signal.SIGKILL)
        assert guard.call(_asked) == ["10.9.0.10"]
        assert dns_process(guard) == before
    assert wait_until(lambda: has_ended(before))


def test_with_its_watcher_it_ends_for_good(world: World) -> None:
    with world.attached("--allow", NAME) as guard:
        end_for_good(dns_process(guard))
        assert wait_until(lambda: guard.status()["keeper_pid"] is None)
        time.sleep(1.5)
        assert guard.status()["keeper_pid"] is None
        assert world.zfw("upgrade", guard.id).stdout == f"guard {guard.id}: upgraded\n"
        assert guard.call(_asked) == ["10.9.0.10"]


def test_the_log_goes_on(world: World) -> None:
    log = world.folder / "guard.json"
    with world.attached("--allow", NAME, "--log", str(log)) as guard:
        assert guard.call(_asked) == ["10.9.0.10"]
        assert wait_until(lambda: log.read_bytes().count(b'"hook": "dns"') == 1)
        kill(guard)
        assert guard.call(_asked) == ["10.9.0.10"]
        assert wait_until(lambda: log.read_bytes().count(b'"hook": "dns"') == 2)


def test_it_holds_no_namespace_that_the_dns_process_has_left(world: World) -> None:
    """A socket keeps its namespace alive."""
    with world.attached("--allow", NAME) as guard:
        starter = watcher_of(dns_process(guard))

        def sockets() -> int:
            links = [path.readlink() for path in Path(f"/proc/{starter}/fd").iterdir()]
            return sum(str(link).startswith("socket:") for link in links)

        assert wait_until(lambda: sockets() == 11)  # and one to the DNS process
        enter = f"echo 0 > {guard.cgroup}/cgroup.procs; exec unshare --net"
        code = (
            "ip link set lo up; for n in 1 2 3; do dig +tries=1 +time=1 @10.9.0.1 x.example; done"
        )
        assert world.run("sh", "-c", f"{enter} sh -c '{code}; true'").returncode == 0
        assert wait_until(lambda: sockets() == 21)
        kill(guard)
        assert wait_until(lambda: sockets() in (11, 21))
        assert wait_until(lambda: sockets() == 11)


def test_what_was_admitted_before_makes_room(world: World) -> None:
    with world.attached("--allow", NAME) as guard:
        assert guard.call(_asked) == ["10.9.0.10"]
        maps = Maps(STORE.directory(guard.id))
        maps.track_resolved()
        (element,) = [*maps.map("learnt").items()]
        maps.map("learnt").update(element[0], (1).to_bytes(8, "little"))
        maps.track_resolved()
        assert maps.remove_expired(kept=0) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_one_that_cannot_start_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zfw_py.errors import ZfwError

    failures = world.folder / "failures"

    def fail_twice(*arguments: object) -> object:
        tries = failures.read_text() if failures.exists() else ""
        failures.write_text(f"{tries}+")
        if len(tries) < 2:
            raise ZfwError("no room")
        return original(*arguments)

    original = watcher._begin_again
    monkeypatch.setattr(watcher, "_begin_again", fail_twice)
    policy = Policy.parse(allow=[NAME], dns_upstreams=[UPSTREAM])
    with world.inside.entered():
        guard = Guard.attach(GuardTarget.of_cgroup(str(world.new_cgroup())), policy)
    try:
        before = guard.status().supervisor_pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        assert wait_until(lambda: guard.status().supervisor_pid not in (before, None))
        status = guard.status()
        assert failures.read_text() == "+++"
        assert (status.manifest.restarts, status.manifest.ended) == (3, "no room")
    finally:
        guard.detach()


def test_a_caller_that_ignores_its_children(world: World) -> None:
    """A process whose SIGCHLD is ignored gets no status of its children."""
    cgroup = world.new_cgroup()
    attach = f"{ZFW} guard attach --cgroup {cgroup} --dns-upstream {UPSTREAM} --allow {NAME}"
    done = world.run("sh", "-c", f"trap '' CHLD; exec {attach}")
    assert done.returncode == 0, done.stderr
    guard = Guard(done.stdout.strip())
    before = guard.status().supervisor_pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert wait_until(lambda: guard.status().supervisor_pid not in (before, None))
    guard.detach()
