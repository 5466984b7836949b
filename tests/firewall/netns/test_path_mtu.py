# SPDX-License-Identifier: GPL-2.0-only
"""ICMP errors through the gateway: path MTU discovery, time exceeded, and those about nothing."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded
from scapy.packet import Raw

from tests.firewall.support.frames import FAMILIES, PROTOCOLS, SOME, families
from tests.firewall.support.routed import (
    ANYWHERE,
    CLIENT,
    INSIDE_GATEWAY,
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Router,
    bound,
    datagram,
    host_behind,
    ip,
    ping,
    segment,
    serving,
    transfer,
)
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from scapy.packet import Packet

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
filtered = pytest.mark.parametrize("is_filtered", [False, True], ids=["", "filtered"])

MTU = 1300
PATH_MTU = {4: (socket.SOL_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}  # IP_MTU, IPV6_MTU
DISCOVER = {4: (socket.SOL_IP, 10, 2), 6: (socket.IPPROTO_IPV6, 23, 2)}  # MTU_DISCOVER: do
TIME_EXCEEDED = {4: ICMP, 6: ICMPv6TimeExceeded}


def open_up(router: Router, is_filtered: bool) -> None:
    """Clients may send, a service inside is reached."""
    router.let_clients_in()
    router.set("outbound_filter", is_filtered, router.outside)
    for family in FAMILIES:
        for protocol in PROTOCOLS:
            outside = (router.outside,)
            router.insert(ANYWHERE[family], protocol, PORT, interfaces=outside)
            if is_filtered:
                router.insert(
                    ANYWHERE[family], protocol, PORT, interfaces=outside, direction="egress"
                )


def discovers(
    router: Router, protocol: str, sender: Namespace, receiver: Namespace, address: str
) -> None:
    """The sender learns of the smaller MTU by an error that comes through the gateway."""
    family = 6 if ":" in address else 4
    with (
        serving(receiver, protocol, family) as server,
        bound(sender, protocol, family) as client,
    ):
        before = router.firewall.status().reasons
        client.setsockopt(*DISCOVER[family])
        client.connect((address, PORT))
        assert client.getsockopt(*PATH_MTU[family]) == 1500
        if protocol == "tcp":
            with server.accept()[0] as connection:
                connection.settimeout(PATIENCE)
                transfer(client, connection)
        else:
            client.send(bytes(1400))
            assert wait_until(lambda: client.getsockopt(*PATH_MTU[family]) == MTU, PATIENCE)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            client.send(bytes(1200))
            assert server.recv(2000) == bytes(1200)
        assert client.getsockopt(*PATH_MTU[family]) == MTU
        after = router.firewall.status().reasons
        counted = {name for name in after if after[name] != before[name]}
        assert "icmp_error" in counted
        assert counted <= {"rule_pass", "flow", "egress", "icmp_error", "multicast_listener"}


@families
@protocols
@filtered
def test_an_error_from_outside_comes_in(
    router: Router, protocol: str, family: int, is_filtered: bool
) -> None:
    open_up(router, is_filtered)
    with host_behind(router, router.server, MTU) as far:
        discovers(router, protocol, router.client, far.namespace, far.address[family])


@families
@protocols
@filtered
def test_an_error_from_inside_goes_out(
    router: Router, protocol: str, family: int, is_filtered: bool
) -> None:
    open_up(router, is_filtered)
    with host_behind(router, router.client, MTU) as deep:
        discovers(router, protocol, router.server, deep.namespace, deep.address[family])


@families
@protocols
@filtered
def test_the_gateways_own_error_leaves(
    router: Router, protocol: str, family: int, is_filtered: bool
) -> None:
    """Its link inside is the narrow one."""
    open_up(router, is_filtered)
    router.gateway.run("ip", "link", "set", router.inside, "mtu", str(MTU))
    try:
        with (
            serving(router.client, protocol, family) as server,
            bound(router.server, protocol, family) as client,
        ):
            client.setsockopt(*DISCOVER[family])
            client.connect((CLIENT[family], PORT))
            if protocol == "tcp":
                with server.accept()[0] as connection:
                    connection.settimeout(PATIENCE)
                    transfer(client, connection)
            else:
                client.send(bytes(1400))
            assert wait_until(lambda: client.getsockopt(*PATH_MTU[family]) == MTU, PATIENCE)
    finally:
        router.gateway.run("ip", "link", "set", router.inside, "mtu", "1500")
        for namespace in (router.client, router.server, router.gateway):
            namespace.run("ip", f"-{family}", "route", "flush", "cache")


# Time exceeded


@families
@filtered
@pytest.mark.parametrize("kind", ["udp", "tcp", "echo"])
def test_a_trace_of_the_route_is_answered(
    router: Router, kind: str, family: int, is_filtered: bool
) -> None:
    """By the gateway itself, and by a router outside, through the gateway."""
    open_up(router, is_filtered)
    router.set("icmp_echo")
    limit = {4: "ttl", 6: "hlim"}[family]
    with host_behind(router, router.server, 1500) as far:
        destination = far.address[family]
        ends = (SILENT_CLIENT[family], 40000), (destination, PORT)
        probe = {
            "udp": lambda: datagram(*ends),
            "tcp": lambda: segment(*ends, "S", 1000),
            "echo": lambda: ip(SILENT_CLIENT[family], destination) / ping(family, "request"),
        }[kind]()
        for hops, reporter in ((1, INSIDE_GATEWAY[family]), (2, SERVER[family])):
            setattr(probe, limit, hops)
            reasons = {"icmp_echo" if kind == "echo" else "rule_pass": SOME, "egress": SOME}
            if hops == 2:
                reasons["icmp_error"] = 1
            with router.capture(router.client) as heard, router.counts(**reasons):
                router.send(router.client, probe)
                while True:
                    error = heard.next(TIME_EXCEEDED[family])
                    if error.type == {4: 11, 6: 3}[family]:
                        break
                assert error.underlayer.src == reporter
                assert destination in repr(error.payload)


# About nothing that is known


def _has(kind: type[Packet]) -> Callable[[Packet], bool]:
    return lambda frame: kind in frame


def errors(family: int) -> list[Packet]:
    if family == 4:
        return [
            ICMP(type=3, code=1),
            ICMP(type=3, code=4, nexthopmtu=600),
            ICMP(type=11, code=0),
            ICMP(type=12, code=0),
        ]
    return [ICMPv6DestUnreach(code=0), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(code=0)]


@families
@filtered
def test_an_error_that_quotes_nothing_tracked_stays_outside(
    router: Router, family: int, is_filtered: bool
) -> None:
    open_up(router, is_filtered)
    router.set("icmp_echo")
    client, server = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], PORT)
    router.send(
        router.client,
        datagram(client, server),
        segment(client, (server[0], PORT), "S", 1000),
        ip(client[0], server[0]) / ping(family, "request"),
    )
    known = [
        datagram(client, server),
        segment(client, server, "A", 1000),
        ip(client[0], server[0]) / ping(family, "request"),
    ]
    unknown = [
        datagram((client[0], 4001), server),
        datagram(client, (server[0], PORT + 1)),
        datagram((CLIENT[family], 4000), server),
        segment(client, (SERVER[family], PORT), "A", 1000),
        ip(client[0], server[0]) / ping(family, "request", 8),
        ip(client[0], server[0], **{{4: "proto", 6: "nh"}[family]: 47}) / Raw(bytes(8)),
    ]
    for error in errors(family):
        header = ip(OUTSIDE_GATEWAY[family][:-1] + "9", client[0])
        for quoted in known:
            with router.capture(router.client) as heard, router.counts(icmp_error=1, egress=SOME):
                router.send(router.server, header / error / Raw(bytes(quoted)))
                assert heard.has(_has(type(error)))
        with (
            router.capture(router.client) as heard,
            router.counts(icmp_error_unrelated=len(unknown)),
        ):
            for quoted in unknown:
                router.send(router.server, header / error / Raw(bytes(quoted)))
            assert not heard.has(_has(type(error)))


@families
def test_an_error_about_a_flow_that_is_forgotten_stays_outside(router: Router, family: int) -> None:
    open_up(router, False)
    client, server = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], PORT)
    router.send(router.client, datagram(client, server))
    header = ip(OUTSIDE_GATEWAY[family][:-1] + "9", client[0])
    error = header / errors(family)[0] / Raw(bytes(datagram(client, server)))
    with router.counts(icmp_error=1, egress=SOME):
        router.send(router.server, error)
    router.age_flows(31)
    with router.counts(icmp_error_unrelated=1):
        router.send(router.server, error)
