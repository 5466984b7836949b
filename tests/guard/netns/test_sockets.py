# SPDX-License-Identifier: GPL-2.0-only
"""What guarded programs see of their own sockets: their DNS is elsewhere, and looks as if not."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.questions import addresses_in, ask_over_tcp, question
from tests.guard.support.ways.way import LOOPBACK, MSG_FASTOPEN, NAME_SERVER
from tests.guard.support.world import LINK_LOCAL, UPSTREAM, UPSTREAM6, echo_stream
from tests.guard.support.world import world as make_world
from tests.support.command import ZFW
from tests.support.sockets import (
    FAMILIES,
    connect,
    disconnect,
    error_of,
    ipv4_sockaddr,
    recvmmsg,
    sendmmsg,
    sendto,
    sockaddr,
    tcp_socket,
    udp_socket,
)
from tests.support.waiting import wait_until
from zfw_py.guard.codec import time_of, time_value
from zfw_py.guard.listing import guards
from zfw_py.guard.maps import STORE, Maps
from zfw_py.guard.service import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guard.support.world import Attached, World

pytestmark = pytest.mark.kernel

NAME, ADDRESS = "both.example", "10.9.0.10"
# Servers that are nowhere, but for the first.
SERVERS = {
    4: [UPSTREAM, "192.0.2.1", "192.0.2.2", "198.51.100.3", "203.0.113.4"],
    6: [UPSTREAM6, "2001:db8::1", "2001:db8::2", "2001:db8:1::3", "2001:db8:2::4"],
}
SERVERS["mapped"] = [f"::ffff:{address}" for address in SERVERS[4]]
# One socket of IPv6 asks both: four are told apart, and a fifth takes the place of the first.
SERVERS["dual"] = [SERVERS[family][n] for n in range(3) for family in ("mapped", 6)][:5]


@pytest.fixture(scope="module")
def guard(_private_bpffs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attached]:
    """One that all tests here share but those that need a policy of their own."""
    with make_world(tmp_path_factory.mktemp("sockets")) as made:
        yield made.attach(made.new_cgroup(), "--allow", "example")
        Guard.detach_all()


def _socket(family: int | str) -> socket.socket:
    return udp_socket(6 if family == "dual" else family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connected_socket_sees_its_server(guard: Attached, family: int | str) -> None:
    def program() -> object:
        with udp_socket(family) as s:
            s.connect((NAME_SERVER[family], 53))
            s.send(question(NAME))
            answer, _, _, address = s.recvmsg(4096)
            return addresses_in(answer), address[:2], s.getpeername()[:2]

    server = [NAME_SERVER[family], 53]
    assert guard.call(program) == [[ADDRESS], server, server]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unconnected_socket_sees_whom_it_asked(guard: Attached, family: int | str) -> None:
    def program() -> object:
        with udp_socket(family) as s:
            s.sendto(question(NAME), (NAME_SERVER[family], 53))
            answer, address = s.recvfrom(4096)
            return addresses_in(answer), address[:2], error_of(s.getpeername)

    assert guard.call(program) == [[ADDRESS], [NAME_SERVER[family], 53], "ENOTCONN"]


@pytest.mark.parametrize("family", [*FAMILIES, "dual"])
def test_four_servers_that_are_asked_at_once_are_told_apart(
    guard: Attached, family: int | str
) -> None:
    """As musl does it: one socket, all servers, and an answer counts if it is from one of them."""

    def program() -> object:
        with _socket(family) as s:
            for number, server in enumerate(SERVERS[family][:4]):
                s.sendto(question(NAME, id=number), (server, 53))
            answers = [s.recvfrom(4096) for _ in range(4)]
            return sorted((int.from_bytes(data[:2]), end[:2]) for data, end in answers)

    assert guard.call(program) == [[n, [each, 53]] for n, each in enumerate(SERVERS[family][:4])]


@pytest.mark.parametrize("family", [*FAMILIES, "dual"])
def test_a_fifth_server_takes_the_place_of_the_oldest(guard: Attached, family: int | str) -> None:
    def program() -> object:
        with _socket(family) as s:
            seen = []
            for number, server in enumerate((*SERVERS[family], *SERVERS[family][1:])):
                s.sendto(question(NAME, id=number), (server, 53))
                data, end = s.recvfrom(4096)
                seen.append([int.from_bytes(data[:2]), end[:2]])
            return seen

    servers = [*SERVERS[family], *SERVERS[family][1:]]
    assert guard.call(program) == [[n, [each, 53]] for n, each in enumerate(servers)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_sees_its_server(guard: Attached, family: int | str) -> None:
    def program() -> object:
        with tcp_socket(family) as s:
            s.connect((NAME_SERVER[family], 53))
            return addresses_in(ask_over_tcp(s, question(NAME))), s.getpeername()[:2]

    assert guard.call(program) == [[ADDRESS], [NAME_SERVER[family], 53]]


def test_a_connection_of_mptcp_sees_the_proxy(guard: Attached) -> None:
    """Known: the hook meets the subflow, and getpeername() asks the connection."""

    def program() -> object:
        with tcp_socket(4, socket.IPPROTO_MPTCP) as s:
            s.connect((UPSTREAM, 53))
            return addresses_in(ask_over_tcp(s, question(NAME))), s.getpeername()[0]

    assert guard.call(program) == [[ADDRESS], LOOPBACK[4]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [udp_socket, tcp_socket])
def test_a_redirected_socket_has_a_local_address_of_its_own(
    guard: Attached, family: int | str, make: Callable[[int | str], socket.socket]
) -> None:
    def program() -> object:
        with make(family) as s:
            s.connect((NAME_SERVER[family], 53))
            address, port = s.getsockname()[:2]
            return address, port > 0

    assert guard.call(program) == [LOOPBACK[family], True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_that_is_peeked_at_is_from_the_same_server(
    guard: Attached, family: int | str
) -> None:
    def program() -> object:
        with udp_socket(family) as s:
            s.sendto(question(NAME), (SERVERS[family][1], 53))
            looks = [s.recvfrom(4096, flags) for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0)]
            return [[addresses_in(data), end[0]] for data, end in looks]

    assert guard.call(program) == [[[ADDRESS], SERVERS[family][1]]] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_who_does_not_ask_for_the_address_gets_the_answer(
    guard: Attached, family: int | str
) -> None:
    def program() -> object:
        with udp_socket(family) as s:
            s.sendto(question(NAME), (NAME_SERVER[family], 53))
            first = s.recv(4096)
            s.sendto(question(NAME), (NAME_SERVER[family], 53))
            s.setblocking(True)
            return addresses_in(first), addresses_in(os.read(s.fileno(), 4096))

    assert guard.call(program) == [[ADDRESS], [ADDRESS]]


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_by_the_batch(guard: Attached, family: int | str) -> None:
    def program() -> object:
        socket_family = 4 if family == 4 else 6
        with udp_socket(family) as s:
            asked = [
                (question(NAME, id=number), sockaddr(socket_family, server, 53))
                for number, server in enumerate(SERVERS[family][:3])
            ]
            sendmmsg(s, asked)
            got = recvmmsg(s, 3)
            return sorted((int.from_bytes(data[:2]), *end) for data, *end in got)

    servers = SERVERS[family][:3]
    assert guard.call(program) == [[n, each, 53] for n, each in enumerate(servers)]


def test_an_ipv6_socket_may_name_its_server_in_ipv4(guard: Attached) -> None:
    """AF_INET on a socket of AF_INET6: the hooks of IPv4 meet a socket of IPv6."""
    mapped = f"::ffff:{UPSTREAM}"

    def program() -> object:
        with udp_socket(6) as connected, udp_socket(6) as free:
            connect(connected, ipv4_sockaddr(UPSTREAM, 53))
            connected.send(question(NAME))
            sendto(free, question(NAME), ipv4_sockaddr(UPSTREAM, 53))
            ends = [connected.getpeername(), *(s.recvfrom(4096)[1] for s in (connected, free))]
            return [end[0] for end in ends]

    assert guard.call(program) == [mapped] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connected_socket_may_ask_others_and_be_connected_anew(
    guard: Attached, family: int | str
) -> None:
    first, second, third = SERVERS[family][:3]

    def program() -> object:
        with udp_socket(family) as s:
            seen = []
            s.connect((first, 53))
            s.connect((second, 53))
            s.send(question(NAME))
            seen += [s.recvfrom(4096)[1][0], s.getpeername()[0]]
            disconnect(s)
            s.sendto(question(NAME), (third, 53))
            seen += [s.recvfrom(4096)[1][0], error_of(s.getpeername)]
            s.connect((first, 53))
            s.send(question(NAME))
            return [*seen, s.recvfrom(4096)[1][0], s.getpeername()[0]]

    assert guard.call(program) == [second, second, third, "ENOTCONN", first, first]


@pytest.mark.parametrize(
    ("family", "asked", "shown"),
    [
        # Without a resolv.conf a C library asks this host; 127.0.0.53 is systemd-resolved.
        (4, "127.0.0.1", "127.0.0.1"),
        (4, "127.0.0.53", "127.0.0.53"),
        (4, "0.0.0.0", "127.0.0.1"),
        ("mapped", "::ffff:127.0.0.53", "::ffff:127.0.0.53"),
        ("mapped", "::ffff:0.0.0.0", "::ffff:127.0.0.1"),
        (6, "::1", "::1"),
        (6, "::", "::1"),
        (4, "255.255.255.255", "255.255.255.255"),
    ],
)
def test_whatever_server_is_asked_the_proxy_answers(
    guard: Attached, family: int | str, asked: str, shown: str
) -> None:
    def program() -> object:
        with udp_socket(family) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.sendto(question(NAME), (asked, 53))
            answer, end = s.recvfrom(4096)
            return addresses_in(answer), end[0]

    assert guard.call(program) == [[ADDRESS], shown]


def test_a_link_local_server_is_asked_by_connected_sockets_only(guard: Attached) -> None:
    """Known: of what is sent unconnected, the kernel has chosen the interface before the hook."""

    def program() -> object:
        end = (LINK_LOCAL, 53, 0, socket.if_nametoindex("eth0"))
        with udp_socket(6) as datagram, tcp_socket(6) as stream, udp_socket(6) as free:
            datagram.connect(end)
            datagram.send(question(NAME))
            stream.connect(end)
            answers = [datagram.recv(4096), ask_over_tcp(stream, question(NAME))]
            peers = [each.getpeername()[0].partition("%")[0] for each in (datagram, stream)]
            error = error_of(lambda: free.sendto(question(NAME), end))
            return [*map(addresses_in, answers), *peers, error]

    assert guard.call(program) == [[ADDRESS], [ADDRESS], LINK_LOCAL, LINK_LOCAL, "EPERM"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [udp_socket, tcp_socket])
def test_a_socket_that_is_bound_to_an_interface_is_refused_at_once(
    guard: Attached, family: int | str, make: Callable[[int | str], socket.socket]
) -> None:
    """Known: the proxy is on loopback, and no packet for there goes by another interface."""

    def program() -> object:
        with make(family) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            return error_of(lambda: s.connect((NAME_SERVER[family], 53)))

    assert guard.call(program) == "EPERM"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_may_go_with_the_first_segment(guard: Attached, family: int | str) -> None:
    """TCP Fast Open names its destination in sendto(2)."""

    def program() -> object:
        with tcp_socket(family) as s:
            s.setblocking(True)
            query = question(NAME)
            whole = len(query).to_bytes(2) + query
            s.sendto(whole, MSG_FASTOPEN, (NAME_SERVER[family], 53))
            with s.makefile("rb") as file:
                answer = file.read(int.from_bytes(file.read(2)))
            return addresses_in(answer), s.getpeername()[:2]

    assert guard.call(program) == [[ADDRESS], [NAME_SERVER[family], 53]]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_traffic_shows_what_it_is(guard: Attached, family: int | str) -> None:
    """What is not redirected looks as it would without a guard."""
    own = {4: "10.9.0.2", "mapped": "::ffff:10.9.0.2", 6: "fd09::2"}[family]
    address = {4: ADDRESS, "mapped": f"::ffff:{ADDRESS}", 6: "fd09::10"}[family]

    def program() -> object:
        with udp_socket(family) as s:
            for rdtype in ("A", "AAAA"):
                s.sendto(question(NAME, rdtype), (NAME_SERVER[family], 53))
                s.recv(4096)
            s.sendto(b"echo", (address, 80))
            _, end = s.recvfrom(4096)
        with tcp_socket(family) as t, udp_socket(family) as u:
            t.connect((address, 80))
            u.connect((address, 80))
            ends = [t.getpeername(), u.getpeername(), t.getsockname(), u.getsockname()]
        return [end[0], *(each[0] for each in ends)]

    assert guard.call(program) == [address, address, address, own, own]


# How long a name's addresses may be reached


def _is_echoed(made: socket.socket) -> bool:
    made.sendall(b"echo")
    return made.recv(4096) == b"echo"


@pytest.mark.parametrize(("family", "address"), [(4, "10.9.0.14"), (6, "fd09::14")])
def test_what_goes_to_a_name_outlives_it_and_what_is_new_does_not(
    world: World, family: int, address: str
) -> None:
    def program() -> Iterator[object]:
        rdtype = "A" if family == 4 else "AAAA"
        yield error_of(lambda: tcp_socket(family).connect((address, 80)))
        with udp_socket(family) as s:
            s.sendto(question("short.example", rdtype), (NAME_SERVER[family], 53))
            yield addresses_in(s.recv(4096))
        stream = echo_stream(family, address)
        datagrams, free = udp_socket(family), udp_socket(family)
        datagrams.connect((address, 80))
        yield _is_echoed(datagrams)
        while True:
            yield [
                _is_echoed(stream),
                _is_echoed(datagrams),
                error_of(lambda: tcp_socket(family).connect((address, 80))),
                error_of(lambda: free.sendto(b"new", (address, 80))),
            ]

    policy = ("--allow", "short.example", "--min-ttl", "5")
    with world.attached(*policy) as guard, guard.stages(program) as go_on:
        assert go_on() == "EPERM"
        assert go_on() == [address]
        assert go_on() is True
        assert wait_until(lambda: not guard.status()["learnt_addresses"])
        assert go_on() == [True, True, "EPERM", "EPERM"]
        assert guard.count("expired") == 2


@pytest.mark.parametrize(("family", "last"), [(4, ""), ("mapped", "::ffff:"), (6, "")])
def test_flows_without_a_connection_outlive_their_names(
    world: World, family: int | str, last: str
) -> None:
    """One socket, several ends, as QUIC, WireGuard and WebRTC have them."""
    ends = ("fd09::10", "fd09::14") if family == 6 else (f"{last}10.9.0.10", f"{last}10.9.0.14")

    def program() -> Iterator[object]:
        for name in ("both.example", "short.example", "v4.example", "v6.example"):
            with udp_socket(4) as s:
                s.sendto(question(name, "AAAA" if family == 6 else "A"), (UPSTREAM, 53))
                s.recv(4096)
        used = udp_socket(family)
        denied = "fd09::12" if family == 6 else f"{last}10.9.0.11"
        while True:
            found = []
            for end in ends * 2:
                used.sendto(b"under way", (end, 80))
                found.append(used.recvfrom(4096)[1][0])
            yield [
                found,
                error_of(lambda: udp_socket(family).sendto(b"new", (ends[1], 80))),
                error_of(lambda: used.sendto(b"new", (denied, 80))),
                error_of(lambda: used.sendto(b"another port", (ends[1], 443))),
            ]

    allow = [word for name in ("both", "short") for word in ("--allow", f"{name}.example:80")]
    with world.attached(*allow) as guard, guard.stages(program) as go_on:
        before = go_on()
        assert before == [list(ends) * 2, "", "EPERM", "EPERM"]
        learnt = Maps(STORE.directory(guard.id)).map("learnt")
        keys = [key for key, _ in learnt.items()]
        for key in keys:
            learnt.update(key, time_value(1))
        assert go_on() == [list(ends) * 2, "EPERM", "EPERM", "EPERM"]
        for key in keys:
            learnt.delete(key)
        assert go_on() == [list(ends) * 2, "EPERM", "EPERM", "EPERM"]


@pytest.mark.parametrize(("option", "least"), [((), 300), (("--min-ttl", "900"), 900)])
def test_an_address_is_allowed_for_longer_than_programs_keep_it(
    world: World, option: tuple[str, ...], least: int
) -> None:
    """Whatever the record's time to live: here it is 1 s."""
    with world.attached("--allow", "short.example", *option) as guard:
        assert _resolved(guard, "short.example") == ["10.9.0.14"]
        learnt = Maps(STORE.directory(guard.id)).map("learnt")
        ((key, until),) = learnt.items()
        left = (time_of(until) - time.monotonic_ns()) / 1e9
        assert least - 30 < left <= least
        assert _reached(guard, ("10.9.0.14", 80)) == ["open"]
        learnt.update(key, time_value(1))
        assert _reached(guard, ("10.9.0.14", 80), ("10.9.0.20", 80)) == ["EPERM", "EPERM"]
        assert guard.count("expired") == 2
        assert guard.count("not_allowed") == 2


def test_an_expired_address_is_said_to_be_one(world: World) -> None:
    command = "getent hosts v4.example; read line; curl --silent --max-time 5 http://10.9.0.11"
    run = ("run", "--dns-upstream", UPSTREAM, "--allow", "v4.example", "--", "sh", "-c", command)
    with world.start(str(ZFW), "guard", *run, stdin=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() != ""
        ((status,), _) = guards()
        learnt = Maps(STORE.directory(status.manifest.id)).map("learnt")
        for key, _ in list(learnt.items()):
            learnt.update(key, time_value(1))
        _, said = running.communicate("\n", timeout=60)
    end = "tcp 10.9.0.11:80 (v4.example): expired (--min-ttl keeps addresses for longer)\n"
    assert said.endswith(end)


# What a policy says of sockets


def _reached(guard: Attached, *ends: tuple[str, int]) -> list[str]:
    """What becomes of a connection, and of a datagram, to each of these."""

    def program() -> object:
        told = []
        for address, port in ends:
            family = 6 if ":" in address else 4
            with tcp_socket(family) as stream, udp_socket(family) as datagram:
                told.append(error_of(lambda s=stream, end=(address, port): s.connect(end)))
                told.append(error_of(lambda s=datagram, end=(address, port): s.sendto(b".", end)))
        return told

    told: list[str] = guard.call(program)
    assert told[::2] == told[1::2]
    return ["open" if each == "" else each for each in told[::2]]


def _resolved(guard: Attached, name: str, rdtype: str = "A") -> list[str]:
    """The addresses that a guarded program gets for a name."""

    def program() -> object:
        with udp_socket(4) as s:
            s.sendto(question(name, rdtype), (UPSTREAM, 53))
            return addresses_in(s.recv(4096))

    found: list[str] = guard.call(program)
    return found


def test_a_prefix_with_a_port_is_open_on_it_alone(world: World) -> None:
    options = ("--allow", "10.9.0.8/29:80", "--allow", "[fd09::/120]:443")
    with world.attached(*options) as guard:
        ends = [("10.9.0.15", 80), ("10.9.0.15", 443), ("10.9.0.20", 80)]
        assert _reached(guard, *ends) == ["open", "EPERM", "EPERM"]
        assert _reached(guard, ("fd09::20", 443), ("fd09::20", 80)) == ["open", "EPERM"]


def test_a_block_inside_an_allow(world: World) -> None:
    options = ("--allow", "10.9.0.0/24", "--block", "10.9.0.16/29", "--allow", "fd09::/64")
    with world.attached(*options, "--block", "fd09::20") as guard:
        assert _reached(guard, ("10.9.0.15", 80), ("10.9.0.20", 80)) == ["open", "EPERM"]
        assert _reached(guard, ("fd09::15", 80), ("fd09::20", 80)) == ["open", "EPERM"]


def test_an_allow_inside_a_block_inside_an_allow(world: World) -> None:
    options = ("--allow", "0.0.0.0/0", "--block", "10.9.0.0/24", "--allow", "10.9.0.20:80")
    with world.attached(*options) as guard:
        ends = [("10.9.0.20", 80), ("10.9.0.20", 443), ("10.9.0.15", 80)]
        assert _reached(guard, *ends) == ["open", "EPERM", "EPERM"]


def test_with_blocks_alone_all_else_is_open(world: World) -> None:
    with world.attached("--block", "10.9.0.20", "--block", "other.example") as guard:
        assert _reached(guard, ("10.9.0.20", 80), ("10.9.0.15", 80)) == ["EPERM", "open"]
        assert _reached(guard, ("fd09::20", 80)) == ["open"]
        assert _resolved(guard, "both.example") == ["10.9.0.10"]
        assert _resolved(guard, "other.example") == []
        # Nobody was told where that is, but it is not kept from those who know.
        assert _reached(guard, ("10.9.0.13", 80)) == ["open"]


def test_every_name_is_not_every_address(world: World) -> None:
    with world.attached("--allow", ".") as guard:
        assert _reached(guard, ("10.9.0.10", 80), ("fd09::10", 80)) == ["EPERM", "EPERM"]
        assert _resolved(guard, "both.example") == ["10.9.0.10"]
        assert _reached(guard, ("10.9.0.10", 80), ("fd09::10", 80)) == ["open", "EPERM"]
        assert _resolved(guard, "both.example", "AAAA") == ["fd09::10"]
        assert _reached(guard, ("fd09::10", 80), ("10.9.0.20", 80)) == ["open", "EPERM"]


def test_an_alias_leads_where_its_name_may_not_be_asked_for(world: World) -> None:
    with world.attached("--allow", "alias.example") as guard:
        assert _resolved(guard, "v4.example") == []
        assert _reached(guard, ("10.9.0.11", 80)) == ["EPERM"]
        assert _resolved(guard, "alias.example") == ["10.9.0.11"]
        assert _reached(guard, ("10.9.0.11", 80)) == ["open"]


def test_a_name_with_a_port_is_open_on_it_alone(world: World) -> None:
    with world.attached("--allow", "both.example:443", "--allow", "v4.example:80") as guard:
        assert _resolved(guard, "both.example") == ["10.9.0.10"]
        assert _resolved(guard, "v4.example") == ["10.9.0.11"]
        ends = [("10.9.0.10", 443), ("10.9.0.10", 80), ("10.9.0.11", 443), ("10.9.0.11", 80)]
        assert _reached(guard, *ends) == ["open", "EPERM", "EPERM", "open"]


def test_what_is_only_logged_passes(world: World) -> None:
    with world.attached("--log-only", "--allow", "v4.example") as guard:
        assert _resolved(guard, "other.example") == ["10.9.0.13"]
        assert _reached(guard, ("10.9.0.13", 80), ("fd09::20", 80)) == ["open", "open"]
        assert guard.count("not_allowed") > 0
