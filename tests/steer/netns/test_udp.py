# SPDX-License-Identifier: GPL-2.0-only
"""UDP that is steered: clients get their answers from where they asked, or an error."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.elements import flow_key, flow_parts, flow_value
from tests.steer.support.gateway import datagrams
from tests.steer.support.installed import cookie_of, packed, steered
from tests.steer.support.packets import context_of
from tests.steer.support.reference import Mapping, Packet
from tests.support.pids import is_told
from tests.support.sockets import disconnect, error_of
from zfw_py.kernel import bpf_run
from zfw_py.steer import layout
from zfw_py.steer.codec import Counter as Counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.steer.support.installed import Steered
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

UDP = socket.IPPROTO_UDP
DNS, OTHER = 0, 1
# include/uapi/linux/in.h; not in Python's socket.
IP_PKTINFO = 8


@pytest.fixture
def programs(network: Network) -> Iterator[Steered]:
    """In force on the gateway, which has two addresses of each family for its clients."""
    for address in ("fd00::7/128", "10.9.0.11/24", "fd09::11/64"):
        device = "lo" if address.startswith("fd00") else network.interface
        network.gateway.add_addresses(device, address)
    with steered() as made:
        yield made
        assert made.troubles() == {}


def _client(network: Network, address: str, port: int) -> socket.socket:
    """A socket beyond the gateway's interface that hears from there and nowhere else."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with network.client.entered():
        made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(20)
    made.connect((address, port))
    return made


def _mapping(number: int, target: int, port: int | None, **flags: bool) -> Mapping:
    return Mapping(number, UDP, None, None if port is None else (port, port), target, **flags)


def _answer(daemon: socket.socket) -> None:
    """As plain daemons do: back to whom it came from."""
    question, client = daemon.recvfrom(100)
    daemon.sendto(question.upper(), client)


@pytest.mark.parametrize(
    ("daemon", "asked"),
    [
        ("127.0.0.5", "10.9.0.1"),
        ("127.0.0.5", "10.9.0.11"),
        ("::ffff:127.0.0.5", "10.9.0.11"),
        ("0.0.0.0", "10.9.0.1"),
        ("0.0.0.0", "10.9.0.11"),
        ("::", "10.9.0.11"),
        ("::", "fd09::11"),
        ("fd00::7", "fd09::1"),
        ("fd00::7", "fd09::11"),
    ],
)
def test_an_answer_comes_from_where_was_asked(
    programs: Steered, network: Network, daemon: str, asked: str
) -> None:
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams(daemon, 53) as server, _client(network, asked, 53) as client:
        programs.put(DNS, server)
        for question in (b"first", b"second"):
            client.send(question)
            _answer(server)
            assert client.recv(100) == question.upper()
    assert programs.counter(1) == Counts(lookups=2, kept_by_listener=0, no_socket=0)


def test_without_the_hook_a_daemon_on_loopback_cannot_answer(
    programs: Steered, network: Network
) -> None:
    """Why it is there."""
    programs.apply([_mapping(1, DNS, 53)])
    os.close(programs.links.pop("sendmsg4"))
    with datagrams("127.0.0.5", 53) as server, _client(network, "10.9.0.1", 53) as client:
        programs.put(DNS, server)
        client.send(b"question")
        assert error_of(lambda: _answer(server)) == "EINVAL"


def test_two_clients_and_two_addresses_are_told_apart(programs: Steered, network: Network) -> None:
    programs.apply([_mapping(1, DNS, 53)])
    with (
        datagrams("127.0.0.5", 53) as server,
        _client(network, "10.9.0.1", 53) as one,
        _client(network, "10.9.0.11", 53) as other,
    ):
        programs.put(DNS, server)
        one.send(b"one")
        other.send(b"other")
        for _ in range(2):
            _answer(server)
        assert one.recv(100) == b"ONE"
        assert other.recv(100) == b"OTHER"


def test_who_asks_a_daemon_at_its_own_address_is_answered_from_there(
    programs: Steered, network: Network
) -> None:
    programs.apply([_mapping(1, DNS, 53)])
    network.client.run("ip", "route", "add", "fd00::7/128", "via", network.gateway_ipv6)
    with datagrams("fd00::7", 53) as server, _client(network, "fd09::11", 53) as client:
        programs.put(DNS, server)
        for asked in ("fd09::11", "fd09::1", "fd00::7", "fd09::1", "fd00::7"):
            client.connect((asked, 53))
            client.send(b"question")
            _answer(server)
            assert client.recv(100) == b"QUESTION"


def test_who_asked_a_daemon_of_all_addresses_long_ago_is_no_client(
    programs: Steered, network: Network
) -> None:
    """It may have asked elsewhere since; one of a daemon with an address of its own has not."""
    programs.apply([_mapping(1, DNS, 53)])
    for bound, is_forgotten in (("0.0.0.0", True), ("127.0.0.5", False)):
        server = datagrams(bound, 53)
        programs.put(DNS, server)
        with network.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.sendto(b"question", ("10.9.0.11", 53))
            question, sender = server.recvfrom(100)
            for key, value in list(programs.maps["flows"].items()):
                address, seen = flow_parts(value)
                long_ago = (seen - (layout.FLOW_LIFETIME + 5) * 10**9) % 2**64
                programs.maps["flows"].update(key, flow_value(address, long_ago))
            server.sendto(question, sender)
            answered = "10.9.0.1" if is_forgotten else "10.9.0.11"
            assert client.recvfrom(100)[1] == (answered, 53)
        server.close()


def test_what_a_daemon_sends_unasked_leaves_as_it_always_did(
    programs: Steered, network: Network
) -> None:
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams("0.0.0.0", 53) as server, _client(network, "10.9.0.11", 53) as client:
        programs.put(DNS, server)
        client.send(b"question")
        _answer(server)
        assert client.recv(100) == b"QUESTION"
        with network.client.entered():
            third = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with third:
            third.bind(("0.0.0.0", 0))
            third.settimeout(20)
            server.sendto(b"news", (network.client_ipv4, third.getsockname()[1]))
            assert third.recvfrom(100) == (b"news", ("10.9.0.1", 53))


PKTINFO = {
    # The daemon's address; the one asked; the one it answers from; how it says so.
    "IPv4": (
        *("0.0.0.0", "10.9.0.11", "10.9.0.1"),
        (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + socket.inet_aton("10.9.0.1") + bytes(4)),
    ),
    "IPv6": (
        *("::", "fd09::11", "fd09::1"),
        (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed("fd09::1") + bytes(4)),
    ),
}


@pytest.mark.parametrize("family", PKTINFO)
def test_a_daemon_may_say_itself_from_where(
    programs: Steered, network: Network, family: str
) -> None:
    """With IP_PKTINFO, as unbound and dnsmasq do: steer then leaves the address alone."""
    programs.apply([_mapping(1, DNS, 53)])
    daemon, asked, own, says = PKTINFO[family]
    with datagrams(daemon, 53) as server:
        with network.client.entered():
            client = socket.socket(server.family, socket.SOCK_DGRAM)
        with client:
            programs.put(DNS, server)
            client.settimeout(20)
            client.sendto(b"question", (asked, 53))
            _, sender = server.recvfrom(100)
            server.sendmsg([b"answer"], [says], 0, sender)
            assert client.recvfrom(100)[1][:2] == (own, 53)


def test_connected_sockets_keep_what_is_theirs(programs: Steered, network: Network) -> None:
    """They are found before any look-up, whatever a mapping says."""
    programs.apply([_mapping(1, DNS, None, is_override=True)])
    with (
        datagrams("127.0.0.5", 53) as server,
        _client(network, "10.9.0.1", 7000) as client,
        datagrams("10.9.0.1", 7000) as theirs,
    ):
        programs.put(DNS, server)
        theirs.connect((network.client_ipv4, client.getsockname()[1]))
        client.send(b"to the connected one")
        assert theirs.recv(100) == b"to the connected one"
        theirs.send(b"and back")
        assert client.recv(100) == b"and back"
    assert programs.counter(1) == Counts(lookups=0, kept_by_listener=0, no_socket=0)


def test_a_socket_that_was_connected_leaves_others_to_the_one_before(
    programs: Steered, network: Network
) -> None:
    """As of daemons that make a socket for each client, bound where the first one is."""
    programs.apply([_mapping(1, DNS, 53)])
    first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with first, second, _client(network, "10.9.0.11", 53) as client:
        for made in (first, second):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("127.0.0.5", 53))
            made.settimeout(20)
            programs.put(DNS, made)
        second.connect(("127.0.0.9", 9))
        client.send(b"question")
        _answer(first)
        assert client.recv(100) == b"QUESTION"
        disconnect(second)
        client.send(b"another")
        assert second.recv(100) == b"another"


def test_whoever_is_bound_there_exactly_keeps_it(programs: Steered, network: Network) -> None:
    programs.apply([_mapping(1, DNS, None)])
    with (
        datagrams("127.0.0.5", 53) as server,
        datagrams("10.9.0.1", 7000) as exact,
        _client(network, "10.9.0.1", 7000) as client,
        _client(network, "10.9.0.11", 7000) as elsewhere,
    ):
        programs.put(DNS, server)
        client.send(b"exact")
        assert exact.recv(100) == b"exact"
        elsewhere.send(b"steered")
        assert server.recv(100) == b"steered"
    assert programs.counter(1) == Counts(lookups=2, kept_by_listener=1, no_socket=0)


def test_a_socket_that_is_connected_to_one_client_leaves_the_others_to_the_mapping(
    programs: Steered, network: Network
) -> None:
    programs.apply([_mapping(1, DNS, None)])
    with (
        datagrams("127.0.0.5", 53) as server,
        datagrams("10.9.0.1", 7000) as exact,
        _client(network, "10.9.0.1", 7000) as client,
        _client(network, "10.9.0.1", 7000) as other,
    ):
        programs.put(DNS, server)
        other.send(b"kept")
        assert exact.recv(100) == b"kept"
        exact.connect((network.client_ipv4, client.getsockname()[1]))
        other.send(b"steered")
        assert server.recv(100) == b"steered"
        client.send(b"to the connected one")
        assert exact.recv(100) == b"to the connected one"
        disconnect(exact)
        other.send(b"kept again")
        assert exact.recv(100) == b"kept again"
    assert programs.counter(1) == Counts(lookups=3, kept_by_listener=2, no_socket=0)


def test_without_its_daemon_a_client_is_told_so(programs: Steered, network: Network) -> None:
    """By ICMP; and whoever is bound to all addresses does not get it instead."""
    programs.apply([_mapping(1, DNS, 7000)])
    with datagrams("0.0.0.0", 7000) as wild, _client(network, "10.9.0.1", 7000) as client:
        client.send(b"anybody?")
        assert error_of(lambda: client.recv(100)) == "ECONNREFUSED"
        wild.setblocking(False)
        with pytest.raises(BlockingIOError):
            wild.recv(100)
    assert programs.counter(1) == Counts(lookups=1, kept_by_listener=0, no_socket=1)


def test_a_group_of_sockets_is_balanced_and_answers(programs: Steered, network: Network) -> None:
    """The kernel chooses among them after us: what a client asked is known to them all."""
    programs.apply([_mapping(1, DNS, 53)])
    group = []
    for _ in range(4):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.5", 53))
        made.setblocking(False)
        group.append(made)
    programs.put(DNS, group[0])
    answered = set()
    for _ in range(96):
        with _client(network, "10.9.0.11", 53) as client:
            client.send(b"question")
            for number, one in enumerate(group):
                if error_of(lambda one=one: _answer(one)) == "":  # type: ignore[misc]
                    answered.add(number)
            assert client.recv(100) == b"QUESTION"
    assert answered == {0, 1, 2, 3}
    for made in group:
        made.close()


def _flood(programs: Steered, count: int) -> None:
    """Look-ups of so many clients whose packets nobody receives."""
    for number in range(count):
        packet = Packet(
            UDP,
            IPv4Address("10.9.0.1"),
            53,
            IPv4Address(0x0B000000 + number),
            1024 + number % 60_000,
            0,
        )
        assert bpf_run.run(programs.programs["lookup"], b"", context_of(packet)).returned == 1


def test_a_flood_without_answers_costs_no_client_that_was_answered(
    programs: Steered, network: Network
) -> None:
    """A firewall looks up what it drops: those are the look-ups of the flood."""
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams("127.0.0.5", 53) as server, _client(network, "10.9.0.1", 53) as client:
        programs.put(DNS, server)
        client.send(b"before")
        question, sender = server.recvfrom(100)
        server.sendto(question.upper(), sender)
        assert client.recv(100) == b"BEFORE"
        _flood(programs, layout.FLOWS + 20_000)
        known = sum(1 for _ in programs.maps["flows"].items())
        assert layout.FLOWS // 2 < known <= layout.FLOWS
        server.sendto(b"and more", sender)
        assert client.recv(100) == b"and more"
        client.send(b"after")
        _answer(server)
        assert client.recv(100) == b"AFTER"
        flow = flow_key(
            packed(network.client_ipv4), client.getsockname()[1], packed("127.0.0.5"), 53
        )
        assert (programs.maps["answered"].lookup(flow) or b"").startswith(packed("10.9.0.1"))
        assert programs.maps["flows"].lookup(flow) is None


def test_a_flood_of_answered_clients_costs_answers_and_no_more(
    programs: Steered, network: Network
) -> None:
    """What is kept of clients has an end; a client that asks again is known again."""
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams("127.0.0.5", 53) as server, _client(network, "10.9.0.1", 53) as client:
        programs.put(DNS, server)
        client.send(b"before")
        _answer(server)
        assert client.recv(100) == b"BEFORE"
        keys = [
            flow_key(packed(IPv4Address(0x0B000000 + number)), 53, packed("127.0.0.5"), 53)
            for number in range(layout.FLOWS + 20_000)
        ]
        programs.maps["answered"].update_many(keys, [flow_value(packed("10.9.0.1"), 0)] * len(keys))
        client.send(b"after")
        _answer(server)
        assert client.recv(100) == b"AFTER"


def test_a_client_without_a_port_is_not_recorded(programs: Steered) -> None:
    """No answer can be sent there. The firewall looks its own listener up so."""
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams("127.0.0.5", 53) as server:
        programs.put(DNS, server)
        packet = Packet(UDP, IPv4Address("10.9.0.1"), 53, IPv4Address("10.9.0.2"), 0, 0)
        assert bpf_run.run(programs.programs["lookup"], b"", context_of(packet)).returned == 1
    assert list(programs.maps["flows"].items()) == []


def test_a_forged_question_takes_no_answer_once_its_client_has_asked_again(
    programs: Steered, network: Network
) -> None:
    """The answers to a client go to that client, whatever address they come from."""
    programs.apply([_mapping(1, DNS, 53)])
    with datagrams("127.0.0.5", 53) as server, _client(network, "10.9.0.1", 53) as client:
        programs.put(DNS, server)
        client.send(b"first")
        _answer(server)
        assert client.recv(100) == b"FIRST"
        forged = Packet(
            UDP,
            IPv4Address("10.9.0.11"),
            53,
            IPv4Address(network.client_ipv4),
            client.getsockname()[1],
            0,
        )
        bpf_run.run(programs.programs["lookup"], b"", context_of(forged))
        for question in (b"second", b"third"):
            client.send(question)
            _answer(server)
            assert client.recv(100) == question.upper()


def test_a_daemon_that_comes_is_told_of(programs: Steered, network: Network) -> None:
    """No hook may put it into a map of sockets: whoever hears of it does."""
    programs.name_target(DNS, UDP, "127.0.0.5", 53)
    programs.apply([_mapping(1, DNS, 53)])
    for _ in range(3):
        with datagrams("127.0.0.5", 53) as server, _client(network, "10.9.0.1", 53) as client:
            (event,) = programs.take_events()
            assert (event.kind, event.target, event.is_adopted) == ("came", DNS, False)
            assert event.cookie == cookie_of(server)
            assert is_told(event.listener.pid, os.getpid())
            programs.put(DNS, server)
            client.send(b"question")
            _answer(server)
            assert client.recv(100) == b"QUESTION"
        (event,) = programs.take_events()
        assert (event.kind, event.target) == ("left", DNS)
        assert programs.sockets(DNS) == []
