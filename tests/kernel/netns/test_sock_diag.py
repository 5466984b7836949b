# SPDX-License-Identifier: GPL-2.0-only
"""Sockets as sock_diag lists them: compared with what each says of itself, and with ss(8)."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from socket import (
    AF_INET,
    AF_INET6,
    AF_PACKET,
    AF_UNIX,
    IPPROTO_ICMP,
    IPPROTO_RAW,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
)
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroups import enter, private_cgroup
from tests.support.children import child, drop_privileges, in_child
from tests.support.netns import CLONE_NEWNET, Namespace
from zfw_py.errors import NotFound
from zfw_py.kernel import cgroup, sock_diag
from zfw_py.kernel.sock_diag import IPPROTO_MPTCP, Socket, sockets, sockets_near, sockets_of

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("namespace")]

SO_COOKIE, SO_BINDTOIFINDEX = 57, 62
LOOPBACK = {AF_INET: "127.0.0.1", AF_INET6: "::1"}
ANY = {AF_INET: "0.0.0.0", AF_INET6: "::"}
families = pytest.mark.parametrize("family", [AF_INET, AF_INET6])


def inode(made: socket.socket) -> int:
    return os.fstat(made.fileno()).st_ino


def cookie(made: socket.socket) -> int:
    return int.from_bytes(made.getsockopt(SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def of(made: socket.socket) -> Socket:
    """What is listed of a socket of this process."""
    (found,) = (each for each in sockets_of(os.getpid()) if each.inode == inode(made))
    return found


def own_cgroup_id() -> int:
    return cgroup.identifier(cgroup.of_process(os.getpid()))


@families
def test_tcp_sockets_are_listed_with_all_that_they_say_of_themselves(
    stack: ExitStack, family: int
) -> None:
    here = LOOPBACK[family]
    server = stack.enter_context(socket.create_server((here, 0), family=family))
    client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
    accepted = stack.enter_context(server.accept()[0])
    listed = {each.inode: each for each in sockets((IPPROTO_TCP,))}
    ends = {
        server: ("LISTEN", server.getsockname(), (ANY[family], 0)),
        client: ("ESTABLISHED", client.getsockname(), client.getpeername()),
        accepted: ("ESTABLISHED", client.getpeername(), client.getsockname()),
    }
    for made, (state, local, remote) in ends.items():
        found = listed[inode(made)]
        assert found == Socket(
            inode=inode(made),
            family=family,
            protocol=IPPROTO_TCP,
            state=state,
            local=local[:2],
            remote=remote[:2],
            ifindex=0,
            is_v6only=found.is_v6only,
            cookie=cookie(made),
            cgroup_id=own_cgroup_id(),
        )
        assert of(made) == found
    # create_server() sets it for an IPv6 listener.
    assert listed[inode(server)].is_v6only is (True if family == AF_INET6 else None)


@families
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [(SOCK_DGRAM, IPPROTO_UDP), (SOCK_DGRAM, IPPROTO_UDPLITE), (SOCK_STREAM, IPPROTO_MPTCP)],
)
def test_bound_and_connected_sockets_are_listed(
    stack: ExitStack, family: int, kind: int, protocol: int
) -> None:
    bound = stack.enter_context(socket.socket(family, kind, protocol))
    bound.setsockopt(SOL_SOCKET, SO_BINDTOIFINDEX, 1)
    bound.bind((LOOPBACK[family], 0))
    if kind == SOCK_STREAM:
        bound.listen()
    connected = stack.enter_context(socket.socket(family, kind, protocol))
    connected.connect(bound.getsockname())
    listed = {each.inode: each for each in sockets((protocol,))}
    for made, state in (
        (bound, "LISTEN" if kind == SOCK_STREAM else "CLOSE"),
        (connected, "ESTABLISHED"),
    ):
        found = listed[inode(made)]
        assert (found.family, found.protocol, found.state) == (family, protocol, state)
        assert found.local == made.getsockname()[:2]
        assert found.cookie == cookie(made)
        assert found.cgroup_id == own_cgroup_id()
        assert of(made) == found
    assert listed[inode(bound)].ifindex == 1
    assert listed[inode(connected)].remote == bound.getsockname()[:2]


def test_an_ipv4_mapped_connection_is_an_ipv6_socket_s(stack: ExitStack) -> None:
    server = stack.enter_context(
        socket.create_server(("::", 0), family=AF_INET6, dualstack_ipv6=True)
    )
    port = server.getsockname()[1]
    client = stack.enter_context(socket.socket(AF_INET6))
    client.connect(("::ffff:127.0.0.1", port))
    assert of(server).is_v6only is False
    found = of(client)
    assert (found.family, found.remote) == (AF_INET6, ("::ffff:127.0.0.1", port))
    assert found.kind == "TCP (IPv6)"


def test_of_what_is_not_listed_the_kind_is_known(stack: ExitStack) -> None:
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    unlisted = [
        (socket.socket(AF_INET, SOCK_STREAM), IPPROTO_TCP, "TCP"),
        (socket.socket(AF_INET6, SOCK_DGRAM), IPPROTO_UDP, "UDP (IPv6)"),
        (socket.socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), IPPROTO_ICMP, "ping"),
        (socket.socket(AF_PACKET, SOCK_RAW), 0, "packet"),
        (socket.socket(sock_diag.AF_XDP, SOCK_RAW), 0, "XDP"),
    ]
    for made, protocol, kind in unlisted:
        stack.enter_context(made)
        assert of(made) == Socket(inode(made), made.family, protocol)
        assert of(made).kind == kind
    raw = stack.enter_context(socket.socket(AF_INET6, SOCK_RAW, 89))
    found = of(raw)
    assert (found.family, found.protocol, found.kind) == (AF_INET6, IPPROTO_RAW, "raw (IPv6)")
    # There is a module for these, which this kernel may lack.
    known = own_cgroup_id() if sock_diag.is_listed(IPPROTO_RAW) else None
    assert found.cgroup_id == known


def test_what_is_no_internet_socket_is_not_told_of(stack: ExitStack, tmp_path: Path) -> None:
    before = sockets_of(os.getpid())
    for pair in (socket.socketpair(), socket.socketpair(AF_UNIX, SOCK_DGRAM)):
        for made in pair:
            stack.enter_context(made)
    stack.enter_context(socket.socket(socket.AF_NETLINK, SOCK_RAW, 0))
    # A file's name may look like one.
    (tmp_path / "socket:[1]").write_text("")
    stack.enter_context((tmp_path / "socket:[1]").open())
    assert sockets_of(os.getpid()) == before


def test_a_protocol_that_is_not_listed_is_told_from_one_without_sockets(
    namespace: Namespace,
) -> None:
    assert sockets() == []
    for protocol in (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_MPTCP):
        assert sock_diag.is_listed(protocol)
    # No protocol has these numbers.
    for protocol in (99, 261):
        assert not sock_diag.is_listed(protocol)
        assert sockets((protocol,)) == []


def test_the_same_sockets_as_ss_lists(stack: ExitStack, namespace: Namespace) -> None:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
    for _ in range(150):
        stack.enter_context(socket.create_connection(server.getsockname()))
        made = stack.enter_context(socket.socket(AF_INET6, SOCK_DGRAM))
        made.bind(("::1", 0))
    assert server.accept()[0].close() is None  # leaves one that waits for the other end
    shown = namespace.run("ss", "-Hanetu").stdout.splitlines()
    expected = {
        (
            line.split()[0],
            int(found[1]) if (found := re.search(r"\bino:(\d+)", line)) else 0,
            int(sk[1], 16) if (sk := re.search(r"\bsk:([0-9a-f]+)", line)) else None,
        )
        for line in shown
    }
    names = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
    listed = [each for each in sockets() if each.protocol in names]
    assert {(names[each.protocol], each.inode, each.cookie) for each in listed} == expected
    assert len(listed) == 1 + 300 + 150


def test_thousands_of_sockets_are_listed(stack: ExitStack) -> None:
    made = [stack.enter_context(socket.socket(AF_INET, SOCK_DGRAM)) for _ in range(5000)]
    for each in made:
        each.bind(("127.0.0.1", 0))
    assert {each.inode for each in sockets((IPPROTO_UDP,))} == {inode(each) for each in made}


# Of processes


def listening() -> int:
    """Leaves a listener open; its inode."""
    server = socket.create_server(("127.0.0.1", 0))
    return os.fstat(server.detach()).st_ino


def test_sockets_are_those_of_the_process_s_network_namespace(namespace: Namespace) -> None:
    other = Namespace()

    def elsewhere() -> int:
        assert ctypes.CDLL(None).setns(other.fd, CLONE_NEWNET) == 0
        return listening()

    try:
        with child(elsewhere) as process, child(listening) as near:
            assert [each.inode for each in sockets_near(process.pid)] == [process.told]
            assert [each.inode for each in sockets_of(process.pid)] == [process.told]
            assert [each.inode for each in sockets()] == [near.told]
    finally:
        other.close()


def test_of_a_socket_from_another_namespace_the_kind_is_known(namespace: Namespace) -> None:
    other = Namespace()

    def carried_in() -> int:
        with other.entered():
            return listening()

    try:
        with child(carried_in) as process:
            assert sockets_of(process.pid) == [Socket(process.told, AF_INET, IPPROTO_TCP)]
    finally:
        other.close()


def test_a_process_that_is_gone_is_not_found(namespace: Namespace) -> None:
    with child(lambda: None) as process:
        assert sockets_of(process.pid) == []
    for ask in (sockets_of, sockets_near):
        with pytest.raises(NotFound, match=f"^no such process: {process.pid}$"):
            ask(process.pid)


def test_other_people_s_processes_are_root_s_to_see(namespace: Namespace) -> None:
    def as_nobody() -> object:
        drop_privileges()
        return sockets_of(os.getppid())

    told = in_child(as_nobody)
    assert told == f"PermissionDenied: see the sockets of process {os.getpid()}: needs root"


# Whose cgroup a socket has


def test_a_socket_keeps_the_cgroup_that_its_maker_was_in(namespace: Namespace) -> None:
    with private_cgroup() as first, private_cgroup() as second:

        def moved() -> list[int]:
            enter(first)
            before = listening()
            enter(second)
            return [before, listening()]

        with child(moved) as process:
            assert cgroup.of_process(process.pid) == str(second)
            assert [each.inode for each in sockets_of(process.pid)] == process.told
            assert [each.cgroup_id for each in sockets_of(process.pid)] == [
                cgroup.identifier(str(first)),
                cgroup.identifier(str(second)),
            ]


def test_what_a_listener_accepts_is_of_the_listener_s_cgroup(namespace: Namespace) -> None:
    with private_cgroup() as first, private_cgroup() as second:

        def accepting() -> list[int]:
            enter(first)
            server = socket.create_server(("127.0.0.1", 0))
            enter(second)
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            inodes = [inode(made) for made in (server, accepted, client)]
            for made in (server, accepted, client):
                made.detach()
            return inodes

        with child(accepting) as process:
            found = {each.inode: each.cgroup_id for each in sockets_of(process.pid)}
            server, accepted, client = process.told
            assert found[server] == found[accepted] == cgroup.identifier(str(first))
            assert found[client] == cgroup.identifier(str(second))
