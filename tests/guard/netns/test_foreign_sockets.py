# SPDX-License-Identifier: GPL-2.0-only
"""Sockets that came into a cgroup from outside: with their process, or handed to it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from socket import AF_INET, AF_PACKET, SOCK_DGRAM, SOCK_RAW
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroups import enter, private_cgroup
from tests.support.children import child
from zfw_py.errors import NotFound
from zfw_py.guard.foreign_sockets import foreign_sockets
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel


@pytest.fixture
def own(namespace: Namespace) -> Iterator[str]:
    """A cgroup of the test's own."""
    with private_cgroup() as path:
        yield str(path)


def listening(port: int) -> None:
    """Leaves a listener open."""
    socket.create_server(("127.0.0.1", port)).detach()


def told(path: str) -> list[str]:
    pids = cgroup.processes(path, is_recursive=True)
    return [str(each) for each in foreign_sockets(pids, path)]


def test_sockets_made_in_the_cgroup_or_within_it_are_not_told_of(own: str) -> None:
    inner = cgroup.create(own, "inner")

    def inside() -> None:
        enter(own)
        listening(1001)
        enter(inner)
        listening(1002)

    with child(inside) as process:
        assert cgroup.processes(own, is_recursive=True) == [process.pid]
        assert told(own) == []
        # Seen from within, the first one came from outside.
        ((pid, command, found),) = foreign_sockets([process.pid], inner)
        assert (pid, found.local) == (process.pid, ("127.0.0.1", 1001))
        assert command == Path(f"/proc/{pid}/comm").read_text().strip()


def test_sockets_of_a_process_that_was_moved_in_late_are_told_of(own: str) -> None:
    def early() -> None:
        listening(1001)
        Path("/proc/self/comm").write_text("late\x1b[31m\n")
        enter(own)
        listening(1002)
        made = socket.socket(AF_INET, SOCK_DGRAM)
        made.connect(("127.0.0.1", 53))
        made.detach()

    with child(early) as process:
        assert told(own) == [
            f"process {process.pid} (late?[31m?) holds a socket that was created outside of the"
            " cgroup: TCP 127.0.0.1:1001"
        ]


def test_a_socket_that_was_handed_in_over_a_unix_socket_is_told_of(own: str) -> None:
    """The maker is outside, the holder has been inside from the start."""
    outside, inside = socket.socketpair()
    ready, done = os.pipe()

    def receive() -> None:
        enter(own)
        os.write(done, b"!")
        _, fds, _, _ = socket.recv_fds(inside, 1, 1)
        assert len(fds) == 1

    with outside, inside, socket.socket(AF_INET, SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", 53))
        local = "{}:{}".format(*made.getsockname())
        socket.send_fds(outside, [b"!"], [made.fileno()])
        made.close()
        with child(receive) as process:
            os.read(ready, 1)
            assert told(own) == [
                f"process {process.pid} ({process_name(process.pid)}) holds a socket that was"
                f" created outside of the cgroup: UDP {local} to 127.0.0.1:53"
            ]
    os.close(ready)
    os.close(done)


def process_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_what_an_inherited_listener_accepts_is_told_of(own: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accepting() -> int:
            enter(own)
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            client.detach()
            return os.fstat(accepted.detach()).st_ino

        with child(accepting) as process:
            found = {each.socket.inode for each in foreign_sockets([process.pid], own)}
            assert found == {os.fstat(server.fileno()).st_ino, process.told}


def test_a_socket_whose_cgroup_cannot_be_told_is_told_of(own: str) -> None:
    def inside() -> None:
        enter(own)
        socket.socket(AF_INET, SOCK_DGRAM).detach()

    with child(inside) as process:
        (found,) = foreign_sockets([process.pid], own)
        assert not found.is_certain
        assert str(found).endswith("that may have been created outside of the cgroup: UDP")


def test_a_packet_socket_is_told_of_wherever_it_was_made(own: str) -> None:
    def inside() -> None:
        enter(own)
        socket.socket(AF_PACKET, SOCK_RAW, socket.htons(3)).detach()

    with child(inside) as process:
        (found,) = foreign_sockets([process.pid], own)
        assert found.is_certain
        assert str(found).endswith("that no cgroup's programs see: packet")


def test_processes_that_are_gone_hold_nothing(own: str) -> None:
    with child(lambda: enter(own)) as process:
        pass
    assert foreign_sockets([process.pid, 0], own) == []
    with pytest.raises(NotFound, match=r"^no such cgroup: .*/none$"):
        foreign_sockets([process.pid], f"{own}/none")
