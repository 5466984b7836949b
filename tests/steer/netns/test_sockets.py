# SPDX-License-Identifier: GPL-2.0-only
"""Listeners found and taken: by address, of a process, of a unit, and passed by systemd."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM
from typing import TYPE_CHECKING

import pytest

from tests.support.children import child, in_child
from tests.support.netns import Namespace
from zfw_py.errors import Conflict, UsageError, ZfwError
from zfw_py.kernel import process_sockets
from zfw_py.kernel.cgroup import systemd_mounts
from zfw_py.kernel.process import start_time
from zfw_py.kernel.process_sockets import cookie_of
from zfw_py.steer import units
from zfw_py.steer.activation import passed_sockets
from zfw_py.steer.model import AddressTarget, ProcessTarget, UnitTarget
from zfw_py.steer.sockets import SocketSnapshot, chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel


@pytest.fixture
def stack(namespace: Namespace) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def listener(
    stack: ExitStack, family: int, address: str, port: int = 0, *, v6only: bool | None = None
) -> socket.socket:
    made = stack.enter_context(socket.socket(family, SOCK_STREAM))
    if v6only is not None:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, port))
    made.listen()
    return made


def udp(stack: ExitStack, family: int, address: str, port: int = 0) -> socket.socket:
    made = stack.enter_context(socket.socket(family, SOCK_DGRAM))
    made.bind((address, port))
    return made


def end_of(made: socket.socket) -> str:
    address, port = made.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def cookies(found: list) -> set[int]:
    return {each.cookie for each in found}


def test_by_address_whatever_the_family_of_the_socket(stack: ExitStack) -> None:
    plain = listener(stack, AF_INET, "127.0.0.1")
    mapped = listener(stack, AF_INET6, "::ffff:127.0.0.1", v6only=False)
    dual = listener(stack, AF_INET6, "::", v6only=False)
    only = listener(stack, AF_INET6, "::1", v6only=True)
    snapshot = SocketSnapshot()
    for made, families in ((plain, {4}), (mapped, {4, 6}), (dual, {4, 6}), (only, {6})):
        (found,) = snapshot.of_target("tcp", AddressTarget.parse(end_of(made)))
        assert found.cookie == cookie_of(made)
        assert found.families == families
    assert snapshot.of_target("udp", AddressTarget.parse(end_of(plain))) == []
    other = AddressTarget.parse(f"0.0.0.0:{plain.getsockname()[1]}")
    assert snapshot.of_target("tcp", other) == []


def test_connected_sockets_are_no_targets(stack: ExitStack) -> None:
    server = listener(stack, AF_INET, "127.0.0.1")
    client = stack.enter_context(socket.create_connection(server.getsockname()))
    stack.enter_context(server.accept()[0])
    bound = udp(stack, AF_INET, "127.0.0.1")
    connected = udp(stack, AF_INET, "127.0.0.1")
    connected.connect(bound.getsockname())
    snapshot = SocketSnapshot()
    assert snapshot.of_target("tcp", AddressTarget.parse(end_of(client))) == []
    assert snapshot.of_target("udp", AddressTarget.parse(end_of(connected))) == []
    assert len(snapshot.of_target("udp", AddressTarget.parse(end_of(bound)))) == 1
    assert cookies(snapshot.of_target("tcp", AddressTarget.parse(end_of(server)))) == {
        cookie_of(server)
    }


def test_of_a_process(stack: ExitStack) -> None:
    def two() -> list:
        kept = [listener(ExitStack(), AF_INET, "127.0.0.1"), udp(ExitStack(), AF_INET6, "::1")]
        _kept.extend(kept)
        return [end_of(each) for each in kept]

    with child(two) as made:
        listener(stack, AF_INET, "127.0.0.1")  # another's
        target = ProcessTarget(made.pid, start_time(made.pid) or 0)
        snapshot = SocketSnapshot()
        assert [str(each) for each in snapshot.of_target("tcp", target)] == [made.told[0]]
        assert [str(each) for each in snapshot.of_target("udp", target)] == [made.told[1]]
        assert snapshot.of_target("udp", target, port=1) == []
        # Another process that has its id is another.
        assert snapshot.of_target("tcp", target._replace(start_time=1)) == []
        (found,) = snapshot.of_target("tcp", target)
        assert snapshot.holders_of(found) == [made.pid]
        taken = snapshot.duplicate(found)
        assert taken is not None
        with taken:
            assert end_of(taken) == made.told[0]
            assert cookie_of(taken) == found.cookie
    assert snapshot.duplicate(found) is None
    assert SocketSnapshot().of_target("tcp", target) == []


def test_a_process_with_several_is_ambiguous_unless_they_are_a_group(stack: ExitStack) -> None:
    me = ProcessTarget(os.getpid(), start_time(os.getpid()) or 0)
    first = listener(stack, AF_INET, "127.0.0.1")
    second = listener(stack, AF_INET, "127.0.0.1", first.getsockname()[1])
    found = SocketSnapshot().of_target("tcp", me)
    assert cookies(chosen(found, me, 4)) == {
        cookie_of(first),
        cookie_of(second),
    }
    assert chosen(found, me, 6) == []

    dual = listener(stack, AF_INET6, "::", v6only=False)
    found = SocketSnapshot().of_target("tcp", me)
    assert len(chosen(found, me, 4)) == 2  # those of the family itself
    assert cookies(chosen(found, me, 6)) == {cookie_of(dual)}

    third = listener(stack, AF_INET, "127.0.0.2")
    found = SocketSnapshot().of_target("tcp", me)
    with pytest.raises(Conflict) as refused:
        chosen(found, me, 4)
    for each in (first, third):
        assert end_of(each) in refused.value.message
    at = SocketSnapshot().of_target("tcp", AddressTarget.parse(end_of(third)))
    assert cookies(chosen(at, AddressTarget.parse(end_of(third)), 4)) == {cookie_of(third)}


def test_a_socket_that_is_closed_before_it_is_taken_is_none(stack: ExitStack) -> None:
    with child(lambda: _keep(listener(ExitStack(), AF_INET, "127.0.0.1"))) as made:
        snapshot = SocketSnapshot()
        (found,) = snapshot.of_target("tcp", AddressTarget.parse(made.told))
        assert process_sockets.take(made.pid, found.cookie, found.inode + 1) is None
        assert process_sockets.take(made.pid, found.cookie + 1, found.inode) is None
    assert process_sockets.take(made.pid, found.cookie, found.inode) is None


_kept: list[socket.socket] = []


def _keep(made: socket.socket) -> str:
    _kept.append(made)
    return end_of(made)


# Units


@contextmanager
def unit_cgroup(above: str, *names: str) -> Iterator[str]:
    """A cgroup as systemd would have it, in the first of its hierarchies."""
    made = []
    path = above
    try:
        for name in names:
            path = f"{path}/{name}"
            Path(path).mkdir()
            made.append(path)
        yield path
    finally:
        for each in reversed(made):
            Path(each).rmdir()


def test_of_a_unit(stack: ExitStack) -> None:
    for hierarchy in systemd_mounts():
        name = f"zfwtest{secrets.token_hex(4)}"
        slices = (f"{name}.slice", f"{name}-in.slice", f"{name}.service")
        target = UnitTarget(f"{name}.service")
        assert SocketSnapshot().of_target("tcp", target) == []
        with unit_cgroup(hierarchy, *slices) as path:
            assert units.cgroups_of(target.unit) == [path]
            assert units.processes_of(target.unit) == set()
            main = f"{path}/main"

            def serve(inner: str = main) -> str:
                # In a cgroup within the unit's, as some daemons do.
                Path(inner).mkdir()
                Path(f"{inner}/cgroup.procs").write_text(str(os.getpid()))
                return _keep(listener(ExitStack(), AF_INET, "127.0.0.1"))

            with child(serve) as made:
                assert units.processes_of(target.unit) == {made.pid}
                assert [str(e) for e in SocketSnapshot().of_target("tcp", target)] == [made.told]
            Path(main).rmdir()


def test_a_cgroup_of_that_name_in_a_service_is_no_unit(stack: ExitStack) -> None:
    """A user with a manager of his own may make one."""
    name = f"zfwtest{secrets.token_hex(4)}"
    top = (f"{name}.slice", "user@1000.service", f"{name}.service")
    with unit_cgroup(systemd_mounts()[0], *top):
        assert units.cgroups_of(f"{name}.service") == []


# From systemd


def passed(*sockets: socket.socket) -> object:
    """What a process finds that systemd has started with these."""

    def look() -> object:
        for number, each in enumerate(sockets):
            os.dup2(each.fileno(), 3 + number)
        os.environ.update(LISTEN_FDS=str(len(sockets)), LISTEN_PID=str(os.getpid()))
        found = passed_sockets()
        return [(each.protocol, each.address.hex(), each.port) for each in found]

    # Descriptors from 3 on are the test's own: those that are passed have to be beyond.
    return in_child(look)


def test_passed_sockets(stack: ExitStack) -> None:
    high = [
        stack.enter_context(socket.socket(fileno=os.dup(each.fileno())))
        for each in (listener(stack, AF_INET, "127.0.0.1"), udp(stack, AF_INET6, "::1"))
        for _ in range(8)
    ]
    tcp, datagrams = high[7], high[15]
    assert passed(tcp, datagrams) == [
        [IPPROTO_TCP, "00000000000000000000ffff7f000001", tcp.getsockname()[1]],
        [IPPROTO_UDP, "00000000000000000000000000000001", datagrams.getsockname()[1]],
    ]


def test_unix_sockets_are_left_out(stack: ExitStack) -> None:
    left, right = socket.socketpair()
    with left, right:
        assert passed(left) == []


@pytest.mark.parametrize("count", ["", "0", "x", "99999", None])
def test_nothing_passed(count: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    if count is None:
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", "1")
    else:
        monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(UsageError, match="--register: no socket was passed"):
        passed_sockets()


def test_no_hierarchy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "systemd_mounts", list)
    with pytest.raises(ZfwError, match="no cgroup hierarchy"):
        units.cgroups_of("a.service")
