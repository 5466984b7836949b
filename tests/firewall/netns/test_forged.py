# SPDX-License-Identifier: GPL-2.0-only
"""Fields of a packet that its sender chooses freely, and that let nothing in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_LSRR, IPOption_Router_Alert, IPOption_SSRR
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrRouting
from scapy.packet import Raw

from tests.firewall.support.frames import families
from tests.firewall.support.routed import (
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
    ip,
    ping,
    serving,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

pytestmark = pytest.mark.kernel


def error(source: str, destination: str, quoted: Packet) -> Packet:
    """Port unreachable, from and to any address, that quotes a packet with its data."""
    message = ICMPv6DestUnreach(code=4) if ":" in source else ICMP(type=3, code=3)
    return ip(source, destination) / message / Raw(bytes(quoted))


# An ICMP error belongs to the sender of the packet that it quotes: RFC 5927, section 4; RFC 1812,
# section 4.3.2; RFC 4443, section 2.4


@families
def test_an_error_reaches_the_sender_of_the_quoted_packet_alone(
    router: Router, family: int
) -> None:
    """It would carry any data to hosts behind the gateway, by any flow of the gateway's own."""
    with (
        serving(router.server, "udp", family) as server,
        bound(router.gateway, "udp", family) as own,
        router.capture(router.client) as heard,
    ):
        own.sendto(b"question", (SERVER[family], PORT))
        port = server.recvfrom(100)[1][1]
        quoted = datagram((OUTSIDE_GATEWAY[family], port), (SERVER[family], PORT), bytes(1000))
        for other in (SILENT_CLIENT, CLIENT, INSIDE_GATEWAY):
            with router.counts(icmp_error_unrelated=1):
                router.send(router.server, error(SERVER[family], other[family], quoted))
        assert not heard.has(lambda frame: b"\0" * 1000 in bytes(frame))
        # A socket of all addresses sends from none of another host.
        forged = datagram((SILENT_CLIENT[family], port), (SERVER[family], PORT), bytes(1000))
        with router.counts(icmp_error_unrelated=1):
            router.send(router.server, error(SERVER[family], SILENT_CLIENT[family], forged))
        assert not heard.has(lambda frame: b"\0" * 1000 in bytes(frame))
        with router.counts(icmp_error=1):
            router.send(router.server, error(SERVER[family], OUTSIDE_GATEWAY[family], quoted))


@families
def test_so_does_an_error_about_a_forwarded_flow(router: Router, family: int) -> None:
    router.let_clients_in()
    asked = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], PORT)
    router.send(router.client, datagram(*asked))
    with router.counts(icmp_error_unrelated=1):
        router.send(router.server, error(SERVER[family], CLIENT[family], datagram(*asked)))
    with router.counts(icmp_error=1, egress=1):
        router.send(router.server, error(SERVER[family], SILENT_CLIENT[family], datagram(*asked)))


@families
def test_a_forwarded_error_leaves_about_a_known_flow_alone(router: Router, family: int) -> None:
    """The outbound filter lets no host behind the gateway out by an error about nothing."""
    router.set("outbound_filter", True, router.outside)
    router.set("pass_non_tuple", True, router.inside)
    router.insert(SILENT_CLIENT[family], "udp", PORT, interfaces=(router.outside,))
    asker, answerer = (SILENT_SERVER[family], 4000), (SILENT_CLIENT[family], PORT)
    router.send(router.server, datagram(asker, answerer))
    other = (SILENT_SERVER[family], 4001)
    with router.capture(router.server) as heard:
        for wrong in (
            error(CLIENT[family], SILENT_SERVER[family], datagram(other, answerer)),
            error(CLIENT[family], SERVER[family], datagram(asker, answerer)),
        ):
            with router.counts(non_tuple=1, icmp_error_unrelated=1):
                router.send(router.client, wrong)
        assert not heard.has(lambda frame: ICMP in frame or ICMPv6DestUnreach in frame)
        with router.counts(icmp_error=2):
            router.send(
                router.client,
                error(CLIENT[family], SILENT_SERVER[family], datagram(asker, answerer)),
            )
        assert heard.has(lambda frame: ICMP in frame or ICMPv6DestUnreach in frame)


@families
def test_a_forwarded_error_about_a_ping_leaves_where_pings_do(router: Router, family: int) -> None:
    """A traceroute from outside, to a host that does not exist."""
    router.set("outbound_filter", True, router.outside)
    router.set("pass_non_tuple", True, router.inside)
    request = ip(SILENT_SERVER[family], SILENT_CLIENT[family]) / ping(family, "request")
    unreachable = error(CLIENT[family], SILENT_SERVER[family], request)
    with router.counts(non_tuple=1, icmp_error_unrelated=1):
        router.send(router.client, unreachable)
    router.set("icmp_echo", True, router.outside)
    with router.counts(non_tuple=1, icmp_error=1):
        router.send(router.client, unreachable)


# Source routes: RFC 791, section 3.1; RFC 5095


@pytest.mark.parametrize("option", [IPOption_LSRR, IPOption_SSRR])
def test_an_ipv4_source_route_leads_nowhere(router: Router, option: type) -> None:
    """By a rule for the gateway it would reach the hosts behind it."""
    router.insert(OUTSIDE_GATEWAY[4], "udp", PORT)
    router.gateway.sysctl(1, "ipv4/conf/all/accept_source_route")
    router.gateway.sysctl(1, f"ipv4/conf/{router.outside}/accept_source_route")
    try:
        with router.capture(router.client) as heard:
            for options in (
                [option(routers=[SILENT_CLIENT[4]])],
                [IPOption_Router_Alert(), option(routers=[SILENT_CLIENT[4]])],
            ):
                head = IP(src=SERVER[4], dst=OUTSIDE_GATEWAY[4], options=options)
                with router.counts(source_route=1):
                    router.send(router.server, head / UDP(sport=4000, dport=PORT) / b"routed")
            assert not heard.has(lambda frame: b"routed" in bytes(frame))
    finally:
        router.gateway.sysctl(0, "ipv4/conf/all/accept_source_route")
    alert = IP(src=SERVER[4], dst=OUTSIDE_GATEWAY[4], options=[IPOption_Router_Alert()])
    with bound(router.gateway, "udp", 4, PORT), router.counts(rule_pass=1):
        router.send(router.server, alert / UDP(sport=4000, dport=PORT))


@pytest.mark.parametrize("kind", [0, 2, 3, 4])
def test_an_ipv6_source_route_leads_nowhere(router: Router, kind: int) -> None:
    router.insert(OUTSIDE_GATEWAY[6], "udp", PORT)
    with bound(router.gateway, "udp", 6, PORT):
        for left, reason in ((1, "source_route"), (0, "rule_pass")):
            header = IPv6ExtHdrRouting(type=kind, segleft=left, addresses=[SILENT_CLIENT[6]])
            packet = IPv6(src=SERVER[6], dst=OUTSIDE_GATEWAY[6]) / header
            with router.counts(**{reason: 1}):
                router.send(router.server, packet / UDP(sport=4000, dport=PORT))
