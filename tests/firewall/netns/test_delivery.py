# SPDX-License-Identifier: GPL-2.0-only
"""What a rule intercepts reaches its listener or no socket, whatever shares it on its way up.

A packet socket takes a reference to each packet. The kernel then clones the packet, and the clone
does not have the socket that the program assigned.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    EVERYWHERE,
    GATEWAY,
    PATIENCE,
    PROTOCOLS,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    SOME,
    Gateway,
    exchange,
    families,
    is_silent,
    knock,
    listening,
    transparent_socket,
)
from tests.firewall.support.listeners import IP_TRANSPARENT, LOOPBACK
from tests.steer.support.gateway import mapping
from tests.support.kernels import needs_kernel
from tests.support.waiting import wait_until
from zfw_py import Firewall
from zfw_py.kernel import bpf_links
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

ANY = {4: "0.0.0.0", 6: "::"}
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_RX_RING = 263, 5
IPPROTO_MPTCP = getattr(socket, "IPPROTO_MPTCP", 262)
NOBODY = 65534


def _tap(family: int, kind: str) -> socket.socket:
    """A packet socket of this kind, for the packets of a family."""
    is_for_all = kind == "all protocols"
    protocol = _ETH_P_ALL if is_for_all else ETHERTYPE[family]
    made = socket.socket(
        socket.AF_PACKET,
        socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_RAW,
        socket.htons(protocol),
    )
    if kind == "ring":
        # struct tpacket_req: block size, blocks, frame size, frames.
        made.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("=IIII", 4096, 16, 2048, 32))
    if kind != "every device":
        made.bind(("gw0", protocol))
    return made


SHARING = ("one device", "every device", "datagrams", "ring")
TAPS = (*SHARING, "all protocols")


@contextmanager
def tapped(family: int, kind: str = "one device") -> Iterator[None]:
    with _tap(family, kind):
        yield


@contextmanager
def bystander(protocol: str, family: int, port: int) -> Iterator[socket.socket]:
    """The host's own service on a port of all addresses."""
    with socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol]) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ANY[family], port))
        if protocol == "tcp":
            made.listen()
        yield made


def net_counts(protocol: str, packets: int = 1) -> dict[str, object]:
    """What is counted for packets that lost their socket and got it back."""
    return {"rule_intercept": packets, "deliver_intercept": packets, **AFTERWARDS[protocol]}


# Packet sockets


@families
@protocols
@pytest.mark.parametrize("kind", TAPS)
def test_beside_a_packet_socket_the_listener_has_every_packet(
    gateway: Gateway, kind: str, protocol: str, family: int
) -> None:
    """Whether a packet loses its socket depends on the order in which the kernel has the taps."""
    before = gateway.firewall.status().reasons
    with (
        listening(protocol, family) as listener,
        bystander(protocol, family, 80) as service,
        tapped(family, kind),
    ):
        rule = gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        for _ in range(20):
            if protocol == "tcp":
                gateway.talks(listener, SERVICE[family], 80)
            else:
                gateway.attempt("udp", SERVICE[family], 80).close()
                assert listener.receive()[2] == (SERVICE[family], 80)
        assert is_silent(service)
        assert gateway.hits(rule) == 20
    after = gateway.firewall.status().reasons
    counted = {name: after[name][0] - before[name][0] for name in after}
    assert counted["rule_intercept"] == 20
    assert counted["deliver_intercept"] in ((0, 20) if kind in SHARING else (0,))
    assert counted["deliver_no_listener"] == 0


@families
@protocols
def test_what_no_rule_intercepts_is_as_it_was(gateway: Gateway, protocol: str, family: int) -> None:
    """A more specific pass rule leads to the host's own service."""
    with (
        listening(protocol, family) as listener,
        listening(protocol, family, 5000, GATEWAY[family]) as service,
        tapped(family),
    ):
        gateway.insert(EVERYWHERE[family], protocol, 1, 65535, to=listener.port)
        gateway.insert(GATEWAY[family], protocol, 5000)
        with gateway.counts(rule_pass=SOME, **AFTERWARDS[protocol]):
            gateway.talks(service, GATEWAY[family], 5000)
        assert is_silent(listener.socket)


@families
@protocols
def test_a_listener_that_closes_leaves_nothing_behind(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with bystander(protocol, family, 80) as service, tapped(family):
        with listening(protocol, family) as listener:
            gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
            gateway.talks(listener, SERVICE[family], 80)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_listener")
        with listening(protocol, family, listener.port) as again:
            gateway.talks(again, SERVICE[family], 80)
        assert is_silent(service)


@families
def test_the_newest_of_two_sockets_has_the_datagrams(gateway: Gateway, family: int) -> None:
    """A proxy that starts anew opens its socket before the old process ends."""
    with listening("udp", family) as old, tapped(family):
        gateway.insert(SERVICE[family], "udp", 80, to=old.port)
        gateway.talks(old, SERVICE[family], 80)
        with listening("udp", family, old.port) as new:
            time.sleep(0.02)  # from the next tick of the clock on
            gateway.talks(new, SERVICE[family], 80)
            assert is_silent(old.socket)
        old.socket.setblocking(True)
        old.socket.settimeout(PATIENCE)
        gateway.talks(old, SERVICE[family], 80)


@families
def test_a_udp_socket_that_connects_later_has_nothing_more(gateway: Gateway, family: int) -> None:
    with listening("udp", family) as proxy, bystander("udp", family, 80) as service, tapped(family):
        gateway.insert(SERVICE[family], "udp", 80, to=proxy.port)
        gateway.talks(proxy, SERVICE[family], 80)
        proxy.socket.connect((LOOPBACK[family], 9))
        gateway.is_dropped("udp", SERVICE[family], 80, "no_listener")
        assert is_silent(service)


@protocols
def test_a_dual_stack_listener_has_both_families(gateway: Gateway, protocol: str) -> None:
    with listening(protocol, 6, 0, ANY[6]) as listener, ExitStack() as stack:
        for family in (4, 6):
            stack.enter_context(tapped(family))
            gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        for family in (4, 6):
            with gateway.counts(**net_counts(protocol)):  # type: ignore[arg-type]
                client = stack.enter_context(gateway.client_socket(protocol, family))
                client.connect((SERVICE[family], 80))
                client.send(b"question")
                if protocol == "tcp":
                    stack.enter_context(listener.accept())
                else:
                    assert listener.socket.recv(100) == b"question"


@needs_kernel(6, 6)
@families
@protocols
def test_a_reuseport_group_has_it_between_them(
    gateway: Gateway, protocol: str, family: int
) -> None:
    flows = 32
    with ExitStack() as stack:
        group: list[socket.socket] = []
        for _ in range(4):
            each = stack.enter_context(socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol]))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind((LOOPBACK[family], group[0].getsockname()[1] if group else 0))
            if protocol == "tcp":
                each.listen(flows)
            each.setblocking(False)
            group.append(each)
        stack.enter_context(tapped(family))
        gateway.insert(SERVICE[family], protocol, 80, to=group[0].getsockname()[1])
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
def test_what_the_net_has_no_listener_for_reaches_no_socket(gateway: Gateway, family: int) -> None:
    """The kernel keeps no reference to an MPTCP listener, which has its packets otherwise."""
    kind = SOCKET_FAMILY[family], socket.SOCK_STREAM
    port = 8000 + family  # the connections of the other family's test are still closing
    with (
        socket.socket(*kind, IPPROTO_MPTCP) as listener,
        bystander("tcp", family, port) as service,
    ):
        listener.settimeout(PATIENCE)
        listener.bind((LOOPBACK[family], 0))
        listener.listen()
        gateway.insert(SERVICE[family], "tcp", port, to=listener.getsockname()[1])
        with gateway.client_socket("tcp", family) as client:
            client.connect((SERVICE[family], port))
            listener.accept()[0].close()
        with (
            tapped(family),
            gateway.client_socket("tcp", family) as client,
            gateway.counts(rule_intercept=1, deliver_no_listener=1),
        ):
            knock(client, SERVICE[family], port)
        assert is_silent(service, listener)


@families
def test_syn_cookies_work(gateway: Gateway, family: int) -> None:
    """No socket knows the third packet of the handshake."""
    gateway.gateway.sysctl(2, "ipv4/tcp_syncookies")
    try:
        with listening("tcp", family) as listener, tapped(family):
            gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
            with gateway.counts(rule_intercept=2, deliver_intercept=2, established=SOME):
                gateway.talks(listener, SERVICE[family], 80)
    finally:
        gateway.gateway.sysctl(1, "ipv4/tcp_syncookies")


# What is local by policy routing alone

ELSEWHERE = {4: "203.0.113.5", 6: "2001:db8::5"}


@contextmanager
def policy(gateway: Gateway, protocol: str, family: int, kind: str) -> Iterator[None]:
    """All of port 80 is local, by a rule on the port, or on a mark that nftables sets."""
    what = "fwmark 1" if kind == "mark" else f"ipproto {protocol} dport 80"
    ip = f"-{family}"
    commands = [
        f"{ip} rule {{}} {what} lookup 100",
        f"{ip} route {{}} local default dev lo table 100",
    ]
    gateway.gateway.sysctl(1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    gateway.gateway.ip(f"{ip} route add default via {CLIENT[family]}")
    try:
        gateway.gateway.ip(*(command.format("add") for command in commands))
        if kind == "mark":
            chain = "type filter hook prerouting priority mangle;"
            rule = f"{protocol} dport 80 meta mark set 1"
            table = f"table inet delivery {{ chain pre {{ {chain} {rule}\n}}\n}}\n"
            gateway.gateway.run("nft", "-f", "-", input=table)
        yield
    finally:
        gateway.gateway.run("nft", "delete", "table", "inet", "delivery", check=False)
        gateway.gateway.ip(*(command.format("del") for command in commands))
        gateway.gateway.ip(f"{ip} route del default")
        gateway.gateway.sysctl(0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")


@families
@protocols
@pytest.mark.parametrize("kind", ["port", "mark"])
def test_what_policy_routing_makes_local_is_intercepted(
    gateway: Gateway, kind: str, protocol: str, family: int
) -> None:
    with listening(protocol, family) as listener, policy(gateway, protocol, family, kind):
        gateway.insert(EVERYWHERE[family], protocol, 80, to=listener.port)
        for _ in range(40):
            if protocol == "udp":
                gateway.attempt("udp", ELSEWHERE[family], 80).close()
                assert listener.receive()[2] == (ELSEWHERE[family], 80)
        if protocol == "tcp":
            gateway.talks(listener, ELSEWHERE[family], 80)


# What passes before the rules


@families
def test_ssh_still_passes(gateway: Gateway, family: int) -> None:
    with (
        listening("tcp", family) as listener,
        bystander("tcp", family, 22) as service,
        tapped(family),
    ):
        gateway.insert(EVERYWHERE[family], "tcp", 1, 65535, to=listener.port)
        with gateway.client_socket("tcp", family) as client:
            client.connect((GATEWAY[family], 22))
            connection, _ = service.accept()
            with connection:
                exchange(client, connection)
        assert is_silent(listener.socket)


@families
def test_an_answer_reaches_the_unconnected_socket_that_asked(gateway: Gateway, family: int) -> None:
    """A DNS forwarder's: a wide rule covers the answer's address as well."""
    gateway.firewall.attach(gateway.interface, "both")
    try:
        with (
            listening("udp", family) as listener,
            bystander("udp", family, 5353) as forwarder,
            gateway.client_socket("udp", family, CLIENT[family]) as upstream,
            tapped(family),
        ):
            gateway.insert(EVERYWHERE[family], "udp", 1, 65535, to=listener.port)
            forwarder.sendto(b"question", upstream.getsockname()[:2])
            data, asker = upstream.recvfrom(100)
            assert data == b"question"
            upstream.sendto(b"answer", asker)
            forwarder.settimeout(PATIENCE)
            assert forwarder.recv(100) == b"answer"
            assert is_silent(listener.socket)
    finally:
        gateway.firewall.detach(gateway.interface, "egress")


# Where it has nothing to say


@families
@protocols
def test_a_local_program_reaches_the_host_s_own_service(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """lo is not attached: what goes over it is no business of a rule."""
    with (
        listening(protocol, family) as listener,
        bystander(protocol, family, 80) as service,
        tapped(family, "every device"),
        socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol]) as client,
    ):
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)
        with gateway.counts():
            client.connect((SERVICE[family], 80))
            client.send(b"question")
            assert select.select([service], [], [], PATIENCE)[0]
        assert is_silent(listener.socket)


@families
@protocols
def test_an_interface_that_is_not_attached_any_more_is_left_alone(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with (
        listening(protocol, family) as listener,
        bystander(protocol, family, 80) as service,
        gateway.second_wire(),
    ):
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)
        gateway.firewall.detach(gateway.interface)
        try:
            assert sk_lookup_programs()
            with gateway.client_socket(protocol, family) as client:
                client.connect((SERVICE[family], 80))
                client.send(b"question")
                assert select.select([service], [], [], PATIENCE)[0]
            assert is_silent(listener.socket)
        finally:
            gateway.firewall.attach(gateway.interface, "ingress")


def sk_lookup_programs() -> list[int]:
    with open("/proc/thread-self/ns/net") as netns:  # noqa: PTH123 - a descriptor
        return list(bpf_links.attached_to_netns(netns.fileno(), bpf_links.SK_LOOKUP))


def test_the_net_is_there_as_long_as_an_interface_is_attached(gateway: Gateway) -> None:
    (program,) = sk_lookup_programs()
    firewall = Firewall()
    try:
        firewall.attach("lo", "both")
        assert sk_lookup_programs() == [program]
        firewall.detach(gateway.interface)
        assert sk_lookup_programs() == [program]
        firewall.detach("lo", "ingress")
        assert sk_lookup_programs() == []
    finally:
        firewall.attach(gateway.interface, "ingress")
        firewall.detach("lo")
    assert len(sk_lookup_programs()) == 1


# Steer's program in the same namespace


@families
@protocols
@pytest.mark.parametrize("is_first", [True, False], ids=["steer first", "firewall first"])
def test_an_intercept_rule_goes_before_a_mapping(
    gateway: Gateway, is_first: bool, protocol: str, family: int
) -> None:
    """As it does where nothing shares the packet: the assigned socket is not looked up."""
    steering = Steering()
    with ExitStack() as stack:
        if is_first:
            gateway.firewall.detach(gateway.interface)
            stack.callback(gateway.firewall.attach, gateway.interface, "ingress")
        listener = stack.enter_context(listening(protocol, family))
        target = stack.enter_context(listening(protocol, family))
        to = f"{LOOPBACK[family]}:{target.port}" if family == 4 else f"[::1]:{target.port}"
        steering.apply([mapping(protocol, SERVICE[family], str(target.port), to, is_override=True)])
        stack.callback(steering.detach)
        if is_first:
            gateway.firewall.attach(gateway.interface, "ingress")
        stack.enter_context(tapped(family))
        gateway.insert(SERVICE[family], protocol, target.port, to=listener.port)
        for _ in range(5):
            with gateway.counts(**net_counts(protocol)):  # type: ignore[arg-type]
                gateway.talks(listener, SERVICE[family], target.port)
        assert is_silent(target.socket)


# Who may listen


@contextmanager
def as_nobody(protocol: str, family: int, address: str, port: int) -> Iterator[socket.socket]:
    """A socket that a user without privileges opens."""
    os.seteuid(NOBODY)
    try:
        made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
        with pytest.raises(PermissionError):
            made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if protocol == "tcp":
            made.listen()
    finally:
        os.seteuid(0)
    with made:
        yield made


@families
@protocols
@pytest.mark.parametrize("where", [LOOPBACK, ANY], ids=["loopback", "any address"])
def test_a_user_s_socket_on_the_proxy_s_port_has_nothing(
    gateway: Gateway, where: dict[int, str], protocol: str, family: int
) -> None:
    """While the proxy starts anew, any user may bind its port."""
    with listening(protocol, family) as listener:
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)
    with as_nobody(protocol, family, where[family], listener.port) as squatter:
        gateway.is_dropped(protocol, SERVICE[family], 80, "listener_not_transparent")
        with tapped(family):
            gateway.is_dropped(protocol, SERVICE[family], 80, "listener_not_transparent")
        assert is_silent(squatter)
    with listening(protocol, family, listener.port) as again:
        gateway.talks(again, SERVICE[family], 80)


@families
@protocols
def test_root_s_service_on_any_address_is_no_listener(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """It has the rule's port by chance. A proxy on any address is transparent."""
    with bystander(protocol, family, 0) as service:
        gateway.insert(SERVICE[family], protocol, 80, to=service.getsockname()[1])
        gateway.is_dropped(protocol, SERVICE[family], 80, "listener_not_transparent")
        assert is_silent(service)


# The proxy's own socket is as it was


@families
def test_reading_datagrams_is_as_before(gateway: Gateway, family: int) -> None:
    """The kernel exchanges the methods of a socket that the map holds."""
    with listening("udp", family) as listener, gateway.client_socket("udp", family) as client:
        gateway.insert(SERVICE[family], "udp", 80, to=listener.port)
        client.connect((SERVICE[family], 80))
        proxy = listener.socket
        for _ in range(3):
            client.send(b"question")
            assert select.select([proxy], [], [], PATIENCE)[0]
            assert proxy.recv(100, socket.MSG_PEEK) == b"question"
            data, ancillary, flags, source = proxy.recvmsg(5, 256, socket.MSG_PEEK)
            assert (data, bool(ancillary), source[:2]) == (b"quest", True, client.getsockname()[:2])
            assert flags & socket.MSG_TRUNC
            assert proxy.recv_into(bytearray(5), 5, socket.MSG_PEEK | socket.MSG_TRUNC) == 8
            assert listener.receive()[2] == (SERVICE[family], 80)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.recv(100)
        client.send(b"")
        assert select.select([proxy], [], [], PATIENCE)[0]
        assert proxy.recv(100) == b""
        with transparent_socket((SERVICE[family], 80)) as reply:
            reply.sendto(b"answer", client.getsockname()[:2])
            assert client.recv(100) == b"answer"
