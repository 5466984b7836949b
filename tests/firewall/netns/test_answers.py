# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of traffic beside nftables' ``ct state established,related accept``, both families.

Each kind crosses the same gateway three times: without a firewall, with nftables on the outside
interface, and with zfw as ``zfw attach`` attaches it. Both firewalls let in the same services.
A kind that the two treat differently is in ``DIFFERENT`` and in a table of docs/FIREWALL.md.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.firewall.support import answers, flow_tables
from tests.firewall.support.answers import World
from tests.firewall.support.routed import ANYWHERE
from tests.support.waiting import PATIENCE
from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

PAGE = Path(__file__).parents[3] / "docs" / "FIREWALL.md"
# Seconds to wait for what is expected to be dropped.
SILENCE = 0.3

NFT = """
table inet filter {{
    chain arriving {{
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        {services}
        drop
    }}
    chain leaving {{
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        drop
    }}
    chain input {{ type filter hook input priority 0; iifname "wan0" jump arriving; }}
    chain forward {{
        type filter hook forward priority 0
        iifname "wan0" jump arriving
        {outbound}
    }}
    chain output {{ type filter hook output priority 0; {outbound}; }}
}}
"""


@pytest.fixture(scope="module")
def world(_private_bpffs: None) -> Iterator[World]:
    with World() as made:
        yield made


class Kind(NamedTuple):
    """A kind of traffic: ``happens`` tells whether it worked.

    ``services`` are protocols and ports that are let in. ``is_filtered``: no packet leaves
    that begins a flow.
    """

    happens: answers.Happens
    services: tuple[tuple[str, int], ...] = ()
    is_filtered: bool = False
    families: tuple[int, ...] = (4, 6)


@contextmanager
def nftables(world: World, kind: Kind) -> Iterator[None]:
    """The kernel's own firewall."""
    services = "; ".join(f"{protocol} dport {port} accept" for protocol, port in kind.services)
    outbound = 'oifname "wan0" jump leaving' if kind.is_filtered else ""
    world.gateway.run("nft", NFT.format(services=services, outbound=outbound))
    try:
        yield
    finally:
        world.gateway.run("nft", "flush", "ruleset")


@contextmanager
def zfw(world: World, kind: Kind) -> Iterator[None]:
    """This firewall, attached as it is by default."""
    with world.gateway.entered():
        firewall = Firewall()
        firewall.attach(world.outside)
        try:
            firewall.set([world.outside], "ipv6", True)
            firewall.set([world.outside], "outbound_filter", kind.is_filtered)
            for protocol, port in kind.services:
                for anywhere in ANYWHERE.values():
                    firewall.insert(Rule(RuleKey(Prefix.parse(anywhere), protocol, port)))
            world.age_flows = lambda: flow_tables.age_flows(120)  # type: ignore[method-assign]
            yield
        finally:
            del world.age_flows
            # Loading the programs takes longest: they stay pinned.
            firewall.detach(world.outside)
            firewall.flush()


MDNS = (("udp", 5353),)
KINDS = {
    # What the gateway asks
    "ping": Kind(answers.a_ping),
    "mtr": Kind(answers.mtr),
    "traceroute by UDP": Kind(answers.a_udp_traceroute("gateway")),
    "traceroute by UDP, of a client": Kind(answers.a_udp_traceroute("client")),
    "traceroute by UDP-Lite": Kind(answers.a_udp_traceroute("gateway", answers.UDP_LITE)),
    "traceroute by ICMP": Kind(answers.an_icmp_traceroute),
    "traceroute by TCP": Kind(answers.a_raw_traceroute(6)),
    "traceroute by SCTP": Kind(answers.a_raw_traceroute(answers.SCTP)),
    "traceroute by DCCP": Kind(answers.a_raw_traceroute(answers.DCCP)),
    "ICMP timestamp": Kind(answers.an_icmp_timestamp, families=(4,)),
    "DNS forwarder": Kind(answers.a_dns_forwarder("gateway")),
    "NTP, port 123 to 123": Kind(answers.from_port(123, 123)),
    "DHCP renewal": Kind(answers.from_port(68, 67), families=(4,)),
    "WireGuard": Kind(answers.wireguard),
    "WireGuard, the peer roams": Kind(answers.a_roaming_peer),
    "port unreachable": Kind(answers.a_refused_datagram("gateway")),
    "port unreachable, of a client": Kind(answers.a_refused_datagram("client")),
    # Connections and datagrams
    "TCP of the gateway": Kind(answers.tcp_of("gateway")),
    "TCP of a client": Kind(answers.tcp_of("client")),
    "UDP of a client": Kind(answers.udp_of("client")),
    "QUIC migration": Kind(answers.a_migration),
    "QUIC, preferred address": Kind(answers.a_dns_forwarder("client")),
    "connection refused": Kind(answers.a_refused_connection),
    "connection reset": Kind(answers.a_reset),
    "half-closed connection": Kind(answers.a_half_closed_connection),
    "idle control connection": Kind(answers.an_idle_connection),
    "second connection, as passive FTP's": Kind(answers.a_second_connection),
    "connection back, as active FTP's": Kind(answers.a_server_that_calls_back),
    "crossing SYNs": Kind(answers.crossing_syns),
    "same ports again": Kind(answers.the_same_ports_again),
    "datagram from another port": Kind(answers.from_another_port("gateway")),
    "TFTP": Kind(answers.from_another_port("client")),
    "media of a SIP call": Kind(answers.media_of_a_call),
    # The path's MTU
    "path MTU, TCP of the gateway": Kind(answers.path_mtu_of_tcp("gateway")),
    "path MTU, TCP of a client": Kind(answers.path_mtu_of_tcp("client")),
    "path MTU, UDP of the gateway": Kind(answers.path_mtu_of_udp("gateway")),
    "path MTU, UDP of a client": Kind(answers.path_mtu_of_udp("client")),
    # Fragments
    "large datagrams": Kind(answers.large_datagrams("gateway")),
    "large datagrams of a client": Kind(answers.large_datagrams("client")),
    "large ping of a client": Kind(answers.a_large_ping),
    "fragments, last one first": Kind(answers.shuffled_to("gateway", answers.last_first)),
    "forwarded fragments, last one first": Kind(answers.shuffled_to("client", answers.last_first)),
    "forwarded fragments, first in the middle": Kind(
        answers.shuffled_to("client", answers.first_in_the_middle)
    ),
    # Groups
    "mDNS question, answer to the asker": Kind(answers.asked_a_group(5353, 5353)),
    "SSDP search": Kind(answers.asked_a_group(1900)),
    "NetBIOS question to all": Kind(answers.asked_all, families=(4,)),
    "multicast stream": Kind(answers.a_stream),
    "IGMP query": Kind(answers.membership, families=(4,)),
    "MLD query": Kind(answers.membership, families=(6,)),
    "DHCP offer to all": Kind(answers.a_dhcp_offer, families=(4,)),
    "DHCPv6 lease": Kind(answers.dhcpv6("gateway", "server"), families=(6,)),
    # Tunnels
    "GRE": Kind(answers.of_protocol(answers.GRE)),
    "IP in IP": Kind(answers.of_protocol(answers.IPIP)),
    "ESP": Kind(answers.of_protocol(answers.ESP)),
    "AH": Kind(answers.of_protocol(answers.AH)),
    # Behind the outbound filter
    "TCP service, filtered": Kind(answers.a_service, (("tcp", 8443),), is_filtered=True),
    "UDP service, filtered": Kind(answers.a_datagram_service, (("udp", 8444),), is_filtered=True),
    "TCP of a client, filtered": Kind(answers.tcp_of("client"), is_filtered=True),
    "UDP of the gateway, filtered": Kind(answers.udp_of("gateway"), is_filtered=True),
    "mDNS question, filtered": Kind(answers.answers_a_group(5353), MDNS, is_filtered=True),
    "mDNS question, answer to the group, filtered": Kind(
        answers.answers_to_the_group, MDNS, is_filtered=True
    ),
    "NetBIOS question, filtered": Kind(
        answers.answers_all, (("udp", 137),), is_filtered=True, families=(4,)
    ),
    "question from 0.0.0.0, filtered": Kind(
        answers.answers_one_without_an_address, (("udp", 8445),), is_filtered=True, families=(4,)
    ),
    "DHCP server, filtered": Kind(
        answers.a_dhcp_server, (("udp", 67),), is_filtered=True, families=(4,)
    ),
    "DHCPv6 server, filtered": Kind(
        answers.dhcpv6("server", "gateway"), (("udp", 547),), is_filtered=True, families=(6,)
    ),
}
# Neither firewall lets in what nothing asked for.
UNSOLICITED = {
    "WireGuard, the peer roams",
    "datagram from another port",
    "connection back, as active FTP's",
    "TFTP",
    "media of a SIP call",
    "mDNS question, answer to the asker",
    "SSDP search",
    "NetBIOS question to all",
    "multicast stream",
    "TCP of a client, filtered",
    "UDP of the gateway, filtered",
}
# By kind: whether it works with nftables, and with zfw.
DIFFERENT = {
    "ICMP timestamp": (True, False),
    "IGMP query": (False, True),
    "MLD query": (False, True),
    "DHCP offer to all": (False, True),
    "DHCPv6 lease": (False, True),
    "mDNS question, filtered": (False, True),
    "mDNS question, answer to the group, filtered": (False, True),
    "NetBIOS question, filtered": (False, True),
    "question from 0.0.0.0, filtered": (False, True),
    "DHCP server, filtered": (False, True),
    "DHCPv6 server, filtered": (False, True),
}


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name in KINDS for family in KINDS[name].families]
)
def test_answers_come_back_as_with_nftables(world: World, name: str, family: int) -> None:
    kind = KINDS[name]
    with_nftables, with_zfw = DIFFERENT.get(name, (name not in UNSOLICITED,) * 2)
    world.patience = PATIENCE
    assert kind.happens(world, family), "without a firewall"
    with nftables(world, kind):
        world.patience = PATIENCE if with_nftables else SILENCE
        assert kind.happens(world, family) == with_nftables, "with nftables"
    with zfw(world, kind):
        world.patience = PATIENCE if with_zfw else SILENCE
        assert kind.happens(world, family) == with_zfw, "with zfw"


def test_thirty_kinds_of_each_family_are_compared() -> None:
    for family in (4, 6):
        assert len([name for name in KINDS if family in KINDS[name].families]) >= 30


def test_what_differs_is_documented() -> None:
    """By a row of the page's table, which may be of several kinds."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    results = {(True, False): ["pass", "dropped"], (False, True): ["dropped", "pass"]}
    documented = {
        name: [cell.strip() for cell in row[2:4]]
        for row in rows
        for name in row[1].strip().split("; ")
    }
    assert {name: documented.get(name) for name in DIFFERENT} == {
        name: results[by] for name, by in DIFFERENT.items()
    }
