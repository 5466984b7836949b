# SPDX-License-Identifier: GPL-2.0-only
"""Only the guard's DNS process answers DNS, also once that process has ended.

An unprivileged user then binds its ports and answers. The guarded program is root's.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rrset
import pytest

from tests.guard.support.dns_process import end_for_good
from tests.guard.support.questions import addresses_in, ask_over_tcp, question
from tests.guard.support.ways.way import NAME_SERVER
from tests.support.children import NOBODY, child
from tests.support.sockets import FAMILIES, error_of, tcp_socket, udp_socket
from tests.support.waiting import wait_until
from zfw_py.guard.codec import proxies_of
from zfw_py.guard.maps import STORE, Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import Attached, World

pytestmark = pytest.mark.kernel

FORGED = "10.9.0.20"
NAME = "both.example"


def end_dns_process(guard: Attached) -> None:
    """Kill the guard's DNS process and its watcher; its ports are free afterwards."""
    end_for_good(guard.status()["keeper_pid"])
    assert wait_until(lambda: guard.status()["keeper_pid"] is None)


@contextmanager
def taken_ports(world: World, guard: Attached) -> Iterator[Any]:
    """A process of an unprivileged user that answers on the ports of the DNS process.

    Yields a function that returns how many queries the process has received.
    """
    (proxy,) = proxies_of(Maps(STORE.directory(guard.id)).map("proxies").items()).values()
    got, tell = os.pipe()

    def answer(query: bytes) -> bytes:
        asked = dns.message.from_wire(query)
        made = dns.message.make_response(asked)
        made.answer = [dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", FORGED)]
        return made.to_wire()

    def serve(sockets: list[socket.socket]) -> None:
        while True:
            for each in select.select(sockets, [], [])[0]:
                if each.type == socket.SOCK_STREAM:
                    os.write(tell, b"+")
                    each.accept()
                    continue
                query, client = each.recvfrom(4096)
                os.write(tell, b"+")
                each.sendto(answer(query), client)

    def take() -> None:
        ends = [
            (family, kind, (address, port))
            for family, address, ports in (
                (socket.AF_INET, "127.0.0.1", proxy.ipv4_ports),
                (socket.AF_INET6, "::1", proxy.ipv6_ports),
            )
            for kind, port in (
                *((socket.SOCK_DGRAM, port) for port in ports),
                (socket.SOCK_STREAM, ports[0]),
            )
        ]
        with world.inside.entered():
            sockets = [socket.socket(family, kind) for family, kind, _ in ends]
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        for each, (_, kind, end) in zip(sockets, ends, strict=True):
            each.bind(end)
            if kind == socket.SOCK_STREAM:
                each.listen()
        threading.Thread(target=serve, args=[sockets], daemon=True).start()

    with child(take):
        os.set_blocking(got, False)
        yield lambda: len(os.read(got, 4096)) if select.select([got], [], [], 0.2)[0] else 0
    os.close(got)
    os.close(tell)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_process_on_its_ports_gets_no_query(world: World, family: int | str) -> None:
    server = (NAME_SERVER[family], 53)

    def program() -> Iterator[object]:
        connected, asked = udp_socket(family), udp_socket(family)
        connected.connect(server)
        connected.send(question(NAME))
        asked.sendto(question(NAME), server)
        proxy = _proxy_end(connected)
        yield [addresses_in(connected.recv(4096)), addresses_in(asked.recv(4096))]
        fresh = udp_socket(family)
        yield [
            error_of(lambda: connected.send(question(NAME))),
            error_of(lambda: asked.sendto(question(NAME), server)),
            error_of(lambda: asked.sendto(question(NAME), proxy)),
            error_of(lambda: fresh.sendto(question(NAME), server)),
            error_of(lambda: _ask(udp_socket(family), server)),
            error_of(lambda: tcp_socket(family).connect(server)),
        ]

    with world.attached("--allow", NAME) as guard, guard.stages(program) as go_on:
        assert go_on() == [["10.9.0.10"], ["10.9.0.10"]]
        end_dns_process(guard)
        with taken_ports(world, guard) as queries:
            assert go_on() == ["EPERM"] * 6
            assert queries() == 0
        assert guard.count("no_proxy") >= 6


def _proxy_end(connected: socket.socket) -> tuple[str, int]:
    """Where the guard sends the queries of a socket, as the kernel shows it."""
    address, port = connected.getsockname()[:2]
    table = Path("/proc/net/udp6" if ":" in address else "/proc/net/udp").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    remote = next(row[2] for row in rows if int(row[1].rpartition(":")[2], 16) == port)
    return address, int(remote.rpartition(":")[2], 16)


def _ask(s: socket.socket, server: tuple[str, int]) -> None:
    s.connect(server)
    s.send(question(NAME))


def test_an_answer_by_another_process_is_not_shown_as_the_servers(world: World) -> None:
    """A query that the DNS process received, and did not answer, is answered by another one."""
    server = (NAME_SERVER[4], 53)

    def program() -> Iterator[object]:
        asked = udp_socket(4)
        asked.sendto(question("slow.example"), server)
        yield asked.getsockname()[1]
        yield asked.recvfrom(4096)[1][0]

    with world.attached("--allow", "slow.example") as guard, guard.stages(program) as go_on:
        os.kill(guard.status()["keeper_pid"], signal.SIGSTOP)
        port = go_on()
        end_dns_process(guard)
        (proxy,) = proxies_of(Maps(STORE.directory(guard.id)).map("proxies").items()).values()

        def forge() -> None:
            with world.inside.entered():
                s = udp_socket(4)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with s:
                s.bind(("127.0.0.1", proxy.ipv4_ports[0]))
                s.sendto(question("slow.example"), ("127.0.0.1", port))

        with child(forge):
            assert go_on() == "127.0.0.1"


def test_a_connection_to_it_ends_as_any_connection(world: World) -> None:
    """Only the first packet is compared: answers over TCP, and the end of a connection."""

    def program() -> object:
        found = []
        for _ in range(3):
            with tcp_socket(4) as s:
                s.connect((NAME_SERVER[4], 53))
                found += addresses_in(ask_over_tcp(s, question(NAME)))
        return found

    with world.attached("--allow", NAME) as guard:
        assert guard.call(program) == ["10.9.0.10"] * 3
        assert guard.count("no_proxy") == 0
