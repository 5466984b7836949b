# SPDX-License-Identifier: GPL-2.0-only
"""Where connections and datagrams land, in a gateway that is steered."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

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
from tests.support.children import child, in_child
from tests.support.netns import Namespace, Network
from tests.support.pids import needs_told_pids
from tests.support.waiting import wait_until
from zfw_py.errors import Conflict, MapFull, NotFound, UsageError
from zfw_py.kernel import process_sockets
from zfw_py.kernel.cgroup import systemd_mounts
from zfw_py.kernel.process import start_time
from zfw_py.steer.maps import STORE, Maps
from zfw_py.steer.model import Mapping, MappingKey, UnitTarget, decode
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from zfw_py.steer.listing import MappingStatus

pytestmark = pytest.mark.kernel

IPV4, IPV6 = Network.gateway_ipv4, Network.gateway_ipv6


def only(steering: Steering) -> MappingStatus:
    (found,) = steering.mappings()
    return found


@pytest.mark.parametrize(
    ("bound", "target", "asked"),
    [
        ("127.0.0.5", "127.0.0.5:2222", IPV4),
        ("0.0.0.0", "0.0.0.0:2222", IPV4),
        ("::1", "[::1]:2222", IPV6),
        ("::", "[::]:2222", IPV6),
        # An IPv6 socket takes IPv4 unless it says otherwise.
        ("::", "[::]:2222", IPV4),
        ("::ffff:127.0.0.5", "127.0.0.5:2222", IPV4),
    ],
)
def test_a_connection_lands_with_true_addresses(
    network: Network, steering: Steering, stack: ExitStack, bound: str, target: str, asked: str
) -> None:
    if bound.startswith("::ffff:"):
        daemon = stack.enter_context(socket.socket(socket.AF_INET6))
        daemon.bind((bound, 2222))
        daemon.listen()
    else:
        daemon = stack.enter_context(listen(bound, 2222))
    steering.add([mapping("tcp", f"{asked}", "5555", target)])
    assert only(steering).state == "steering"
    assert lands_on(network.client, asked, 5555, daemon)
    assert is_refused(network.client, asked, 5556)
    assert only(steering).counters[:3] == (1, 0, 0)


def test_the_most_specific_mapping_counts(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    ports = {}
    for number, (address, port) in enumerate(
        [
            ("any", "any"),
            ("10.9.0.0/24", "any"),
            ("any", "1000-2000"),
            ("10.9.0.1", "1000-2000"),
            ("10.9.0.0/24", "1500-1600"),
            ("10.0.0.0/8", "1550"),
        ]
    ):
        daemon = stack.enter_context(listen("127.0.0.1", 7000 + number))
        steering.add([mapping("tcp", address, port, f"127.0.0.1:{7000 + number}")])
        ports[address, port] = daemon
    for asked, key in (
        (999, ("10.9.0.0/24", "any")),
        (1000, ("10.9.0.1", "1000-2000")),
        (1555, ("10.9.0.1", "1000-2000")),  # the longest prefix before the narrower range
        (1550, ("10.0.0.0/8", "1550")),  # a port before all ranges
        (2000, ("10.9.0.1", "1000-2000")),
        (2001, ("10.9.0.0/24", "any")),
    ):
        assert lands_on(network.client, IPV4, asked, ports[key]), asked


def test_an_exact_listener_keeps_its_packets_unless_overridden(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    older = stack.enter_context(listen(IPV4, 80))
    daemon = stack.enter_context(listen("127.0.0.1", 8080))
    steering.add([mapping("tcp", "any", "any", "127.0.0.1:8080")])
    younger = stack.enter_context(listen(IPV4, 81))
    assert lands_on(network.client, IPV4, 80, older)
    assert lands_on(network.client, IPV4, 81, younger)
    assert lands_on(network.client, IPV4, 82, daemon)
    assert only(steering).counters[:3] == (3, 2, 0)
    younger.close()
    assert lands_on(network.client, IPV4, 81, daemon)
    steering.add([mapping("tcp", IPV4, "80", "127.0.0.1:8080", is_override=True)])
    assert lands_on(network.client, IPV4, 80, daemon)


def test_a_wildcard_listener_is_none_of_exactly_that_address(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    stack.enter_context(listen("0.0.0.0", 80))
    daemon = stack.enter_context(listen("127.0.0.1", 8080))
    steering.add([mapping("tcp", "any", "80", "127.0.0.1:8080")])
    assert lands_on(network.client, IPV4, 80, daemon)


def test_without_a_socket_it_is_refused_or_falls_through(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    wildcard = stack.enter_context(listen("0.0.0.0", 80))
    (added,) = steering.add([mapping("tcp", "any", "80", "127.0.0.1:8080")])
    assert (added.state, added.sockets) == ("pending", [])
    assert is_refused(network.client, IPV4, 80)
    assert only(steering).counters[:3] == (1, 0, 1)
    steering.apply([mapping("tcp", "any", "80", "127.0.0.1:8080", is_fallthrough=True)])
    assert lands_on(network.client, IPV4, 80, wildcard)
    assert only(steering).counters[:3] == (1, 0, 1)


def test_a_daemon_that_starts_again_takes_over_without_a_manager(
    network: Network, steering: Steering
) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    for _ in range(20):  # more often than a target has room for sockets
        with listen("127.0.0.1", 2222) as daemon:
            assert lands_on(network.client, IPV4, 5555, daemon)
        assert is_refused(network.client, IPV4, 5555)
    assert only(steering).state == "pending"


def test_connections_that_are_open_stay(network: Network, steering: Steering) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    first = listen("127.0.0.1", 2222)
    with connected(network.client, IPV4, 5555) as ours:
        theirs, _ = first.accept()
        first.close()
        with theirs, listen("127.0.0.1", 2222) as second:
            assert lands_on(network.client, IPV4, 5555, second)
            ours.sendall(b"still")
            assert theirs.recv(9) == b"still"
            steering.detach()
            theirs.sendall(b"here")
            assert ours.recv(9) == b"here"


def test_of_several_daemons_the_newest_has_it_and_the_one_before_takes_over(
    network: Network, steering: Steering
) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    kept = []

    def serve() -> None:
        kept.append(listen("127.0.0.1", 2222, is_shared=True))

    with child(serve) as other:
        assert [each.pids for each in only(steering).sockets] == [[other.pid]]
        with listen("127.0.0.1", 2222, is_shared=True):
            found = only(steering)
            assert [each.pids for each in found.sockets] == [[os.getpid()], [other.pid]]
            assert [each.is_current for each in found.sockets] == [True, False]
            assert found.problem == "2 daemons listen there; the newest gets the connections"
        assert [each.pids for each in only(steering).sockets] == [[other.pid]]
        with connected(network.client, IPV4, 5555):
            pass
    assert only(steering).state == "pending"


def test_of_daemons_that_listen_already_the_youngest_has_it(
    network: Network, steering: Steering
) -> None:
    kept = []

    def serve() -> None:
        kept.append(listen("127.0.0.1", 2222, is_shared=True))

    with child(serve) as older:
        # Both are told apart by when they began, in clock ticks.
        began = start_time(older.pid)
        assert wait_until(lambda: in_child(lambda: start_time(os.getpid())) != began)
        with child(serve) as younger:
            (added,) = steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
            assert [each.pids for each in added.sockets] == [[younger.pid], [older.pid]]


def test_of_more_sockets_than_there_is_room_for_others_follow(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    with managed() as manager:
        group = [stack.enter_context(listen("127.0.0.1", 2222, is_shared=True)) for _ in range(12)]
        taken = {each.listener.cookie for each in only(steering).sockets}
        assert taken == {process_sockets.cookie_of(each) for each in group[4:]}
        for each in group[4:]:
            each.close()
        manager.wait_for("adopted 127.0.0.1:2222 of process")
        with connected(network.client, IPV4, 5555):
            pass


def test_a_group_of_reuseport_shares(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    group = [stack.enter_context(listen("127.0.0.1", 2222, is_shared=True)) for _ in range(4)]
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    for each in group:
        each.setblocking(False)
    for _ in range(64):
        with connected(network.client, IPV4, 5555):
            pass
    counts = []
    for each in group:
        count = 0
        while True:
            try:
                each.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        counts.append(count)
    assert sum(counts) == 64
    assert sum(count > 0 for count in counts) > 1
    assert only(steering).problem == ""


# Targets that are no address


@needs_told_pids
def test_of_a_process(network: Network, steering: Steering, stack: ExitStack) -> None:
    target = steering.process_target(os.getpid())
    one = Mapping.make(MappingKey.parse("tcp", "any", "5555"), target)
    (added,) = steering.add([one])
    assert added.state == "pending"
    with managed() as manager:
        daemon = stack.enter_context(listen("127.0.0.1", 2222))
        manager.wait_for(": adopted ")
        assert lands_on(network.client, IPV4, 5555, daemon)
        stack.enter_context(listen("127.0.0.1", 2223))
        assert "127.0.0.1:2222, 127.0.0.1:2223" in manager.wait_for("on several")
        assert lands_on(network.client, IPV4, 5555, daemon)
        assert only(steering).problem == (
            f"pid {os.getpid()} listens on several: 127.0.0.1:2222, 127.0.0.1:2223"
        )
    steering.remove_all()
    with pytest.raises(Conflict, match=r"on several: 127.0.0.1:2222, 127.0.0.1:2223"):
        steering.add([one])
    assert steering.mappings() == []


@needs_told_pids
def test_of_a_unit(network: Network, steering: Steering) -> None:
    """Of every process of it, whichever family its sockets have, and of the next that runs."""
    name = f"zfwtest{os.getpid()}"
    slice_, unit = Path(systemd_mounts()[0]) / f"{name}.slice", f"{name}.service"
    one = Mapping.make(MappingKey.parse("tcp", "any", "5555"), UnitTarget(unit))
    (added,) = steering.add([one])
    assert added.state == "pending"
    kept = []

    def serve() -> None:
        (slice_ / unit / "cgroup.procs").write_text(str(os.getpid()))
        kept.append(listen("127.0.0.1", 2222))
        kept.append(listen("::1", 2223))

    slice_.mkdir()
    try:
        with managed() as manager:
            for _ in range(2):
                (slice_ / unit).mkdir()
                with child(serve) as daemon:
                    for _ in range(2):
                        manager.wait_for(f"adopted the socket of process {daemon.pid}")
                    assert only(steering).state == "steering"
                    for address in (IPV4, IPV6):
                        with connected(network.client, address, 5555) as ours:
                            assert ours.getpeername()[0] == address
                (slice_ / unit).rmdir()
                assert is_refused(network.client, IPV4, 5555)
    finally:
        if (slice_ / unit).exists():
            (slice_ / unit).rmdir()
        slice_.rmdir()


def test_a_unit_that_runs_already(network: Network, steering: Steering) -> None:
    name = f"zfwtest{os.getpid()}b"
    slice_, unit = Path(systemd_mounts()[0]) / f"{name}.slice", f"{name}.service"
    kept = []

    def serve() -> None:
        (slice_ / unit / "cgroup.procs").write_text(str(os.getpid()))
        kept.append(listen("127.0.0.1", 2222))
        kept.append(datagrams("127.0.0.1", 53))
        kept.append(datagrams("127.0.0.1", 5353))

    slice_.mkdir()
    (slice_ / unit).mkdir()
    try:
        with child(serve) as daemon:
            target = UnitTarget(unit)
            steering.add(
                [
                    Mapping.make(MappingKey.parse("tcp", "any", "5555"), target),
                    Mapping.make(MappingKey.parse("udp", "any", "53"), target),
                ]
            )
            for listed in steering.mappings():
                assert listed.state == "steering"
                assert [each.pids for each in listed.sockets] == [[daemon.pid]]
            with connected(network.client, IPV4, 5555):
                pass
    finally:
        (slice_ / unit).rmdir()
        slice_.rmdir()


def test_an_mptcp_listener_is_told(network: Network, steering: Steering, stack: ExitStack) -> None:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
    made.bind(("127.0.0.1", 2222))
    made.listen()
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    found = only(steering)
    assert (found.state, found.problem) == (
        "pending",
        "an MPTCP socket listens there, which cannot be steered to",
    )
    assert is_refused(network.client, IPV4, 5555)


def test_no_such_process(steering: Steering) -> None:
    with pytest.raises(NotFound, match="no such process: 4194304"):
        steering.process_target(1 << 22)


# UDP


@pytest.mark.parametrize(("bound", "asked"), [("127.0.0.5", IPV4), ("fd00::7", IPV6)])
def test_a_datagram_and_its_answer(
    network: Network, steering: Steering, bound: str, asked: str
) -> None:
    network.gateway.add_addresses("lo", "fd00::7/128")
    target = f"[{bound}]:53" if ":" in bound else f"{bound}:53"
    steering.add([mapping("udp", asked, "53", target)])
    with managed() as manager, network.client.entered():
        family = socket.AF_INET6 if ":" in asked else socket.AF_INET
        client = socket.socket(family, socket.SOCK_DGRAM)
        with client:
            client.connect((asked, 53))
            client.settimeout(30)
            for _ in range(3):
                with network.gateway.entered():
                    daemon = datagrams(bound, 53)
                with daemon:
                    manager.wait_for(": adopted ")
                    client.send(b"question")
                    data, source = daemon.recvfrom(99)
                    daemon.sendto(b"answer", source)
                    # A connected socket takes what comes from where it asked, and nothing else.
                    assert (data, client.recv(99)) == (b"question", b"answer")


def test_a_daemon_that_starts_as_another_ends_is_adopted_once(steering: Steering) -> None:
    """A busy manager meets both events late, and the first one makes it scan."""
    steering.add([mapping("udp", IPV4, "53", "127.0.0.5:53")])
    with managed() as manager:
        with datagrams("127.0.0.5", 53):
            manager.wait_for(": adopted ")
            os.kill(manager.pid, signal.SIGSTOP)
        try:
            later = datagrams("127.0.0.5", 53)
        finally:
            os.kill(manager.pid, signal.SIGCONT)
        with later:
            manager.wait_for(": adopted ")
            steering.add([mapping("udp", IPV4, "54", "127.0.0.5:54")])
            with datagrams("127.0.0.5", 54):
                assert ":54" in manager.wait_for(": adopted ")


def test_connected_sockets_of_udp_keep_their_datagrams(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(datagrams("127.0.0.5", 53))
    with network.client.entered():
        client = stack.enter_context(datagrams(network.client_ipv4, 5300))
    peer = stack.enter_context(datagrams(IPV4, 53))
    peer.connect((network.client_ipv4, 5300))
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53", is_override=True)])
    client.sendto(b"to the peer", (IPV4, 53))
    assert peer.recv(99) == b"to the peer"
    with network.client.entered():
        other = stack.enter_context(datagrams(network.client_ipv4, 5301))
    other.sendto(b"to the daemon", (IPV4, 53))
    assert daemon.recv(99) == b"to the daemon"


def test_an_exact_socket_of_udp_keeps_its_datagrams(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    stack.enter_context(datagrams("127.0.0.5", 53))
    exact = stack.enter_context(datagrams(IPV4, 53))
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53")])
    with network.client.entered():
        client = stack.enter_context(datagrams(network.client_ipv4, 0))
    client.sendto(b"hello", (IPV4, 53))
    assert exact.recv(99) == b"hello"
    assert only(steering).counters[:3] == (1, 1, 0)


# What is written


def test_apply_makes_it_equal_and_keeps_what_stays(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    stays = mapping("tcp", "any", "5555", "127.0.0.1:2222")
    steering.add([stays, mapping("tcp", "any", "1-9", "127.0.0.1:1", label="old")])
    assert lands_on(network.client, IPV4, 5555, daemon)
    applied = steering.apply([stays, mapping("tcp", "any", "6666", "127.0.0.1:2222")])
    assert applied == (1, 0, 1, 1, 0)
    assert [each.counters.lookups for each in steering.mappings()] == [1, 0]
    assert lands_on(network.client, IPV4, 6666, daemon)
    applied = steering.apply([mapping("tcp", "any", "5555", "127.0.0.1:3333")])
    assert applied == (0, 1, 1, 0, 1)
    assert is_refused(network.client, IPV4, 5555)
    assert steering.apply([]) == (0, 0, 1, 0, 0)
    assert steering.mappings() == []


def test_what_is_not_possible_changes_nothing(steering: Steering) -> None:
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    before = steering.mappings()
    with pytest.raises(Conflict, match=r"steered already, to 127\.0\.0\.1:2222"):
        steering.add(
            [
                mapping("tcp", "any", "1", "127.0.0.1:1"),
                mapping("tcp", "any", "5555", "127.0.0.1:3333"),
            ]
        )
    with pytest.raises(NotFound, match="no such mapping"):
        steering.remove(MappingKey.parse("tcp", "any", "1"))
    with pytest.raises(NotFound, match="no mapping has this label"):
        steering.remove_all("none")
    many = [mapping("tcp", "any", str(port), f"127.0.0.1:{port}") for port in range(1, 4100)]
    with pytest.raises(MapFull, match="more than 4096 targets"):
        steering.apply(many)
    assert steering.mappings() == before


def test_a_full_map_leaves_what_was(
    network: Network,
    steering: Steering,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    before = steering.mappings()
    original = Maps.empty_table
    # One element less than it takes.
    monkeypatch.setattr(
        Maps,
        "empty_table",
        lambda tables, number, size=1: original(tables, number, max(1, size - 1)),
    )
    with pytest.raises(MapFull, match="2 mappings"):
        steering.add([mapping("tcp", "any", "6666", "127.0.0.1:3333")])
    assert steering.mappings() == before
    assert len(Maps(STORE.directory(steering.cookie)).addressed()) == 1
    assert lands_on(network.client, IPV4, 5555, daemon)
    assert is_refused(network.client, IPV4, 6666)


def test_many_mappings_and_targets(network: Network, steering: Steering, stack: ExitStack) -> None:
    daemon = stack.enter_context(listen("127.0.0.1", 2222))
    many = [
        mapping(
            "tcp", f"10.{number >> 8}.{number & 255}.0/24", "80", f"127.0.0.1:{number % 4000 + 1}"
        )
        for number in range(9 * 256, 9 * 256 + 20_000)
    ]
    target = many[0]._replace(target=mapping("tcp", "any", "1", "127.0.0.1:2222").target)
    steering.apply([target, *many[1:]])
    assert len(steering.mappings()) == 20_000
    assert lands_on(network.client, IPV4, 80, daemon)


# Several namespaces


def test_namespaces_are_apart(network: Network, steering: Steering, stack: ExitStack) -> None:
    other = stack.enter_context(Namespace())
    path = other.path
    there = Steering(path)
    assert there.cookie != steering.cookie
    with other.entered():
        daemon = stack.enter_context(listen("127.0.0.1", 2222))
    there.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert steering.mappings() == []
    assert lands_on(other, "127.0.0.9", 5555, daemon)
    assert is_refused(network.client, IPV4, 5555)
    # A daemon of another namespace is none of this one's.
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    assert only(steering).state == "pending"
    there.detach()
    assert only(steering).mapping.key.ports == (5555, 5555)


def test_what_is_left_of_a_namespace_that_is_gone_is_removed(
    steering: Steering, stack: ExitStack
) -> None:
    gone = Namespace()
    with gone.entered():
        before = Steering()
        before.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
        cookie = before.cookie
    del before
    gone.close()
    assert Path(STORE.directory(cookie)).is_dir()

    def is_removed() -> bool:
        # The kernel takes a while to end it; the next one that begins to steer cleans up.
        with Namespace() as new, new.entered():
            made = Steering()
            made.add([])
            made.detach()
        return not Path(STORE.directory(cookie)).exists()

    assert wait_until(is_removed)


@pytest.mark.parametrize("path", ["/", "/dev/null", "/proc/self/status"])
def test_a_path_that_is_no_namespace(path: str) -> None:
    with pytest.raises(UsageError, match="not a network namespace"):
        Steering(path)


def test_list_is_what_apply_reads(steering: Steering) -> None:
    from zfw_py.cli.commands.steer.list import as_object

    steering.add(
        [
            mapping("tcp", "any", "5555", "127.0.0.1:2222", label="a", is_override=True),
            mapping("udp", IPV6, "53", "[::1]:53", is_fallthrough=True),
            Mapping.make(
                MappingKey.parse("tcp", "10.0.0.0/8", "1-9"), steering.process_target(os.getpid())
            ),
        ]
    )
    before = steering.mappings()
    written = json.dumps([as_object(each) for each in before]).encode()
    assert steering.apply_entries(decode(written), "it") == (0, 0, 0, 3, 3)
    assert steering.mappings() == before
    steering.detach()
    assert steering.apply_entries(decode(written), "it") == (3, 0, 0, 0, 3)
    assert steering.mappings() == before


def test_sockets_for_each_client_do_not_push_out_the_one_for_all(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    """As a QUIC or DTLS server has them: bound like the listener, and connected at once."""
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53")])

    def bound() -> socket.socket:
        made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.5", 53))
        return made

    with managed() as manager:
        daemon = bound()
        daemon.settimeout(30)
        manager.wait_for(": adopted ")
        with network.client.entered():
            client = stack.enter_context(datagrams(network.client_ipv4, 0))
        for number in range(40):
            bound().connect(("127.0.0.6", 1000 + number))
            client.sendto(b"%d" % number, (IPV4, 53))
            assert daemon.recv(99) == b"%d" % number


def test_a_manager_of_another_namespace(network: Network, steering: Steering) -> None:
    path = network.gateway.path
    steering.add([mapping("udp", "any", "53", "127.0.0.5:53")])
    with (
        network.client.entered(),
        managed(netns=path) as manager,
        network.gateway.entered(),
        datagrams("127.0.0.5", 53),
    ):
        manager.wait_for(": adopted ")
