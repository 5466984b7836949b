# SPDX-License-Identifier: GPL-2.0-only
"""Ways round a guard that do not lead out. What counts is what arrives outside."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.guard.support.questions import addresses_in, question
from tests.guard.support.ways import packets
from tests.guard.support.ways.way import (
    DENIED,
    LOOPBACK,
    NAME_SERVER,
    OPEN,
    OWN,
    POLICY,
    PORTED,
    WAYS,
)
from tests.guard.support.world import UPSTREAM, UPSTREAM6, echo_stream
from tests.guard.support.world import world as make_world
from tests.support.cgroups import enter
from tests.support.children import child
from tests.support.command import ZFW
from tests.support.netns import CLONE_NEWNET
from tests.support.sockets import FAMILIES, error_of, tcp_socket, udp_socket
from tests.support.waiting import wait_until
from zfw_py.guard.layout import SERVERS
from zfw_py.guard.maps import STORE, Maps
from zfw_py.guard.service import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import Arrived, World

pytestmark = pytest.mark.kernel

_ROOT = Path(__file__).resolve().parents[3]
# What a socket says where the kernel has no such protocol.
_NOT_IN_KERNEL = ("EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EAFNOSUPPORT")
# A ping socket of IPv6 says nothing of what became of its packet.
_SILENT = ("ping_6", "ping_ported_6", "ping_connected_6")


class Gone(NamedTuple):
    """What became of all ways: each one's error, "" if it had none, and how much arrived of it."""

    errors: dict[str, str]
    signs: Counter[str]
    arrived: list[Arrived]


class Ways(NamedTuple):
    """The same ways gone twice, and what the guard told of it."""

    unguarded: Gone
    guarded: Gone
    log: list[dict[str, Any]]


def _go(world: World, *zfw: str) -> Gone:
    with world.capture() as arrived:
        done = world.run(*zfw, sys.executable, "-m", "tests.guard.support.ways", cwd=_ROOT)
    assert done.returncode == 0, done.stderr
    signs = Counter(
        {name: sum(way.sign in one.data for one in arrived) for name, way in WAYS.items()}
    )
    return Gone(json.loads(done.stdout), signs, arrived)


@pytest.fixture(scope="module")
def ways(_private_bpffs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """All of them gone, by a program of its own, in a world of their own."""
    with make_world(tmp_path_factory.mktemp("ways")) as world:
        # The first segment has data, cookie or not; everybody may ping.
        settings = ("net.ipv4.tcp_fastopen=5", "net.ipv4.ping_group_range=0 1000")
        world.inside.run("sysctl", "-q", "-w", *settings)
        log = world.folder / "log"
        options = ("-q", "--log", str(log), "--dns-upstream", UPSTREAM)
        unguarded = _go(world)
        guarded = _go(world, str(ZFW), "guard", "run", *options, *POLICY, "--")
        yield Ways(unguarded, guarded, [json.loads(line) for line in log.read_text().splitlines()])
        Guard.detach_all()


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.is_open])
def test_a_way_past_the_guard_is_closed(ways: Ways, name: str) -> None:
    if ways.unguarded.errors[name] in _NOT_IN_KERNEL:
        assert ways.guarded.errors[name] == ways.unguarded.errors[name]
        pytest.skip("this kernel does not have the protocol")
    assert ways.unguarded.signs[name] > 0, f"does not lead out: {ways.unguarded.errors[name]}"
    assert ways.guarded.signs[name] == 0
    assert ways.guarded.errors[name] == ("" if name in _SILENT else "EPERM")


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.is_open])
def test_a_way_to_where_one_may_go_is_open(ways: Ways, name: str) -> None:
    assert ways.unguarded.signs[name] > 0
    assert ways.guarded.signs[name] > 0
    assert ways.guarded.errors[name] == ""


def test_nothing_else_arrived(ways: Ways) -> None:
    """Not a handshake, nor a packet that nobody thought of."""
    allowed = {OPEN[4], OPEN[6], PORTED[4], PORTED[6], UPSTREAM, UPSTREAM6}
    elsewhere = [
        one
        for one in ways.guarded.arrived
        if one.destination not in allowed and not _is_of_the_link(one)
    ]
    assert elsewhere == []
    assert any(one.destination == DENIED[4] for one in ways.unguarded.arrived)


@pytest.mark.parametrize(
    ("reason", "hook", "protocol", "end"),
    [
        ("not_allowed", "connect4", "tcp", (DENIED[4], 80)),
        ("not_allowed", "connect6", "tcp", (DENIED[6], 80)),
        ("not_allowed", "sendmsg4", "udp", (DENIED[4], 80)),
        ("not_allowed", "sendmsg6", "udp", (DENIED[6], 80)),
        ("not_allowed", "egress", "udp", (DENIED[6], 80)),
        ("dns_direct", "egress", "udp", (OPEN[6], 53)),
        ("source_route", "egress", "udp", (OPEN[4], 80)),
        ("martian", "egress", "udp", ("::1", 80)),
        ("malformed", "egress", "0", None),
        ("foreign_source", "egress", "icmp", (OWN[4], 0)),
        ("foreign_source", "setsockopt", "ipv6-icmp", None),
    ],
)
def test_what_was_denied_was_told(
    ways: Ways, reason: str, hook: str, protocol: str, end: tuple[str, int] | None
) -> None:
    told = [record for record in ways.log if record["reason"] == reason and record["hook"] == hook]
    assert all(record["verdict"] == "deny" and record["enforced"] for record in told)
    original = None if end is None else {"address": end[0], "port": end[1]}
    assert (protocol, original) in [(record["protocol"], record["original"]) for record in told]


def _is_of_the_link(one: Arrived) -> bool:
    """Neighbours and groups: the kernel's own, RFC 4861 and RFC 3810."""
    return one.destination.startswith(("ff02::1:ff", "ff02::16", "fe80::")) and (
        one.protocol in (0, socket.IPPROTO_ICMPV6)
    )


# Sockets of before, from outside, and of other kinds


def _signs(arrived: list[Arrived], *signs: bytes) -> list[bytes]:
    """Which of these arrived."""
    return [sign for sign in signs if any(sign in one.data for one in arrived)]


def _echo(s: socket.socket, data: bytes) -> None:
    """Have a datagram, or what follows the first answer of a stream, sent back by the world."""
    s.sendall(data)
    assert s.recv(4096) == data


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_older_than_the_guard_is_judged_from_then_on(
    world: World, family: int | str
) -> None:
    def program() -> Iterator[object]:
        far, near = echo_stream(family, DENIED[family]), echo_stream(family, OPEN[family])
        server, free = udp_socket(family), udp_socket(family)
        server.connect((NAME_SERVER[family], 53))
        free.sendto(b"<free before>", (DENIED[family], 80))
        free.recv(4096)
        yield None
        _echo(near, b"<near>")
        far.sendall(b"<far>")
        yield [
            error_of(lambda: server.send(b"<server>")),
            error_of(lambda: free.sendto(b"<free>", (DENIED[family], 80))),
            error_of(lambda: free.sendto(b"<open>", (OPEN[family], 80))),
        ]

    cgroup = world.new_cgroup()
    with world.stages(cgroup, program) as go_on, world.capture() as arrived:
        go_on()
        guard = world.attach(cgroup, *POLICY)
        assert guard.warnings == ""
        # The kernel passes on what a mapped socket sends with a destination, which a hook meets:
        # the proxy answers to a socket that hears its server alone.
        assert go_on() == ["" if family == "mapped" else "EPERM", "EPERM", ""]
    signs = (b"<free before>", b"<near>", b"<open>")
    assert _signs(arrived, *signs, b"<far>", b"<server>", b"<free>") == list(signs)


def test_a_socket_with_a_foreign_source_that_is_older_than_the_guard(world: World) -> None:
    """What setsockopt() did not refuse, the packet is denied."""

    def program() -> Iterator[object]:
        with udp_socket(6) as known:  # the link has to know whom the answer is for
            known.connect((DENIED[6], 80))
            _echo(known, b"known")
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        s.bind((DENIED[6], 0))
        s.sendto(b"<before>", (LOOPBACK[6], 9))
        yield None
        yield [
            error_of(lambda: s.sendto(b"<loopback>", (LOOPBACK[6], 9))),
            error_of(lambda: s.sendto(b"<ourselves>", (OWN[6], 9))),
        ]

    cgroup = world.new_cgroup()
    with world.stages(cgroup, program) as go_on, world.capture() as arrived:
        go_on()
        world.attach(cgroup, *POLICY)
        assert go_on() == ["EPERM", "EPERM"]
    assert _signs(arrived, b"<before>", b"<loopback>", b"<ourselves>") == [b"<before>"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_may_bind_to_each_of_its_own_addresses(world: World, family: int | str) -> None:
    """What answers go to is ours; to send from there is no foreign source."""

    def service() -> Iterator[object]:
        s = udp_socket(family)
        s.bind((LOOPBACK[family], 4711))
        yield None
        data, client = s.recvfrom(100)
        s.sendto(data, client)
        yield client[0]

    def program() -> object:
        near, server = udp_socket(family), udp_socket(family)
        near.bind((OWN[family], 0))
        near.connect((LOOPBACK[family], 4711))
        near.send(b"near")
        server.bind((OWN[family], 0))
        server.sendto(question("both.example"), (NAME_SERVER[family], 53))
        answer, address = server.recvfrom(4096)
        return [*addresses_in(answer), address[0]]

    with world.stages(world.cgroup, service) as go_on, world.attached("--allow", ".") as guard:
        go_on()
        assert guard.call(program) == ["10.9.0.10", NAME_SERVER[family]]
        assert go_on() == OWN[family]


def test_a_socket_from_outside_is_not_guarded_and_attach_warns_of_it(world: World) -> None:
    """Passed over a Unix socket, before and after: docs/GUARD.md says that these are not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    def program() -> Iterator[object]:
        for name in (b"<early>", b"<late>"):
            fd = socket.recv_fds(theirs, 1, 1)[1][0]
            passed = socket.socket(fileno=fd)
            yield None
            passed.sendto(name, (DENIED[4], 80))
        yield error_of(lambda: udp_socket(4).sendto(b"<own>", (DENIED[4], 80)))

    cgroup = world.new_cgroup()
    with ours, theirs, world.stages(cgroup, program) as go_on, world.capture() as arrived:
        _pass_a_socket(world, ours)
        go_on()
        guard = world.attach(cgroup)
        _pass_a_socket(world, ours)
        go_on()
        assert go_on() == "EPERM"
    warning, _, rest = guard.warnings.partition("\n")
    assert "holds a socket that was created outside of the cgroup: UDP 10.9.0.2:" in warning
    assert warning.endswith("it is not guarded")
    assert rest == ""
    assert _signs(arrived, b"<early>", b"<late>", b"<own>") == [b"<early>", b"<late>"]


def _pass_a_socket(world: World, by: socket.socket) -> None:
    with world.inside.entered(), udp_socket(4) as made:
        made.bind((OWN[4], 0))
        socket.send_fds(by, [b"."], [made.fileno()])


def test_a_socket_that_a_command_inherits_is_not_guarded_and_run_warns_of_it(world: World) -> None:
    with world.inside.entered():
        inherited = udp_socket(4)
    inherited.connect((DENIED[4], 80))
    with inherited, world.capture() as arrived:
        done = world.zfw(
            *("run", "--dns-upstream", UPSTREAM, "--", "sh", "-c", "printf '<inherited>' >&0"),
            stdin=inherited.fileno(),
        )
    assert "created outside of the cgroup: UDP" in done.stderr
    assert "the command inherits it" in done.stderr
    assert _signs(arrived, b"<inherited>") == [b"<inherited>"]


def test_a_process_that_is_moved_in_is_guarded_but_for_what_it_brings(world: World) -> None:
    with world.attached(*POLICY) as guard:

        def program() -> Iterator[object]:
            brought = udp_socket(4)
            enter(guard.cgroup)
            yield [
                error_of(lambda: brought.sendto(b"<brought>", (DENIED[4], 80))),
                error_of(lambda: udp_socket(4).sendto(b"<new>", (DENIED[4], 80))),
                error_of(lambda: tcp_socket(6).connect((DENIED[6], 80))),
            ]

        with world.capture() as arrived, world.stages(world.cgroup, program) as go_on:
            assert go_on() == ["", "EPERM", "EPERM"]
    assert _signs(arrived, b"<brought>", b"<new>") == [b"<brought>"]
    assert [one for one in arrived if one.destination == DENIED[6]] == []


def test_packet_sockets_are_past_every_cgroup_program(world: World) -> None:
    """So docs/GUARD.md says; they need CAP_NET_RAW."""

    def program() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as s:
            packet = packets.ipv4(DENIED[4], 17, packets.udp_header(80, b"<packet>") + b"<packet>")
            s.sendto(packet, ("eth0", 0x0800, 0, 0, b"\xff" * 6))

    with world.attached() as guard, world.capture() as arrived:
        guard.call(program)
    assert _signs(arrived, b"<packet>") == [b"<packet>"]


# Loopback


@contextmanager
def _echo_services(world: World) -> Iterator[None]:
    """Echoes of TCP and UDP on port 4711 of all addresses inside, not guarded."""

    def start() -> None:
        with world.inside.entered():
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            tcp = socket.create_server(("::", 4711), family=socket.AF_INET6, dualstack_ipv6=True)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("::", 4711))
        threading.Thread(target=serve, args=(udp, tcp), daemon=True).start()

    def serve(udp: socket.socket, tcp: socket.socket) -> None:
        while True:
            for each in select.select([udp, tcp], [], [])[0]:
                if each is udp:
                    data, client = udp.recvfrom(100)
                    udp.sendto(data, client)
                else:
                    with tcp.accept()[0] as connection:
                        connection.sendall(connection.recv(100))

    with child(start):
        yield


def _tcp_echo(family: int | str, address: str) -> str:
    def ask() -> None:
        with tcp_socket(family) as s:
            s.connect((address, 4711))
            _echo(s, b"stream")

    return error_of(ask)


def _udp_echo(family: int | str, address: str) -> str:
    def ask() -> None:
        with udp_socket(family) as s:
            s.sendto(b"datagram", (address, 4711))
            assert s.recv(100) == b"datagram"

    return error_of(ask)


# No address at all means this host, too.
OURSELVES = [
    (4, "127.0.0.1"),
    (4, "127.1.2.3"),
    (4, "0.0.0.0"),
    ("mapped", "::ffff:127.0.0.1"),
    ("mapped", "::ffff:0.0.0.0"),
    (6, "::1"),
    (6, "::"),
]


@pytest.mark.parametrize(("is_allowed", "told"), [(True, ["", ""]), (False, ["EPERM", "EPERM"])])
def test_loopback_is_open_unless_told_otherwise(
    world: World, is_allowed: bool, told: list[str]
) -> None:
    def program() -> object:
        return [[_tcp_echo(*each), _udp_echo(*each)] for each in OURSELVES]

    options = [] if is_allowed else ["--no-loopback"]
    with _echo_services(world), world.attached(*options) as guard:
        assert guard.call(program) == [told] * len(OURSELVES)


def test_without_loopback_there_is_still_the_proxy_and_nothing_else(world: World) -> None:
    with world.attached("--no-loopback", "--allow", "both.example") as guard:
        proxies = Maps(STORE.directory(guard.id)).map("proxies")
        ports = {
            address: struct.unpack_from(f"={SERVERS}H", value, offset)
            for _, value in proxies.items()
            for address, offset in (("127.0.0.1", 32), ("::1", 32 + 2 * SERVERS))
        }

        def program() -> object:
            with udp_socket(4) as s:
                s.sendto(question("both.example"), (UPSTREAM, 53))
                found = addresses_in(s.recv(4096))
            # The proxy has one port of TCP a family; the same numbers of UDP's others are not its.
            return found, [
                error_of(lambda a=address, p=port: tcp_socket(6 if ":" in a else 4).connect((a, p)))
                for address, each in ports.items()
                for port in each
            ]

        assert guard.call(program) == [["10.9.0.10"], ["", *["EPERM"] * (SERVERS - 1)] * 2]


# Other namespaces, other subflows


def test_a_network_namespace_within_is_guarded_and_has_a_proxy_soon(world: World) -> None:
    def program() -> Iterator[object]:
        _unshare_network()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield os.getpid()
        for command in (
            "address add 10.8.0.2/24 dev eth1",
            "address add fd08::2/64 dev eth1 nodad",
            "link set eth1 up",
            "route add default via 10.8.0.1",
            "route add default via fd08::1",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        first = error_of(lambda: _ask(6, "both.example"))
        yield first, _ask_until_answered("both.example")
        with tcp_socket(4) as s:
            s.connect(("10.9.0.10", 80))
        yield [_udp_error(family) for family in FAMILIES]

    with world.attached("--allow", "both.example") as guard, guard.stages(program) as go_on:
        pid = go_on()
        world.outside.ip(f"link add gw1 type veth peer name eth1 netns {pid}")
        world.outside.set_up("gw1", "10.8.0.1/24", "fd08::1/64")
        with world.capture("gw1") as arrived:
            first, later = go_on()
            assert (first, later) == ("EPERM", ["10.9.0.10"])
            assert go_on() == ["EPERM"] * len(FAMILIES)
    assert any(one.destination == "10.9.0.10" for one in arrived)
    assert _signs(arrived, b"<within>") == []
    assert [one for one in arrived if one.port == 53] == []


def _udp_error(family: int | str) -> str:
    return error_of(lambda: udp_socket(family).sendto(b"<within>", (DENIED[family], 80)))


def _unshare_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0


def _ask(family: int | str, name: str) -> list[str]:
    with udp_socket(family) as s:
        s.sendto(question(name), (NAME_SERVER[family], 53))
        return addresses_in(s.recv(4096))


def _ask_until_answered(name: str) -> list[str]:
    """The guard's process hears of the first question, and is there for a later one."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return _ask(4, name)
        except PermissionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("family", [4, 6])
def test_mptcp_opens_no_subflow_to_where_one_may_not_go(world: World, family: int) -> None:
    """A server tells of other addresses that it has, and the kernel connects to these by itself."""
    world.inside.run("ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "2")
    world.outside.run("ip", "mptcp", "limits", "set", "subflows", "2")
    world.outside.run("ip", "mptcp", "endpoint", "add", DENIED[family], "signal")

    def serve() -> None:
        with world.outside.entered():
            listener = tcp_socket(family, socket.IPPROTO_MPTCP)
        listener.setblocking(True)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 8080))
        listener.listen()

        def echo() -> None:
            while True:
                connection, _ = listener.accept()
                while data := connection.recv(100):
                    connection.sendall(data)

        threading.Thread(target=echo, daemon=True).start()

    def program() -> Iterator[object]:
        s = tcp_socket(family, socket.IPPROTO_MPTCP)
        s.connect((OPEN[family], 8080))
        while True:
            _echo(s, b"more")
            yield None

    def arrives(arrived: list[Arrived]) -> bool:
        return any(one.destination == DENIED[family] for one in arrived)

    with child(serve):
        with (
            world.attached(*POLICY) as guard,
            world.capture() as arrived,
            guard.stages(program) as go_on,
        ):
            go_on()
            assert wait_until(lambda: guard.count("not_allowed") > 0)
            go_on()
        assert not arrives(arrived)
        with world.capture() as arrived, world.stages(world.cgroup, program) as go_on:
            go_on()
            assert wait_until(lambda: _subflows(world) > 1)
        assert arrives(arrived)


def _subflows(world: World) -> int:
    """Connections of TCP to the service of MPTCP."""
    return len(world.inside.run("ss", "-tnH", "dport = :8080").stdout.splitlines())
