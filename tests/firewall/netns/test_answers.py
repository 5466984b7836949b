# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of traffic beside nftables' ``ct state established,related accept``, both families.

Each kind crosses the same gateway three times: without a firewall, with nftables on the outside
interface, and with zfw as ``zfw attach`` attaches it. Both firewalls let in the same services.
A kind that the two treat differently is in ``DIFFERENT`` and in a table of docs/FIREWALL.md.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.inet import IP, TCP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.firewall.support.routed import (
    ANYWHERE,
    CLIENT,
    OUTSIDE_GATEWAY,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Host,
    Wires,
    bound,
    conversation,
    datagram,
    ping,
    raw_socket,
    segment,
    serving,
)
from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scapy.packet import Packet

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

PAGE = Path(__file__).parents[3] / "docs" / "FIREWALL.md"
ICMP_NUMBER = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
# Seconds to wait for what may be dropped.
PATIENCE = 0.5

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


class World(Wires):
    """The routed network, and a host behind the server; each conversation has ports of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.far = Host(7)
        self.far.join(
            self.far.end(self.server, "far0", 1), self.far.end(self.far.namespace, "eth0", 2)
        )
        self.far.namespace.route_by(*self.far.gateway.values())
        self.server.sysctl(1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        self.server.sysctl(0, "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit")
        for family, net in {4: "10.7.0.0/24", 6: "fd07::/64"}.items():
            self.gateway.ip(f"-{family} route add {net} via {SERVER[family]}")
        self._port = 20000

    def port(self) -> int:
        """A port that no conversation has had."""
        self._port += 1
        return self._port

    def close(self) -> None:
        with self.gateway.entered():
            Firewall().detach_all()
        self.far.close()
        super().close()


@pytest.fixture(scope="module")
def world(_private_bpffs: None) -> Iterator[World]:
    with World() as made:
        yield made


class Kind(NamedTuple):
    """A kind of traffic: ``happens`` tells whether it worked.

    ``services`` are protocols and ports that are let in. ``is_filtered``: no packet leaves
    that begins a flow.
    """

    happens: Callable[[World, int], bool]
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
            yield
        finally:
            # Loading the programs takes longest: they stay pinned.
            firewall.detach(world.outside)
            firewall.flush()


# Helpers of the kinds


def hears(heard: socket.socket, wanted: bytes) -> bool:
    """Whether a datagram or message with these bytes arrives."""
    heard.settimeout(PATIENCE)
    with suppress(TimeoutError):
        while True:
            if wanted in heard.recv(65535):
                return True
    return False


def set_hops(sender: socket.socket, family: int, hops: int) -> None:
    if family == 4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)


def hears_error(heard: socket.socket, family: int, type_: int, port: int) -> bool:
    """Whether an ICMP error of this type arrives that quotes this destination port."""
    heard.settimeout(PATIENCE)
    with suppress(TimeoutError):
        while True:
            data = heard.recv(65535)
            message = data[(data[0] & 15) * 4 :] if family == 4 else data
            quoted = message[8 + (20 if family == 4 else 40) :]
            if message[0] == type_ and quoted[2:4] == port.to_bytes(2, "big"):
                return True
    return False


TIME_EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: 3, 6: 1}


def is_answered(asker: socket.socket, answerer: socket.socket, to: tuple[str, int]) -> bool:
    """Whether a datagram from a socket that is not connected has an answer."""
    try:
        asker.sendto(b"question", to)
    except PermissionError:
        return False  # the sender hears of an outbound filter's drop
    answerer.settimeout(PATIENCE)
    try:
        data, address = answerer.recvfrom(100)
    except TimeoutError:
        return False
    assert data == b"question"
    answerer.sendto(b"answer", address)
    return hears(asker, b"answer")


# The gateway's own questions


def a_ping(world: World, family: int) -> bool:
    identifier = world.port()
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        own.sendto(bytes(ping(family, "request", identifier)), (SERVER[family], 0))
        reply = bytes([0 if family == 4 else 129, 0])
        own.settimeout(PATIENCE)
        with suppress(TimeoutError):
            while True:
                data = own.recv(65535)
                message = data[(data[0] & 15) * 4 :] if family == 4 else data
                if message[:2] == reply and message[4:6] == identifier.to_bytes(2, "big"):
                    return True
    return False


def a_udp_traceroute(world: World, family: int) -> bool:
    """The error of a router on the way, and that of the destination."""
    port = world.port()
    with (
        raw_socket(world.gateway, family, ICMP_NUMBER[family]) as errors,
        bound(world.gateway, "udp", family) as own,
    ):
        set_hops(own, family, 1)
        own.sendto(b"probe", (world.far.address[family], port))
        is_on_the_way = hears_error(errors, family, TIME_EXCEEDED[family], port)
        set_hops(own, family, 9)
        own.sendto(b"probe", (world.far.address[family], port))
        return is_on_the_way and hears_error(errors, family, UNREACHABLE[family], port)


def an_icmp_traceroute(world: World, family: int) -> bool:
    identifier = world.port()
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        set_hops(own, family, 1)
        request = bytes(ping(family, "request", identifier))
        own.sendto(request, (world.far.address[family], 0))
        own.settimeout(PATIENCE)
        with suppress(TimeoutError):
            while True:
                data = own.recv(65535)
                message = data[(data[0] & 15) * 4 :] if family == 4 else data
                if (
                    message[0] == TIME_EXCEEDED[family]
                    and identifier.to_bytes(2, "big") in message[28:]
                ):
                    return True
    return False


def a_tcp_traceroute(world: World, family: int) -> bool:
    """A SYN that no socket of the gateway knows, as traceroute -T sends it."""
    port = world.port()
    syn = segment((OUTSIDE_GATEWAY[family], port), (world.far.address[family], port), "S", 1)
    with (
        raw_socket(world.gateway, family, ICMP_NUMBER[family]) as errors,
        raw_socket(world.gateway, family, socket.IPPROTO_TCP) as own,
    ):
        set_hops(own, family, 1)
        own.sendto(bytes(syn.__class__(bytes(syn)).payload), (world.far.address[family], 0))
        return hears_error(errors, family, TIME_EXCEEDED[family], port)


def a_dns_forwarder(world: World, family: int) -> bool:
    """One socket that is not connected asks two servers at once."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as near,
        serving(world.far.namespace, "udp", family, port) as far,
        bound(world.gateway, "udp", family) as own,
    ):
        return all(
            is_answered(own, server, (address, port))
            for server, address in (
                (near, SERVER[family]),
                (far, world.far.address[family]),
            )
        )


def ntp(world: World, family: int) -> bool:
    """From port 123 of any address, to port 123."""
    with (
        serving(world.server, "udp", family, 123) as server,
        bound(world.gateway, "udp", family, 123) as own,
    ):
        return is_answered(own, server, (SERVER[family], 123))


def wireguard(world: World, family: int) -> bool:
    """Two sockets of fixed ports; the peer sends at any time once it was asked."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as peer,
        bound(world.gateway, "udp", family, port) as own,
    ):
        if not is_answered(own, peer, (SERVER[family], port)):
            return False
        peer.sendto(b"keepalive", (OUTSIDE_GATEWAY[family], port))
        return hears(own, b"keepalive")


def a_refused_datagram(world: World, family: int) -> bool:
    """A connected socket hears of the error about its datagram."""
    with bound(world.gateway, "udp", family) as own:
        own.connect((SERVER[family], world.port()))
        own.settimeout(PATIENCE)
        own.send(b"question")
        try:
            own.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


# Clients behind the gateway


def tcp_of(place: str, patience: float = 60.0) -> Callable[[World, int], bool]:
    """A connection of a namespace's; where it is expected to fail, with less patience."""

    def happens(world: World, family: int) -> bool:
        initiator: Namespace = getattr(world, place)
        try:
            with conversation(
                "tcp", initiator, world.server, SERVER[family], world.port(), patience=patience
            ) as talk:
                talk.talks()
        except TimeoutError:
            return False
        return True

    return happens


def udp_of(place: str) -> Callable[[World, int], bool]:
    def happens(world: World, family: int) -> bool:
        port = world.port()
        with (
            serving(world.server, "udp", family, port) as server,
            bound(getattr(world, place), "udp", family) as own,
        ):
            return is_answered(own, server, (SERVER[family], port))

    return happens


def a_migration(world: World, family: int) -> bool:
    """As QUIC's: the client goes on from another port, and both are answered."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as server,
        bound(world.client, "udp", family) as before,
        bound(world.client, "udp", family) as after,
    ):
        to = (SERVER[family], port)
        return all(is_answered(each, server, to) for each in (before, after, before))


def unasked(world: World, family: int) -> bool:
    """A server's datagram from another port than the one that was asked."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as server,
        bound(world.server, "udp", family) as other,
        bound(world.gateway, "udp", family) as own,
    ):
        assert is_answered(own, server, (SERVER[family], port))
        other.sendto(b"from another port", (OUTSIDE_GATEWAY[family], own.getsockname()[1]))
        return hears(own, b"from another port")


def a_refused_connection(world: World, family: int) -> bool:
    with bound(world.client, "tcp", family) as own:
        own.settimeout(PATIENCE)
        try:
            own.connect((SERVER[family], world.port()))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def a_large_answer(world: World, family: int) -> bool:
    """In fragments, in order, to the gateway."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as server,
        bound(world.gateway, "udp", family) as own,
    ):
        own.sendto(b"question", (SERVER[family], port))
        server.settimeout(PATIENCE)
        _, address = server.recvfrom(100)
        server.sendto(bytes(4000), address)
        return hears(own, bytes(4000))


def fragments_of(packet: Packet, identification: int) -> list[Packet]:
    if isinstance(packet, IPv6):
        whole = IPv6(bytes(packet))
        header = IPv6ExtHdrFragment(nh=whole.nh, id=identification)
        head = IPv6(src=whole.src, dst=whole.dst)
        return list(fragment6(head / header / Raw(bytes(whole.payload)), 1000))
    packet.id = identification
    return list(fragment(packet, 800))


def reversed_to(where: str) -> Callable[[World, int], bool]:
    """An answer whose fragments come last first, to the gateway or to a client behind it."""

    def happens(world: World, family: int) -> bool:
        port = world.port()
        with (
            serving(world.server, "udp", family, port) as server,
            bound(getattr(world, where), "udp", family) as own,
        ):
            own.sendto(b"question", (SERVER[family], port))
            server.settimeout(PATIENCE)
            _, address = server.recvfrom(100)
            answer = datagram((SERVER[family], port), address[:2], bytes(2000))
            world.send(world.server, *reversed(fragments_of(answer, port)))
            return hears(own, bytes(2000))

    return happens


def crossing_syns(world: World, family: int) -> bool:
    """Both ends connect at once; neither has a stack that answers."""
    client = (SILENT_CLIENT[family], world.port())
    server = (SILENT_SERVER[family], world.port())
    with world.capture(world.client) as heard:
        world.send(world.client, segment(client, server, "S", 1000))
        world.send(world.server, segment(server, client, "S", 5000))
        world.send(world.client, segment(client, server, "SA", 1000, 5001))
        world.send(world.server, segment(server, client, "SA", 5000, 1001))
        world.send(world.server, segment(server, client, "A", 5001, 1001, b"across"))
        try:
            return any(b"across" in bytes(heard.next(TCP)) for _ in range(3))
        except TimeoutError:
            return False


def membership(world: World, family: int) -> bool:
    """A router's query of groups arrives, as a switch with snooping needs it."""
    with raw_socket(world.gateway, family, socket.IPPROTO_IGMP) as own:
        head = IP(src=SERVER[4], dst="224.0.0.1", ttl=1, proto=2)
        query = head / Raw(b"\x11\0\xee\xff\0\0\0\0")
        frame = Ether(src=world.server.mac("eth0"), dst="01:00:5e:00:00:01") / query
        world.send(world.server, bytes(frame))
        return hears(own, b"\x11\0\xee\xff")


def a_dhcp_offer(world: World, family: int) -> bool:
    """To all, for a client that has no address yet."""
    with (
        bound(world.gateway, "udp", family, 68) as own,
        bound(world.server, "udp", family, 67) as server,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        server.sendto(b"offer", ("255.255.255.255", 68))
        return hears(own, b"offer")


def a_server_that_calls_back(world: World, family: int) -> bool:
    """As active FTP's data connection, which only a helper would expect."""
    data = world.port()
    with (
        conversation("tcp", world.client, world.server, SERVER[family], world.port()),
        serving(world.client, "tcp", family, data),
        bound(world.server, "tcp", family) as back,
    ):
        back.settimeout(PATIENCE)
        try:
            back.connect((CLIENT[family], data))
        except TimeoutError:
            return False
        return True


def a_service(world: World, family: int) -> bool:
    with conversation("tcp", world.server, world.gateway, OUTSIDE_GATEWAY[family], 8443) as talk:
        talk.talks()
    return True


def a_datagram_service(world: World, family: int) -> bool:
    with (
        serving(world.gateway, "udp", family, 8444) as server,
        bound(world.server, "udp", family) as asker,
    ):
        return is_answered(asker, server, (OUTSIDE_GATEWAY[family], 8444))


def the_same_ports_again(world: World, family: int) -> bool:
    """A connection on the ports of one that the server has closed first."""
    port, own_port = world.port(), world.port()
    for _ in range(2):
        with (
            serving(world.server, "tcp", family, port) as server,
            bound(world.client, "tcp", family, own_port) as own,
        ):
            own.connect((SERVER[family], port))
            connection, _ = server.accept()
            with connection:
                connection.shutdown(socket.SHUT_WR)
                assert own.recv(1) == b""
    return True


KINDS = {
    "ping": Kind(a_ping),
    "traceroute by UDP": Kind(a_udp_traceroute),
    "traceroute by ICMP": Kind(an_icmp_traceroute),
    "traceroute by TCP": Kind(a_tcp_traceroute),
    "DNS forwarder": Kind(a_dns_forwarder),
    "NTP, port 123 to 123": Kind(ntp),
    "WireGuard": Kind(wireguard),
    "port unreachable": Kind(a_refused_datagram),
    "TCP of the gateway": Kind(tcp_of("gateway")),
    "TCP of a client": Kind(tcp_of("client")),
    "UDP of a client": Kind(udp_of("client")),
    "QUIC migration": Kind(a_migration),
    "connection refused": Kind(a_refused_connection),
    "datagram from another port": Kind(unasked),
    "large answer in fragments": Kind(a_large_answer),
    "fragments, last one first": Kind(reversed_to("gateway")),
    "forwarded fragments, last one first": Kind(reversed_to("client")),
    "crossing SYNs": Kind(crossing_syns),
    "IGMP query": Kind(membership, families=(4,)),
    "DHCP offer to all": Kind(a_dhcp_offer, families=(4,)),
    "connection back, as active FTP's": Kind(a_server_that_calls_back),
    "TCP service, outbound filter": Kind(a_service, (("tcp", 8443),), is_filtered=True),
    "UDP service, outbound filter": Kind(a_datagram_service, (("udp", 8444),), is_filtered=True),
    "same ports again": Kind(the_same_ports_again),
    "TCP of a client, filtered": Kind(tcp_of("client", PATIENCE), is_filtered=True),
    "UDP of the gateway, filtered": Kind(udp_of("gateway"), is_filtered=True),
}
# Neither firewall lets in what nothing asked for.
UNSOLICITED = {
    "datagram from another port",
    "connection back, as active FTP's",
    "TCP of a client, filtered",
    "UDP of the gateway, filtered",
}
# By kind: whether it works with nftables, and with zfw.
DIFFERENT = {
    "forwarded fragments, last one first": (True, False),
    "IGMP query": (False, True),
    "DHCP offer to all": (False, True),
}


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name in KINDS for family in KINDS[name].families]
)
def test_answers_come_back_as_with_nftables(world: World, name: str, family: int) -> None:
    kind = KINDS[name]
    expected = DIFFERENT.get(name, (name not in UNSOLICITED,) * 2)
    assert kind.happens(world, family), "without a firewall"
    with nftables(world, kind):
        with_nftables = kind.happens(world, family)
    with zfw(world, kind):
        with_zfw = kind.happens(world, family)
    assert (with_nftables, with_zfw) == expected


def test_what_differs_is_documented() -> None:
    page = PAGE.read_text()
    assert [name for name in DIFFERENT if f"| {name} |" not in page] == []
