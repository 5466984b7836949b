# SPDX-License-Identifier: GPL-2.0-only
"""Steering when something goes wrong: nothing half done, and what was there goes on."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.steer.support.gateway import (
    connected,
    datagrams,
    is_refused,
    lands_on,
    listen,
    managed,
    mapping,
)
from tests.support.children import child, drop_privileges, in_child
from tests.support.command import ZFW
from tests.support.killed import killed_at
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py.errors import (
    KernelError,
    LayoutMismatch,
    PermissionDenied,
    ZfwError,
)
from zfw_py.kernel import bpf_links, bpf_maps, bpffs, process_sockets
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.lock import holder_of
from zfw_py.lifecycle import programs as lifecycle
from zfw_py.lifecycle.store import ROOT
from zfw_py.steer import programs
from zfw_py.steer.maps import STORE, Maps
from zfw_py.steer.model import AddressTarget
from zfw_py.steer.service import Steering
from zfw_py.systemd.steer import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel

IPV4 = Network.gateway_ipv4


def keys(steering: Steering) -> list[str]:
    return [str(each.mapping.key) for each in steering.mappings()]


def listed(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def is_tidy(steering: Steering) -> bool:
    """Whether there is nothing but what a namespace that is steered has."""
    tables = Maps(STORE.directory(steering.cookie))
    state = tables.state()
    addressed = [place for place in state.destinations if isinstance(place.target, AddressTarget)]
    names = set(listed(tables.directory))
    return (
        STORE.unfinished() == []
        and len(tables.addressed()) == len(addressed)
        and tables.counters().keys() <= {each.id for each in state.mappings}
        and not any(name.startswith("new") for name in names)
    )


# Killed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_writer_that_is_killed_leaves_what_was_or_what_was_to_be(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    one, two = (mapping("tcp", "any", port, "127.0.0.1:2222") for port in ("5555", "6666"))
    other = mapping("tcp", "any", "1000-2000", "127.0.0.1:3333")
    first = "tcp 0.0.0.0/0 port 5555"
    steering.add([one])
    seen = set()
    for number in range(200):
        told = killed_at(
            number, lambda: Steering().apply([two, other]), lambda: None, is_maker=True
        )
        after = keys(steering)
        seen.add(len(after))
        if after == [first]:
            assert lands_on(network.client, IPV4, 5555, daemon)
            assert is_refused(network.client, IPV4, 6666)
        else:
            assert after == ["tcp 0.0.0.0/0 port 6666", "tcp 0.0.0.0/0 port 1000-2000"], told
            assert lands_on(network.client, IPV4, 6666, daemon)
            assert is_refused(network.client, IPV4, 5555)
        steering.apply([one])
        assert is_tidy(steering), told
        assert lands_on(network.client, IPV4, 5555, daemon)
        if told is None:
            break
    assert seen == {1, 2}
    assert told is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_that_is_killed_while_it_attaches_or_detaches(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    one = mapping("tcp", "any", "5555", "127.0.0.1:2222")

    def both() -> None:
        made = Steering()
        made.add([one])
        made.detach()

    # Every second: there are more than a hundred, and each takes half a second.
    for number in range(0, 400, 2):
        told = killed_at(number, both, lambda: None, is_maker=True)
        if keys(steering) == [str(one.key)]:
            assert lands_on(network.client, IPV4, 5555, daemon)
        else:
            assert is_refused(network.client, IPV4, 5555)
        steering.apply([one])
        assert is_tidy(steering), told
        assert lands_on(network.client, IPV4, 5555, daemon)
        steering.detach()
        assert listed(STORE.root) == []
        assert is_refused(network.client, IPV4, 5555)
        if told is None:
            break
    assert told is None


def test_a_manager_that_is_killed_leaves_steering_and_another_takes_over(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    own = mapping("tcp", "any", "5555", "127.0.0.1:2222", label="run")
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53")])
    with managed([own]) as first:
        assert holder_of(STORE.directory(steering.cookie)) == first.pid
        with managed([mapping("tcp", "any", "8", "127.0.0.1:8")], is_first=False) as second:
            second.wait_for("port 8")
            os.kill(first.pid, signal.SIGKILL)
            second.wait_for("managing")
            assert holder_of(STORE.directory(steering.cookie)) == second.pid
            stack.enter_context(datagrams("127.0.0.5", 53))
            second.wait_for(": adopted ")
            assert lands_on(network.client, IPV4, 5555, daemon)
            found = {each.mapping.label: each for each in steering.mappings()}
            assert found["run"].run_pid == first.pid
            assert found["run"].problem.startswith("its zfw steer run was killed")
    # It went with the next change, which was the end of the other.
    assert [each.mapping.label for each in steering.mappings()] == [""]


def test_what_a_run_holds_goes_with_it_and_the_rest_stays(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "6666", "127.0.0.1:2222")])
    with managed([mapping("tcp", "any", "5555", "127.0.0.1:2222", label="run")]):
        assert lands_on(network.client, IPV4, 5555, daemon)
        # What is applied does not touch it.
        steering.apply([mapping("tcp", "any", "7777", "127.0.0.1:2222")])
        assert lands_on(network.client, IPV4, 5555, daemon)
    assert is_refused(network.client, IPV4, 5555)
    assert lands_on(network.client, IPV4, 7777, daemon)


def test_the_end_of_all_steering_ends_a_manager(steering: Steering) -> None:
    with managed() as manager:
        steering.detach()
        manager.wait_for("steering was removed by another process; exiting")
        os.waitid(os.P_PID, manager.pid, os.WEXITED | os.WNOWAIT)


def test_many_writers_at_once(steering: Steering) -> None:
    def write(number: int) -> None:
        for port in range(5):
            Steering().add([mapping("tcp", "any", str(100 * number + port + 1), "127.0.0.1:1")])

    pids = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                write(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
    assert len(steering.mappings()) == 40
    assert is_tidy(steering)


# Between discovery and adoption


def test_a_daemon_that_dies_before_it_is_taken(
    network: Network, steering: Steering, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[socket.socket] = []
    original = process_sockets.take
    with child(lambda: kept.append(listen("127.0.0.1", 2222))) as daemon:

        def take(pid: int, *arguments: object, **options: object) -> socket.socket | None:
            os.kill(daemon.pid, signal.SIGKILL)
            assert wait_until(lambda: process_sockets.inodes_of(daemon.pid) == set())
            return original(pid, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(process_sockets, "take", take)
        (added,) = steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert (added.state, added.problem) == ("pending", "")
    assert is_refused(network.client, IPV4, 5555)
    with listen("127.0.0.1", 2222) as again:
        assert lands_on(network.client, IPV4, 5555, again)


def test_a_socket_that_is_closed_as_it_is_put_into_the_map(
    network: Network, steering: Steering, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.enter_context(listen("127.0.0.1", 2222))
    original = Maps.store_socket

    def put(tables: Maps, target: int, slot: int, held: socket.socket) -> None:
        held.shutdown(socket.SHUT_RDWR)  # no listener any more
        original(tables, target, slot, held)

    monkeypatch.setattr(Maps, "store_socket", put)
    (added,) = steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert added.state == "pending"
    assert is_refused(network.client, IPV4, 5555)


def test_a_socket_that_cannot_be_had_does_not_end_the_manager(
    network: Network, steering: Steering, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53")])
    original = process_sockets.take
    refused: list[int] = []

    def take(pid: int, *arguments: object, **options: object) -> socket.socket | None:
        if not refused:
            refused.append(pid)
            raise PermissionDenied("take a socket: not permitted")
        return original(pid, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(process_sockets, "take", take)
    with managed() as manager:
        with datagrams("127.0.0.5", 53):
            manager.wait_for("take a socket: not permitted")
        with datagrams("127.0.0.5", 53):
            manager.wait_for(": adopted ")


# Programs of another build


class Other(NamedTuple):
    """What makes the programs look like those of another build."""

    begin: Callable[[], None]


@pytest.fixture
def other_build(monkeypatch: pytest.MonkeyPatch) -> Other:
    return Other(lambda: monkeypatch.setattr(lifecycle, "digest_of", lambda system: "another"))


def test_an_upgrade_keeps_all(
    network: Network, steering: Steering, stack: ExitStack, other_build: Other
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert lands_on(network.client, IPV4, 5555, daemon)
    before = steering.status()
    other_build.begin()
    steering.add([mapping("tcp", "any", "6666", "127.0.0.1:2222")])
    after = steering.status()
    assert after.program_id != before.program_id
    assert after.order == [after.program_id]
    assert after.programs == before.programs
    assert [each.counters.lookups for each in steering.mappings()] == [1, 0]
    with connected(network.client, IPV4, 5555):
        daemon.accept()[0].close()
    # And listeners are still followed.
    exact = stack.enter_context(listen(IPV4, 5555))
    assert lands_on(network.client, IPV4, 5555, exact)
    daemon.close()
    again = stack.enter_context(listen("127.0.0.1", 2222))
    assert lands_on(network.client, IPV4, 6666, again)
    # Once.
    steering.add([])
    assert steering.status().program_id == after.program_id


@pytest.mark.parametrize("number", [0, 3, 6])
def test_an_upgrade_that_fails_leaves_the_programs_of_before(
    network: Network,
    steering: Steering,
    stack: ExitStack,
    other_build: Other,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    links = sorted(
        name for name in listed(STORE.directory(steering.cookie)) if name.startswith("link_")
    )

    def programs() -> list[int]:
        found = []
        for name in links:
            fd = bpf_maps.open_pin(f"{STORE.directory(steering.cookie)}/{name}")
            found.append(int.from_bytes(bpf_maps.object_info(fd, 12)[8:12], "little"))
            os.close(fd)
        return found

    before = programs()
    other_build.begin()
    original = bpf_links.update_link
    count = [0]

    def update(link: int, program: int) -> None:
        count[0] += 1
        if count[0] == number + 1:
            raise OSError(errno.ENOMEM, "no memory")
        original(link, program)

    monkeypatch.setattr(bpf_links, "update_link", update)
    with pytest.raises(KernelError, match=r"exchange program .*ENOMEM"):
        steering.add([mapping("tcp", "any", "6666", "127.0.0.1:2222")])
    assert programs() == before
    assert lands_on(network.client, IPV4, 5555, daemon)
    assert is_refused(network.client, IPV4, 6666)
    steering.add([mapping("tcp", "any", "6666", "127.0.0.1:2222")])
    assert programs() != before
    assert lands_on(network.client, IPV4, 6666, daemon)


def test_maps_of_another_version_are_refused_and_can_be_detached(
    steering: Steering, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    monkeypatch.setattr(programs.layout, "ABI_VERSION", 99)
    for action in (steering.mappings, steering.status, lambda: steering.add([])):
        with pytest.raises(LayoutMismatch, match="another version of zfw") as refused:
            action()
        assert "zfw steer detach" in (refused.value.hint or "")
    steering.detach()
    assert listed(STORE.root) == []


# Others


def test_another_sk_lookup_program_runs_too_and_the_order_is_told(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    loaded = stack.enter_context(BpfObject(programs.SYSTEM.object))
    loaded.load()
    program = loaded.programs()["lookup"]  # of nobody: it lets all pass
    link = bpf_links.create_link(program, steering._fd, bpf_links.SK_LOOKUP)
    stack.callback(os.close, link)
    status = steering.status()
    assert status.order == [status.program_id, bpf_maps.object_id(program)]
    assert status.warnings == []
    assert lands_on(network.client, IPV4, 5555, daemon)
    steering.detach()
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    status = steering.status()
    assert status.order == [bpf_maps.object_id(program), status.program_id]
    assert status.warnings == [
        "connections for which another program chooses a socket are not steered"
    ]
    assert lands_on(network.client, IPV4, 5555, daemon)


def test_a_program_that_somebody_took_off_is_told(steering: Steering) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    link = bpf_maps.open_pin(f"{STORE.directory(steering.cookie)}/link_lookup")
    bpf_links.detach_link(link)
    os.close(link)
    assert steering.status().warnings == [
        "the program lookup was detached by another process: nothing is steered"
    ]
    assert steering.status().is_detached


def test_a_kernel_without_sk_lookup(steering: Steering, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such attach type")

    monkeypatch.setattr(bpf_links, "attached_to_netns", refuse)
    with pytest.raises(KernelError, match="the kernel has no sk_lookup programs") as refused:
        steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert "Linux 5.9" in (refused.value.hint or "")
    assert listed(STORE.root) == []


# Privileges


def as_user(group: int, action: Callable[[], object]) -> object:
    """What a process without privileges is told."""

    def drop_and_act() -> object:
        drop_privileges(group)
        try:
            return action()
        except ZfwError as error:
            return [type(error).__name__, error.exit_code]

    return in_child(drop_and_act)


def test_without_privileges_nothing_is_told_or_changed(steering: Steering) -> None:
    def add() -> object:
        return len(Steering().add([mapping("tcp", "any", "1", "127.0.0.1:1")]))

    assert as_user(65534, add) == ["PermissionDenied", 77]
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert as_user(65534, add) == ["PermissionDenied", 77]
    assert as_user(65534, lambda: len(Steering().mappings())) == ["PermissionDenied", 77]


def test_the_capabilities_of_the_unit_suffice(
    network: Network, steering: Steering, tmp_path: Path
) -> None:
    file = tmp_path / "steer.json"
    file.write_text('[{"protocol": "udp", "address": "any", "port": 53, "to": "127.0.0.5:53"}]')
    kept: list[socket.socket] = []

    def serve() -> None:
        kept.append(datagrams("127.0.0.5", 53))
        os.setgid(65534)
        os.setuid(65534)

    names = ",".join(["-all", *(f"+{each.removeprefix('CAP_').lower()}" for each in CAPABILITIES)])
    with child(serve):
        done = network.gateway.run(
            *("setpriv", f"--bounding-set={names}", f"--inh-caps={names}", "--no-new-privs", "--"),
            *(str(ZFW), "steer", "apply", str(file)),
        )
    assert (done.stdout, done.stderr) == (
        "1 mapping added, 0 changed, 0 removed, 0 kept\n",
        "",
    )


def test_the_group_may_read(
    network: Network, steering: Steering, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group(NamedTuple):
        gr_gid: int

    monkeypatch.setattr(programs.grp, "getgrnam", lambda _: Group(54321))
    Path(bpffs.MOUNT_POINT).chmod(0o711)
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert lands_on(network.client, IPV4, 5555, daemon)
    try:
        assert as_user(
            54321,
            lambda: [
                [str(each.mapping), each.state, each.counters.lookups]
                for each in Steering().mappings()
            ],
        ) == [["tcp 0.0.0.0/0 port 5555 to 127.0.0.1:2222", "steering", 1]]
        assert as_user(54321, lambda: Steering().status().mappings) == 1
        assert as_user(
            54321, lambda: len(Steering().add([mapping("tcp", "any", "1", "127.0.0.1:1")]))
        ) == ["PermissionDenied", 77]
        assert as_user(65534, lambda: len(Steering().mappings())) == ["PermissionDenied", 77]
    finally:
        Path(bpffs.MOUNT_POINT).chmod(0o700)
        Path(ROOT).chmod(0o700)
        Path(STORE.root).chmod(0o700)
