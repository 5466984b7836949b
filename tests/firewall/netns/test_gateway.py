# SPDX-License-Identifier: GPL-2.0-only
"""A gateway that does not filter what leaves: clients behind it, a server outside."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.contrib.ospf import OSPF_Hdr, OSPF_Hello, OSPFv3_Hdr, OSPFv3_Hello
from scapy.layers.inet import ICMP
from scapy.packet import Raw

from tests.firewall.support.frames import PROTOCOLS, SOME, families, is_silent, listening
from tests.firewall.support.routed import (
    CLIENT,
    ECHO_REPLY,
    INSIDE_GATEWAY,
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Router,
    attempt,
    bound,
    conversation,
    datagram,
    ip,
    ping,
    raw_socket,
    segment,
    serving,
)
from tests.support.netns import RoutedNetwork
from tests.support.waiting import PATIENCE
from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet


pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@families
@protocols
def test_a_client_is_answered(router: Router, protocol: str, family: int) -> None:
    router.let_clients_in()
    expected = {"tcp": SOME, "udp": 1}[protocol]
    with (
        router.counts(rule_pass=expected, egress=SOME, flow=expected),
        conversation(protocol, router.client, router.server, SERVER[family]),
    ):
        flow = router.flow(protocol)
        assert flow is not None
        assert (flow.initiator, flow.responder) == (CLIENT[family], SERVER[family])
        # What a rule admits is remembered, so that its answer begins no flow.
        assert (flow.is_admitted_in, flow.is_admitted_out) == (True, True)
        assert flow.state == {"tcp": "open", "udp": "answered"}[protocol]


@families
@protocols
def test_what_is_intercepted_is_not_forwarded_beside_a_packet_socket(
    router: Router, protocol: str, family: int
) -> None:
    """The destination is not local. The clone for the stack has no socket, so it is forwarded."""
    start = {
        "tcp": segment((SILENT_CLIENT[family], 1), (SILENT_SERVER[family], 80), "S", 1),
        "udp": datagram((SILENT_CLIENT[family], 1), (SILENT_SERVER[family], 80)),
    }[protocol]
    ethertype = {4: 0x0800, 6: 0x86DD}[family]
    with (
        listening(protocol, family) as listener,
        router.gateway.packet_socket(router.inside, ethertype),
        router.capture(router.server) as heard,
    ):
        router.insert(f"{SILENT_SERVER[family]}", protocol, 80, to=listener.port)
        with router.counts(rule_intercept=1, misrouted=1):
            router.send(router.client, start)
        layer = type(start)
        assert not heard.has(lambda f: layer in f and f[layer].dst == SILENT_SERVER[family])


@families
def test_a_connection_whose_local_route_is_gone_is_not_forwarded(
    router: Router, family: int
) -> None:
    """Without early demux the kernel routes each segment before it looks the socket up."""
    address = {4: "203.0.113.5", 6: "2001:db8::5"}[family]
    key = RuleKey(Prefix.parse(address), "tcp", 80)
    route = f"{address} via {SERVER[family]}"
    router.gateway.ip(f"route add {route}")
    router.gateway.sysctl(0, "ipv4/ip_early_demux", "ipv4/tcp_early_demux")
    try:
        with listening("tcp", family) as listener, router.capture(router.server) as heard:
            router.firewall.insert(Rule(key, tproxy_port=listener.port), route=True)
            with router.client.entered():
                client = socket.create_connection((address, 80), PATIENCE)
            with client, listener.accept() as accepted:
                for each in (client, accepted):
                    # A RST ends both: no FIN is sent again during later tests.
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                router.firewall.delete(key)
                with router.counts(misrouted=SOME, established=SOME):
                    client.send(b"secret")
                assert not heard.has(lambda f: b"secret" in bytes(f))
    finally:
        router.gateway.sysctl(1, "ipv4/ip_early_demux", "ipv4/tcp_early_demux")
        router.gateway.ip(f"route del {route}")


@families
def test_a_clients_ping_is_answered(router: Router, family: int) -> None:
    router.set("icmp_echo", True, router.inside)
    request = ip(SILENT_CLIENT[family], SERVER[family]) / ping(family, "request")
    with (
        router.capture(router.client) as heard,
        router.counts(icmp_echo=1, egress=SOME, flow=1),
    ):
        router.send(router.client, request)
        reply = heard.next(ECHO_REPLY[family])
        assert (reply.type, reply.id) == ({4: 0, 6: 129}[family], 7)
    flow = router.flow({4: "icmp", 6: "icmpv6"}[family], 7)
    assert flow is not None
    assert (flow.initiator, flow.responder) == (SILENT_CLIENT[family], SERVER[family])


@families
def test_an_answer_to_another_ping_drops(router: Router, family: int) -> None:
    router.set("icmp_echo", True, router.inside)
    router.send(
        router.client, ip(SILENT_CLIENT[family], SILENT_SERVER[family]) / ping(family, "request")
    )
    back = (SILENT_SERVER[family], SILENT_CLIENT[family])
    with router.counts(flow=1, egress=SOME, icmp_echo_off=2):
        router.send(router.server, ip(*back) / ping(family, "reply"))
        router.send(router.server, ip(*back) / ping(family, "reply", 8))
        router.send(router.server, ip(*back) / ping(family, "request"))


@families
@protocols
def test_what_nobody_asked_for_drops(router: Router, protocol: str, family: int) -> None:
    router.let_clients_in()
    for address in (CLIENT[family], OUTSIDE_GATEWAY[family], INSIDE_GATEWAY[family]):
        with (
            router.counts(no_rule=1),
            attempt(protocol, router.server, address) as asker,
        ):
            assert is_silent(asker)
    assert router.firewall.flows() == []


@families
@protocols
def test_rules_are_of_their_interface(router: Router, protocol: str, family: int) -> None:
    """A service inside is open to the outside; its rule says nothing of what comes from inside."""
    router.set("per_interface_rules")
    router.insert(CLIENT[family], protocol, PORT, interfaces=(router.outside,))
    router.insert(SERVER[family], protocol, PORT + 1, interfaces=(router.inside,))
    with conversation(protocol, router.server, router.client, CLIENT[family]) as outside:
        outside.talks()
    with router.counts(no_rule=1), attempt(protocol, router.client, SERVER[family]) as asker:
        assert is_silent(asker)
    with (
        router.counts(no_rule=1),
        attempt(protocol, router.server, CLIENT[family], PORT + 1) as asker,
    ):
        assert is_silent(asker)


@families
@protocols
def test_the_gateway_itself_is_answered(router: Router, protocol: str, family: int) -> None:
    with conversation(protocol, router.gateway, router.server, SERVER[family]) as own:
        own.talks()
        flow = router.flow(protocol)
        assert flow is not None
        assert flow.initiator == OUTSIDE_GATEWAY[family]


@families
def test_an_unconnected_socket_of_the_gateway_is_answered(router: Router, family: int) -> None:
    """What a resolver does: no socket is of this flow, it is tracked as it leaves."""
    with (
        serving(router.server, "udp", family) as server,
        bound(router.gateway, "udp", family) as own,
        router.counts(egress=SOME, flow=1, no_rule=1),
    ):
        own.sendto(b"question", (SERVER[family], PORT))
        _, address = server.recvfrom(100)
        server.sendto(b"answer", address)
        assert own.recv(100) == b"answer"
        with bound(router.server, "udp", family) as other:
            other.sendto(b"from another port", address[:2])
            assert is_silent(own)


# Before the firewall came


@families
@protocols
@pytest.mark.usefixtures("_private_bpffs")
def test_a_flow_goes_on_when_the_firewall_comes(protocol: str, family: int) -> None:
    """Adopted in the middle by what its client sends next."""
    network = RoutedNetwork()
    firewall = Firewall()
    try:
        with (
            network.gateway.entered(),
            conversation(protocol, network.client, network.server, SERVER[family]) as old,
        ):
            try:
                firewall.attach(network.outside, "both")
                firewall.set([network.outside], "ipv6", True)
                old.talks()
                (flow,) = firewall.flows()
                assert (flow.initiator, flow.responder) == (CLIENT[family], SERVER[family])
                old.talks()
                assert firewall.flows()[0].state == "open"
                assert firewall.status().reasons["flow"][0] > 1
            finally:
                firewall.detach_all()
    finally:
        network.close()


@families
@pytest.mark.usefixtures("_private_bpffs")
def test_the_hosts_own_connection_goes_on_when_a_filtering_firewall_comes(family: int) -> None:
    """Nothing of its beginning was seen, and the host is the first to speak."""
    network = RoutedNetwork()
    firewall = Firewall()
    try:
        with (
            network.gateway.entered(),
            conversation("tcp", network.gateway, network.server, SERVER[family]) as old,
        ):
            try:
                firewall.attach(network.outside, "both")
                for setting in ("ipv6", "outbound_filter"):
                    firewall.set([network.outside], setting, True)
                old.talks()
                assert firewall.status().reasons["egress_no_rule"][0] == 0
            finally:
                firewall.detach_all()
    finally:
        network.close()


# Protocols without ports that are known: a flow is of two hosts


def of_gre(source: str, destination: str) -> Packet:
    number = {"nh" if ":" in source else "proto": GRE}
    return ip(source, destination, **number) / Raw(b"\0\0\x08\0in a tunnel")


@families
def test_an_answer_of_another_protocol_comes_back(router: Router, family: int) -> None:
    router.set("pass_non_tuple", True, router.inside)
    asker, answerer = SILENT_CLIENT[family], SILENT_SERVER[family]
    with router.counts(protocol=1):
        router.send(router.server, of_gre(answerer, asker))
    with router.counts(non_tuple=1, egress=1):
        router.send(router.client, of_gre(asker, answerer))
    (flow,) = router.firewall.flows()
    assert flow[:5] == (str(GRE), asker, 0, answerer, 0)
    with router.counts(flow=1, egress=1, protocol=3):
        router.send(
            router.server,
            of_gre(answerer, asker),
            of_gre(SERVER[family], asker),
            of_gre(answerer, CLIENT[family]),
            ip(answerer, asker, **{"nh" if family == 6 else "proto": OSPF}) / Raw(bytes(20)),
        )
    router.age_flows(599)
    with router.counts(flow=1, egress=1):
        router.send(router.server, of_gre(answerer, asker))
    router.age_flows(601)
    with router.counts(protocol=1):
        router.send(router.server, of_gre(answerer, asker))


@families
def test_who_is_answered_in_another_protocol_has_not_been_asked(
    router: Router, family: int
) -> None:
    """A setting let it in, and no more does."""
    router.set("pass_non_tuple", True)
    asker, answerer = SILENT_SERVER[family], SILENT_CLIENT[family]
    router.send(router.server, of_gre(asker, answerer))
    with router.counts(flow=1, egress=1):
        router.send(router.client, of_gre(answerer, asker))
    router.set("pass_non_tuple", False, router.outside)
    with router.counts(protocol=1):
        router.send(router.server, of_gre(asker, answerer))


# What the host itself sends


OSPF, GRE, VRRP, IGMP = 89, 47, 112, 2


def _gre(family: int) -> bytes:
    inner = bytes(ip(SILENT_CLIENT[family], SILENT_SERVER[family]) / b"in a tunnel")
    return b"\0\0" + {4: b"\x08\0", 6: b"\x86\xdd"}[family] + inner


OWN_MESSAGES = {
    (4, "OSPF"): (OSPF, bytes(OSPF_Hdr(src="10.8.0.1") / OSPF_Hello())),
    (6, "OSPF"): (OSPF, bytes(OSPFv3_Hdr(src="10.8.0.1", chksum=0) / OSPFv3_Hello())),
    (4, "GRE"): (GRE, _gre(4)),
    (6, "GRE"): (GRE, _gre(6)),
    (4, "VRRP"): (VRRP, b"\x31\x01\x64\x01\x00\x64\0\0\x0a\x08\0\x09"),
    (6, "VRRP"): (VRRP, b"\x31\x01\x64\x01\x00\x64\0\0" + bytes(16)),
    (4, "IGMP"): (IGMP, b"\x16\0\x00\x00\xe0\0\0\xfb"),
    (4, "ICMP timestamp"): (1, bytes(ICMP(type=13, id=9))),
    (6, "node information"): (58, b"\x8b\0\0\0" + bytes(12)),
}
own_messages = pytest.mark.parametrize(
    ("family", "protocol", "message"),
    [
        pytest.param(family, protocol, message, id=f"{family}-{name}")
        for (family, name), (protocol, message) in OWN_MESSAGES.items()
    ],
)


@contextmanager
def own_message_leaves(
    router: Router, family: int, protocol: int, message: bytes
) -> Iterator[None]:
    """The gateway's own message arrives at the server as it was sent."""
    with (
        router.capture(router.server) as heard,
        raw_socket(router.gateway, family, protocol) as own,
    ):
        own.sendto(message, (SILENT_SERVER[family], 0))
        yield

        def is_it(frame: Packet) -> bool:
            # The kernel fills in the checksum of ICMPv6.
            return message[4:] in bytes(frame)

        assert heard.has(is_it)


@own_messages
def test_what_the_host_itself_says_leaves(
    router: Router, family: int, protocol: int, message: bytes
) -> None:
    with router.counts(egress=SOME), own_message_leaves(router, family, protocol, message):
        pass


@families
def test_the_hosts_own_ping_is_answered(router: Router, family: int) -> None:
    kind = {4: 1, 6: 58}[family]
    with (
        raw_socket(router.gateway, family, kind) as own,
        router.counts(egress=SOME, flow=1),
    ):
        message = ping(family, "request", 77)
        if family == 6:
            message = ip(OUTSIDE_GATEWAY[6], SERVER[6]) / message
            message = bytes(message)[40:]
        own.sendto(bytes(message), (SERVER[family], 0))
        data = own.recv(1000)
        assert data[20 if family == 4 else 0] == {4: 0, 6: 129}[family]


# What only looks like an answer


@families
@pytest.mark.parametrize("flags", ["SA", "A", "PA", "FA", "R", "RA", ""])
def test_a_segment_of_no_flow_drops(router: Router, flags: str, family: int) -> None:
    router.let_clients_in()
    outside, inside = (SILENT_SERVER[family], 80), (SILENT_CLIENT[family], 4000)
    with router.counts(no_rule=1):
        router.send(router.server, segment(outside, inside, flags, 1, 1))
    assert router.firewall.flows() == []


@families
def test_answers_have_to_be_of_the_very_flow(router: Router, family: int) -> None:
    router.let_clients_in()
    outside, inside = (SILENT_SERVER[family], 80), (SILENT_CLIENT[family], 4000)
    router.send(router.client, datagram(inside, outside))
    with router.counts(flow=1, egress=SOME, no_rule=4):
        router.send(
            router.server,
            datagram(outside, inside),
            datagram((SERVER[family], 80), inside),
            datagram((SILENT_SERVER[family], 81), inside),
            datagram(outside, (SILENT_CLIENT[family], 4001)),
            datagram(outside, (CLIENT[family], 4000)),
        )
