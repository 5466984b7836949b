# SPDX-License-Identifier: GPL-2.0-only
"""Which socket an intercepted packet goes to, among all that it might."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    FAMILIES,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    SOME,
    Gateway,
    exchange,
    families,
    ip,
    is_silent,
    listening,
    transparent_socket,
)
from tests.firewall.support.listeners import IP_RECVORIGDSTADDR, LOOPBACK
from tests.support.kernels import needs_kernel
from tests.support.sockets import retransmissions
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

ANY = {4: "0.0.0.0", 6: "::"}
IPPROTO_MPTCP = getattr(socket, "IPPROTO_MPTCP", 262)
UDP_SEGMENT = 103


def plain_socket(protocol: str, family: int, address: str, port: int = 0) -> socket.socket:
    """A socket as any program opens one: not transparent, and not listening yet."""
    made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(PATIENCE)
    made.bind((address, port))
    return made


@contextmanager
def sysctl(namespace: Namespace, name: str, value: str) -> Iterator[None]:
    """A setting of a network namespace, for the length of a with block."""
    path = Path("/proc/sys/net") / name
    with namespace.entered():
        before = path.read_text()
        path.write_text(value)
    try:
        yield
    finally:
        with namespace.entered():
            path.write_text(before)


# None there, or none that fits


@families
@protocols
def test_without_a_listener_it_drops_in_silence(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family) as gone:
        pass
    rule = gateway.insert(SERVICE[family], protocol, 80, to=gone.port)
    gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")
    assert gateway.hits(rule) == 1


@families
@protocols
def test_a_listener_that_starts_anew_is_found(gateway: Gateway, protocol: str, family: int) -> None:
    """On the old port by itself, on a new one when the rule is inserted again."""
    with listening(protocol, family) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)
    gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")
    with listening(protocol, family, listener.port) as again:
        gateway.talks(again, SERVICE[family], 80)
    with listening(protocol, family) as elsewhere:
        gateway.insert(SERVICE[family], protocol, 80, to=elsewhere.port)
        gateway.talks(elsewhere, SERVICE[family], 80)


@families
@protocols
def test_a_listener_of_the_other_family_is_none(
    gateway: Gateway, protocol: str, family: int
) -> None:
    (other,) = set(FAMILIES) - {family}
    with listening(protocol, other) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")
        assert is_silent(listener.socket)


@protocols
def test_a_wildcard_ipv4_listener_takes_no_ipv6(gateway: Gateway, protocol: str) -> None:
    with listening(protocol, 4, 0, ANY[4]) as listener:
        gateway.insert(SERVICE[6], protocol, 80, to=listener.port)
        gateway.is_dropped(protocol, SERVICE[6], 80, "no_listener")


@protocols
def test_an_ipv6_only_listener_takes_no_ipv4(gateway: Gateway, protocol: str) -> None:
    made = socket.socket(socket.AF_INET6, SOCKET_KIND[protocol])
    with made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("::", 0))
        if protocol == "tcp":
            made.listen()
        gateway.insert(SERVICE[4], protocol, 80, to=made.getsockname()[1])
        gateway.is_dropped(protocol, SERVICE[4], 80, "no_listener")


@families
@protocols
def test_a_listener_of_the_other_protocol_is_none(
    gateway: Gateway, protocol: str, family: int
) -> None:
    (other,) = set(PROTOCOLS) - {protocol}
    with listening(other, family) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")


@families
@protocols
def test_a_listener_elsewhere_than_on_loopback_is_none(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family, 0, GATEWAY[family]) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")


@families
def test_a_tcp_socket_that_does_not_listen_is_none(gateway: Gateway, family: int) -> None:
    with plain_socket("tcp", family, LOOPBACK[family]) as bound:
        gateway.insert(SERVICE[family], "tcp", 80, to=bound.getsockname()[1])
        gateway.is_dropped("tcp", SERVICE[family], 80, "no_listener")
        bound.listen()
        with gateway.client_socket("tcp", family) as client:
            client.connect((SERVICE[family], 80))


@families
def test_a_connected_udp_socket_on_the_port_is_none(gateway: Gateway, family: int) -> None:
    """Not even one that is connected to this very client, as IPv6 allows it."""
    with (
        transparent_socket((LOOPBACK[family], 0)) as proxy,
        gateway.client_socket("udp", family, CLIENT[family]) as client,
    ):
        proxy.connect({4: (LOOPBACK[4], 9), 6: client.getsockname()[:2]}[family])
        gateway.insert(SERVICE[family], "udp", 80, to=proxy.getsockname()[1])
        client.connect((SERVICE[family], 80))
        with gateway.counts(no_listener=1):
            client.send(b"question")
        assert is_silent(client, proxy)


# All kinds of listeners


@families
@protocols
def test_a_listener_on_any_address_takes_it(gateway: Gateway, protocol: str, family: int) -> None:
    with listening(protocol, family, 0, ANY[family]) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)


def test_a_dual_stack_tcp_listener_takes_both_families(gateway: Gateway) -> None:
    with listening("tcp", 6, 0, ANY[6]) as listener:
        for family in FAMILIES:
            gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
            with gateway.counts(rule_intercept=1, established=SOME):
                gateway.talks(listener, SERVICE[family], 80)


def test_a_dual_stack_udp_socket_takes_both_families(gateway: Gateway) -> None:
    with listening("udp", 6, 0, ANY[6]) as listener:
        listener.socket.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
        for family in FAMILIES:
            gateway.insert(SERVICE[family], "udp", 80, to=listener.port)
        gateway.talks(listener, SERVICE[6], 80)
        with gateway.counts(rule_intercept=1):
            gateway.send(frames.datagram(SERVICE[4], 80))
        data, ancillary, _, source = listener.socket.recvmsg(100, 256)
        assert (data, source[0]) == (b"data", f"::ffff:{CLIENT[4]}")
        originals = [
            value[4:8] for level, _, value in ancillary if level == socket.SOL_IP and value
        ]
        assert originals == [socket.inet_aton(SERVICE[4])]


@families
@protocols
def test_a_listener_need_not_be_transparent(gateway: Gateway, protocol: str, family: int) -> None:
    with plain_socket(protocol, family, LOOPBACK[family]) as listener:
        if protocol == "tcp":
            listener.listen()
        gateway.insert(SERVICE[family], protocol, 80, to=listener.getsockname()[1])
        with gateway.client_socket(protocol, family) as client:
            client.connect((SERVICE[family], 80))
            client.send(b"question")
            if protocol == "udp":
                assert listener.recv(100) == b"question"
                return
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100) == b"question"


@families
@pytest.mark.parametrize("client_protocol", [0, IPPROTO_MPTCP], ids=["tcp", "mptcp"])
def test_an_mptcp_listener_takes_it(gateway: Gateway, client_protocol: int, family: int) -> None:
    """Go opens these by default."""
    kind = SOCKET_FAMILY[family], socket.SOCK_STREAM
    with gateway.client.entered():
        client = socket.socket(*kind, client_protocol)
    client.settimeout(PATIENCE)
    with client, socket.socket(*kind, IPPROTO_MPTCP) as listener:
        listener.setsockopt(*frames.TRANSPARENT[family], 1)
        listener.settimeout(PATIENCE)
        listener.bind((LOOPBACK[family], 0))
        listener.listen()
        gateway.insert(SERVICE[family], "tcp", 80, to=listener.getsockname()[1])
        with gateway.counts(rule_intercept=1, established=SOME):
            client.connect((SERVICE[family], 80))
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                assert connection.getsockname()[:2] == (SERVICE[family], 80)
                exchange(client, connection)


@needs_kernel(6, 6)
@families
@protocols
def test_a_reuseport_group_takes_it_between_them(
    gateway: Gateway, protocol: str, family: int
) -> None:
    flows = 32
    with ExitStack() as stack:
        group: list[socket.socket] = []
        for _ in range(4):
            each = stack.enter_context(socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol]))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.setsockopt(*frames.TRANSPARENT[family], 1)
            each.bind((LOOPBACK[family], group[0].getsockname()[1] if group else 0))
            if protocol == "tcp":
                each.listen(flows)
            each.setblocking(False)
            group.append(each)
        gateway.insert(SERVICE[family], protocol, 80, to=group[0].getsockname()[1])
        with gateway.counts(rule_intercept=flows, **AFTERWARDS[protocol]):
            for _ in range(flows):
                client = stack.enter_context(gateway.client_socket(protocol, family))
                client.connect((SERVICE[family], 80))
                client.send(b"question")
        taken = [0] * len(group)

        def take() -> bool:
            for ready in select.select(group, [], [], 0)[0]:
                taken[group.index(ready)] += 1
                if protocol == "tcp":
                    stack.enter_context(ready.accept()[0])
                else:
                    ready.recv(100)
            return sum(taken) == flows

        assert wait_until(take), f"of {flows} flows the group took {taken}"
        assert sum(count > 0 for count in taken) > 1, "one member took them all"


@families
def test_many_connections_at_once(gateway: Gateway, family: int) -> None:
    with listening("tcp", family) as listener, ExitStack() as stack:
        gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
        with gateway.counts(rule_intercept=60, established=SOME):
            clients = [
                stack.enter_context(gateway.attempt("tcp", SERVICE[family], 80)) for _ in range(60)
            ]
            ports = {stack.enter_context(listener.accept()).getpeername()[1] for _ in range(60)}
        assert ports == {client.getsockname()[1] for client in clients}


# Sockets that are in the way


@families
@protocols
@pytest.mark.parametrize("where", ["any address", "this address"])
def test_an_unrelated_socket_on_the_original_port_takes_nothing(
    gateway: Gateway, where: str, protocol: str, family: int
) -> None:
    """Whoever else has the port, a local DNS server on 0.0.0.0:53 for one."""
    address = {"any address": ANY, "this address": SERVICE}[where][family]
    with (
        transparent_socket((address, 5000), protocol) as bystander,
        listening(protocol, family) as listener,
    ):
        if protocol == "tcp":
            bystander.listen()
        gateway.insert(SERVICE[family], protocol, 5000, to=listener.port)
        with gateway.counts(rule_intercept=3, **AFTERWARDS[protocol]):
            for _ in range(3):
                if protocol == "tcp":
                    gateway.talks(listener, SERVICE[family], 5000)
                else:
                    gateway.attempt("udp", SERVICE[family], 5000).close()
                    assert listener.receive()[2] == (SERVICE[family], 5000)
        assert is_silent(bystander)


@families
def test_the_socket_that_answers_takes_nothing(gateway: Gateway, family: int) -> None:
    """A router answers from a second socket, bound to the original destination, never read."""
    original = (SERVICE[family], 5000)
    with listening("udp", family) as listener, gateway.client_socket("udp", family) as client:
        gateway.insert(SERVICE[family], "udp", 5000, to=listener.port)
        client.connect(original)
        client.send(b"1")
        _, source, destination = listener.receive()
        assert destination == original
        with transparent_socket(original) as answering, gateway.counts(rule_intercept=5):
            for number in b"23456":
                client.send(bytes((number,)))
                assert listener.receive() == (bytes((number,)), source, original)
                answering.sendto(b"answer", source)
                assert client.recv(100) == b"answer"
            assert is_silent(answering)


@families
def test_a_socket_connected_to_another_client_takes_nothing(gateway: Gateway, family: int) -> None:
    original = (SERVICE[family], 5000)
    with listening("udp", family) as listener, transparent_socket(original) as connected:
        gateway.insert(SERVICE[family], "udp", 5000, to=listener.port)
        connected.connect((CLIENT[family], 9))
        with gateway.counts(rule_intercept=1), gateway.attempt("udp", *original):
            assert listener.receive()[2] == original
        assert is_silent(connected)


# Datagrams of every size


@families
@pytest.mark.parametrize("size", [0, 1, 1400])
def test_a_datagram_of_any_size_arrives(gateway: Gateway, size: int, family: int) -> None:
    with listening("udp", family) as listener:
        gateway.insert(SERVICE[family], "udp", 53, to=listener.port)
        with gateway.counts(rule_intercept=1):
            gateway.send(frames.datagram(SERVICE[family], 53, bytes(size)))
        assert listener.receive()[0] == bytes(size)


def test_a_datagram_without_checksum_arrives(gateway: Gateway) -> None:
    with listening("udp", 4) as listener:
        gateway.insert(SERVICE[4], "udp", 53, to=listener.port)
        gateway.send(ip(SERVICE[4]) / UDP(sport=40000, dport=53, chksum=0) / b"data")
        assert listener.receive()[0] == b"data"


@families
def test_datagrams_that_come_as_one_arrive_each(gateway: Gateway, family: int) -> None:
    """What UDP_SEGMENT sends is one packet to us, and counted as one."""
    with listening("udp", family) as listener, gateway.client_socket("udp", family) as client:
        gateway.insert(SERVICE[family], "udp", 443, to=listener.port)
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        client.connect((SERVICE[family], 443))
        with gateway.counts(rule_intercept=1):
            client.send(b"".join(bytes((number,)) * 1000 for number in range(10)))
        for number in range(10):
            data, _, original = listener.receive()
            assert (data, original) == (bytes((number,)) * 1000, (SERVICE[family], 443))


# Connections that the stack does not know yet, or no longer


@families
def test_syn_cookies_work(gateway: Gateway, family: int) -> None:
    """No socket knows the third packet of the handshake: the rules have to find the listener."""
    with listening("tcp", family) as listener, sysctl(gateway.gateway, "ipv4/tcp_syncookies", "2"):
        gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
        with gateway.counts(rule_intercept=2, established=SOME):
            gateway.talks(listener, SERVICE[family], 80)


@families
@pytest.mark.parametrize("timestamps", ["1", "0"])
def test_a_source_port_in_time_wait_connects_at_once(
    gateway: Gateway, timestamps: str, family: int
) -> None:
    """The stack looks a listener up for the SYN, by its own addresses: "deliver" has ours."""
    # A port of its own: connections of other tests that are ending still hold theirs.
    port = 8080
    address = (SERVICE[family], port)
    with (
        listening("tcp", family) as listener,
        plain_socket("tcp", family, ANY[family], port) as service,
        sysctl(gateway.client, "ipv4/tcp_timestamps", timestamps),
    ):
        service.listen()
        gateway.insert(SERVICE[family], "tcp", port, to=listener.port)
        with gateway.client_socket("tcp", family) as client:
            client.connect(address)
            source = client.getsockname()
            # Closed here first, so the TIME_WAIT is the gateway's.
            listener.accept().close()
            assert client.recv(1) == b""
        assert wait_until(lambda: in_time_wait(family, source[1]))
        with (
            gateway.client_socket("tcp", family) as again,
            gateway.counts(deliver_intercept=1, established=SOME),
        ):
            again.bind(source)
            again.connect(address)
            # The TIME_WAIT answers the first one with an ACK, and the client sends it again.
            assert retransmissions(again) <= 1, "a SYN was lost"
            with listener.accept() as connection:
                exchange(again, connection)
            assert is_silent(service)


def in_time_wait(family: int, port: int) -> bool:
    """Whether the gateway has a TIME_WAIT with a client's port."""
    table = Path(f"/proc/thread-self/net/tcp{'' if family == 4 else 6}").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "06" for row in rows)
