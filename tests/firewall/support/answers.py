# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of traffic that have an answer, on real sockets through one gateway.

Each function takes the network and a family, and tells whether the answer came. What is expected
to be dropped is waited for ``World.patience`` seconds.
"""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6MLQuery, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.firewall.support.routed import (
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
    transfer,
)
from tests.support.waiting import PATIENCE, wait_until
from zfw_py import Firewall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scapy.packet import Packet

    from tests.support.netns import Namespace

    Happens = Callable[["World", int], bool]

ICMP_NUMBER = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
TIME_EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: 3, 6: 1}
ECHO_REPLY = {4: 0, 6: 129}
UDP_LITE, SCTP, DCCP, GRE, ESP, AH = 136, 132, 33, 47, 50, 51
IPIP = {4: 4, 6: 41}
# Behind far0 of the server: the least that IPv6 allows.
SMALL_MTU = 1280
# linux/in.h, linux/in6.h
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
PATH_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
PMTUDISC_DO = 2
BROADCAST = {4: "10.8.0.255"}
GROUP = {4: "224.0.0.251", 6: "ff02::fb"}
STREAM_GROUP = {4: "239.1.2.3", 6: "ff05::1:3"}


class World(Wires):
    """The routed network, and a host behind the server; each conversation has ports of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patience = PATIENCE  # less where nothing is expected
        self.far = Host(7)
        self.far.join(
            self.far.end(self.server, "far0", 1), self.far.end(self.far.namespace, "eth0", 2)
        )
        self.server.ip(f"link set far0 mtu {SMALL_MTU}")
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

    def age_flows(self) -> None:
        """Let two minutes pass without a packet, where a firewall keeps time."""

    def close(self) -> None:
        with self.gateway.entered():
            Firewall().detach_all()
        self.far.close()
        super().close()

    def hears(self, heard: socket.socket, wanted: bytes) -> bool:
        """Whether a datagram or message with these bytes arrives."""
        return self.receives(heard, lambda data: wanted in data)

    def receives(self, heard: socket.socket, is_wanted: Callable[[bytes], bool]) -> bool:
        """Whether something arrives for which ``is_wanted`` is true."""
        heard.settimeout(self.patience)
        with suppress(TimeoutError):
            while True:
                if is_wanted(heard.recv(65535)):
                    return True
        return False

    def hears_message(
        self, heard: socket.socket, family: int, is_wanted: Callable[[bytes], bool]
    ) -> bool:
        """Whether an ICMP message arrives at a raw socket for which ``is_wanted`` is true."""
        skipped = (lambda data: (data[0] & 15) * 4) if family == 4 else (lambda _: 0)
        return self.receives(heard, lambda data: is_wanted(data[skipped(data) :]))

    def hears_error(self, heard: socket.socket, family: int, type_: int, port: int) -> bool:
        """Whether an ICMP error of this type arrives that quotes this destination port."""
        at = 8 + (20 if family == 4 else 40) + 2
        return self.hears_message(
            heard,
            family,
            lambda message: message[0] == type_ and message[at : at + 2] == port.to_bytes(2, "big"),
        )

    def is_answered(
        self,
        asker: socket.socket,
        answerer: socket.socket,
        to: tuple[str, int],
        answer: bytes = b"answer",
    ) -> bool:
        """Whether a datagram from a socket that is not connected has an answer."""
        try:
            asker.sendto(b"question", to)
        except PermissionError:
            return False  # the sender hears of an outbound filter's drop
        return self.hears_question(answerer, answer) and self.hears(asker, answer)

    def hears_question(self, answerer: socket.socket, answer: bytes = b"answer") -> bool:
        """Whether a question arrives, and the answer may be sent."""
        answerer.settimeout(self.patience)
        try:
            data, address = answerer.recvfrom(100)
            assert data == b"question"
            answerer.sendto(answer, address)
        except (TimeoutError, PermissionError):
            return False
        return True


def set_hops(sender: socket.socket, family: int, hops: int) -> None:
    if family == 4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)


def use_groups(
    namespace: Namespace, interface: str, family: int, used: socket.socket, group: str = ""
) -> None:
    """Send a socket's multicast and broadcast by an interface, and join a group there."""
    with namespace.entered():
        index = socket.if_nametoindex(interface)
    used.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if family == 4:
        used.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", index)
        )
        if group:
            member = struct.pack("4s4si", socket.inet_aton(group), b"", index)
            used.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        return
    used.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    if group:
        member = struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, group), index)
        used.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


# Pings and routes


def a_ping(world: World, family: int) -> bool:
    identifier = world.port()
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        own.sendto(bytes(ping(family, "request", identifier)), (SERVER[family], 0))
        return world.hears_message(
            own,
            family,
            lambda message: (
                message[0] == ECHO_REPLY[family] and message[4:6] == identifier.to_bytes(2, "big")
            ),
        )


def mtr(world: World, family: int) -> bool:
    """Probes of two hops at once, by one identifier and different numbers."""
    identifier = world.port()
    number = identifier.to_bytes(2, "big")
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        for hops in (1, 9):
            set_hops(own, family, hops)
            probe = (
                ICMP(id=identifier, seq=hops)
                if family == 4
                else ICMPv6EchoRequest(id=identifier, seq=hops)
            )
            own.sendto(bytes(probe), (world.far.address[family], 0))
        is_on_the_way = world.hears_message(
            own,
            family,
            lambda message: message[0] == TIME_EXCEEDED[family] and number in message[28:],
        )
        return is_on_the_way and world.hears_message(
            own,
            family,
            lambda message: message[0] == ECHO_REPLY[family] and message[4:6] == number,
        )


def a_udp_traceroute(place: str, protocol: int = socket.IPPROTO_UDP) -> Happens:
    """The error of a router on the way, and that of the destination."""

    def happens(world: World, family: int) -> bool:
        port = world.port()
        namespace: Namespace = getattr(world, place)
        hops = 1 if place == "gateway" else 2
        kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
        with namespace.entered():
            own = socket.socket(kind, socket.SOCK_DGRAM, protocol)
        with own, raw_socket(namespace, family, ICMP_NUMBER[family]) as errors:
            set_hops(own, family, hops)
            own.sendto(b"probe", (world.far.address[family], port))
            if not world.hears_error(errors, family, TIME_EXCEEDED[family], port):
                return False
            set_hops(own, family, 9)
            own.sendto(b"probe", (world.far.address[family], port))
            return world.hears_error(errors, family, UNREACHABLE[family], port)

    return happens


def an_icmp_traceroute(world: World, family: int) -> bool:
    identifier = world.port()
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        set_hops(own, family, 1)
        request = bytes(ping(family, "request", identifier))
        own.sendto(request, (world.far.address[family], 0))
        return world.hears_message(
            own,
            family,
            lambda message: (
                message[0] == TIME_EXCEEDED[family]
                and identifier.to_bytes(2, "big") in message[28:]
            ),
        )


def a_raw_traceroute(protocol: int) -> Happens:
    """A packet that no socket of the gateway knows, as traceroute -T and -P send it."""

    def happens(world: World, family: int) -> bool:
        port, own_port = world.port(), world.port()
        probe = {
            socket.IPPROTO_TCP: lambda: bytes(
                segment(
                    (OUTSIDE_GATEWAY[family], own_port),
                    (world.far.address[family], port),
                    "S",
                    1,
                ).payload.build()
            ),
            # RFC 9260, section 3.3.2: INIT
            SCTP: lambda: struct.pack(
                "!HHIIBBHIIHHI", own_port, port, 0, 0, 1, 0, 20, 1, 1 << 16, 1, 1, 1
            ),
            # RFC 4340, section 5.1: DCCP-Request, in three words and the service code
            DCCP: lambda: struct.pack("!HHBBHBBHII", own_port, port, 5, 0, 0, 1, 0, 0, 1, 0),
        }[protocol]()
        with (
            raw_socket(world.gateway, family, ICMP_NUMBER[family]) as errors,
            raw_socket(world.gateway, family, protocol) as own,
        ):
            set_hops(own, family, 1)
            own.sendto(probe, (world.far.address[family], 0))
            return world.hears_error(errors, family, TIME_EXCEEDED[family], port)

    return happens


def an_icmp_timestamp(world: World, family: int) -> bool:
    """As clockdiff asks for it: RFC 792."""
    identifier = world.port()
    with raw_socket(world.gateway, family, ICMP_NUMBER[family]) as own:
        own.sendto(bytes(ICMP(type=13, id=identifier)), (SERVER[family], 0))
        return world.hears_message(
            own,
            family,
            lambda message: message[0] == 14 and message[4:6] == identifier.to_bytes(2, "big"),
        )


# Questions in datagrams


def a_dns_forwarder(place: str) -> Happens:
    """One socket that is not connected asks two servers."""

    def happens(world: World, family: int) -> bool:
        port = world.port()
        with (
            serving(world.server, "udp", family, port) as near,
            serving(world.far.namespace, "udp", family, port) as far,
            bound(getattr(world, place), "udp", family) as own,
        ):
            return all(
                world.is_answered(own, server, (address, port))
                for server, address in (
                    (near, SERVER[family]),
                    (far, world.far.address[family]),
                )
            )

    return happens


def from_port(own_port: int, port: int) -> Happens:
    """From a fixed port of any address: NTP, a DHCP client that renews its lease."""

    def happens(world: World, family: int) -> bool:
        with (
            serving(world.server, "udp", family, port) as server,
            bound(world.gateway, "udp", family, own_port) as own,
        ):
            return world.is_answered(own, server, (SERVER[family], port))

    return happens


def wireguard(world: World, family: int) -> bool:
    """Two sockets of fixed ports; the peer sends at any time once it was asked."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as peer,
        bound(world.gateway, "udp", family, port) as own,
    ):
        if not world.is_answered(own, peer, (SERVER[family], port)):
            return False
        peer.sendto(b"keepalive", (OUTSIDE_GATEWAY[family], port))
        return world.hears(own, b"keepalive")


def a_roaming_peer(world: World, family: int) -> bool:
    """WireGuard's peer goes on from another address, where nothing asked it yet."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as peer,
        serving(world.far.namespace, "udp", family, port) as roamed,
        bound(world.gateway, "udp", family, port) as own,
    ):
        assert world.is_answered(own, peer, (SERVER[family], port))
        roamed.sendto(b"roamed", (OUTSIDE_GATEWAY[family], port))
        return world.hears(own, b"roamed")


def a_refused_datagram(place: str) -> Happens:
    """A connected socket hears of the error about its datagram."""

    def happens(world: World, family: int) -> bool:
        with bound(getattr(world, place), "udp", family) as own:
            own.connect((SERVER[family], world.port()))
            own.settimeout(world.patience)
            own.send(b"question")
            try:
                own.recv(1)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
        return False

    return happens


def udp_of(place: str) -> Happens:
    def happens(world: World, family: int) -> bool:
        port = world.port()
        with (
            serving(world.server, "udp", family, port) as server,
            bound(getattr(world, place), "udp", family) as own,
        ):
            return world.is_answered(own, server, (SERVER[family], port))

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
        return all(world.is_answered(each, server, to) for each in (before, after, before))


def from_another_port(place: str) -> Happens:
    """A server's datagram from another port than the one that was asked: TFTP, the media of SIP."""

    def happens(world: World, family: int) -> bool:
        port = world.port()
        namespace: Namespace = getattr(world, place)
        address = {"gateway": OUTSIDE_GATEWAY, "client": CLIENT}[place][family]
        with (
            serving(world.server, "udp", family, port) as server,
            bound(world.server, "udp", family) as other,
            bound(namespace, "udp", family) as own,
        ):
            assert world.is_answered(own, server, (SERVER[family], port))
            other.sendto(b"from another port", (address, own.getsockname()[1]))
            return world.hears(own, b"from another port")

    return happens


def media_of_a_call(world: World, family: int) -> bool:
    """The server sends to a port that the client only named, as in SIP's SDP."""
    port = world.port()
    with (
        serving(world.server, "udp", family, port) as server,
        bound(world.client, "udp", family) as own,
        bound(world.client, "udp", family) as media,
    ):
        assert world.is_answered(own, server, (SERVER[family], port))
        server.sendto(b"media", (CLIENT[family], media.getsockname()[1]))
        return world.hears(media, b"media")


# Groups


def asked_a_group(port: int, own_port: int = 0) -> Happens:
    """The gateway asks a group, and the server answers from its own address: mDNS, SSDP."""

    def happens(world: World, family: int) -> bool:
        with (
            bound(world.server, "udp", family, port) as server,
            bound(world.gateway, "udp", family, own_port) as own,
        ):
            use_groups(world.server, "eth0", family, server, GROUP[family])
            use_groups(world.gateway, world.outside, family, own)
            return world.is_answered(own, server, (GROUP[family], port))

    return happens


def asked_all(world: World, family: int) -> bool:
    """As NetBIOS does, from port 137 to port 137."""
    with (
        bound(world.server, "udp", family, 137) as server,
        bound(world.gateway, "udp", family, 137) as own,
    ):
        use_groups(world.gateway, world.outside, family, own)
        return world.is_answered(own, server, (BROADCAST[family], 137))


def answers_a_group(port: int, own_port: int = 0) -> Happens:
    """The server asks a group, and the gateway answers from its own address."""

    def happens(world: World, family: int) -> bool:
        with (
            bound(world.gateway, "udp", family, port) as service,
            bound(world.server, "udp", family, own_port) as asker,
        ):
            use_groups(world.gateway, world.outside, family, service, GROUP[family])
            use_groups(world.server, "eth0", family, asker)
            return world.is_answered(asker, service, (GROUP[family], port))

    return happens


def answers_to_the_group(world: World, family: int) -> bool:
    """Of mDNS: question and answer go to the group, from port 5353 to port 5353."""
    with (
        bound(world.gateway, "udp", family, 5353) as service,
        bound(world.server, "udp", family, 5353) as asker,
    ):
        use_groups(world.gateway, world.outside, family, service, GROUP[family])
        use_groups(world.server, "eth0", family, asker, GROUP[family])
        asker.sendto(b"question", (GROUP[family], 5353))
        if not world.hears(service, b"question"):
            return False
        try:
            service.sendto(b"answer", (GROUP[family], 5353))
        except PermissionError:
            return False
        return world.hears(asker, b"answer")


def answers_all(world: World, family: int) -> bool:
    """A question to all, and the answer of the gateway."""
    with (
        bound(world.gateway, "udp", family, 137) as service,
        bound(world.server, "udp", family, 137) as asker,
    ):
        use_groups(world.server, "eth0", family, asker)
        return world.is_answered(asker, service, (BROADCAST[family], 137))


def answers_one_without_an_address(world: World, family: int) -> bool:
    """A question from 0.0.0.0 to all; the answer goes to all."""
    port, own_port = 8445, world.port()
    with (
        bound(world.gateway, "udp", family, port) as service,
        bound(world.server, "udp", family, own_port) as asker,
    ):
        use_groups(world.gateway, world.outside, family, service)
        service.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, world.outside.encode())
        head = IP(src="0.0.0.0", dst="255.255.255.255")
        question = head / UDP(sport=own_port, dport=port) / b"question"
        frame = Ether(src=world.server.mac("eth0"), dst="ff:ff:ff:ff:ff:ff") / question
        world.send(world.server, bytes(frame))
        if not world.hears(service, b"question"):
            return False
        try:
            service.sendto(b"answer", ("255.255.255.255", own_port))
        except PermissionError:
            return False
        return world.hears(asker, b"answer")


def a_stream(world: World, family: int) -> bool:
    """A group's datagrams, which the gateway has joined and nothing asked for."""
    port = world.port()
    with (
        bound(world.gateway, "udp", family, port) as own,
        bound(world.server, "udp", family) as source,
    ):
        use_groups(world.gateway, world.outside, family, own, STREAM_GROUP[family])
        use_groups(world.server, "eth0", family, source)
        source.sendto(b"stream", (STREAM_GROUP[family], port))
        return world.hears(own, b"stream")


def membership(world: World, family: int) -> bool:
    """A router's query of groups arrives, as a switch with snooping needs it."""
    source, number = world.server.mac("eth0"), {4: socket.IPPROTO_IGMP, 6: ICMP_NUMBER[6]}
    with raw_socket(world.gateway, family, number[family]) as own:
        if family == 4:
            query: Packet = IP(src=SERVER[4], dst="224.0.0.1", ttl=1, proto=2)
            query /= Raw(b"\x11\0\xee\xff\0\0\0\0")
            world.send(world.server, bytes(Ether(src=source, dst="01:00:5e:00:00:01") / query))
            return world.hears(own, b"\x11\0\xee\xff")
        query = IPv6(src="fe80::5", dst="ff02::1", hlim=1) / ICMPv6MLQuery()
        world.send(world.server, bytes(Ether(src=source, dst="33:33:00:00:00:01") / query))
        return world.hears_message(own, family, lambda message: message[0] == 130)


# DHCP


def a_dhcp_offer(world: World, family: int) -> bool:
    """To all, for a client that has no address yet."""
    with (
        bound(world.gateway, "udp", family, 68) as own,
        bound(world.server, "udp", family, 67) as server,
    ):
        use_groups(world.server, "eth0", family, server)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        server.sendto(b"offer", ("255.255.255.255", 68))
        return world.hears(own, b"offer")


def link_local_of(namespace: Namespace, interface: str) -> str:
    shown = namespace.run("ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link")
    return shown.stdout.split(" inet6 ")[1].split("/")[0]


def dhcpv6(asker: str, answerer: str) -> Happens:
    """From a link-local address to the group of servers, and back: RFC 8415."""

    def happens(world: World, family: int) -> bool:
        ends = {"gateway": (world.gateway, world.outside), "server": (world.server, "eth0")}
        with (
            bound(ends[asker][0], "udp", family, 546) as own,
            bound(ends[answerer][0], "udp", family, 547) as server,
        ):
            use_groups(*ends[answerer], family, server, "ff02::1:2")
            use_groups(*ends[asker], family, own)
            return world.is_answered(own, server, ("ff02::1:2", 547))

    return happens


def a_dhcp_server(world: World, family: int) -> bool:
    """The gateway's; the client has no address yet."""
    with (
        bound(world.gateway, "udp", family, 67) as service,
        bound(world.server, "udp", family, 68) as client,
    ):
        use_groups(world.gateway, world.outside, family, service)
        service.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, world.outside.encode())
        head = IP(src="0.0.0.0", dst="255.255.255.255")
        frame = Ether(src=world.server.mac("eth0"), dst="ff:ff:ff:ff:ff:ff") / head
        world.send(world.server, bytes(frame / UDP(sport=68, dport=67) / b"discover"))
        if not world.hears(service, b"discover"):
            return False
        try:
            service.sendto(b"offer", ("255.255.255.255", 68))
        except PermissionError:
            return False
        return world.hears(client, b"offer")


# Connections


def tcp_of(place: str) -> Happens:
    def happens(world: World, family: int) -> bool:
        initiator: Namespace = getattr(world, place)
        address, port = SERVER[family], world.port()
        try:
            with conversation(
                "tcp", initiator, world.server, address, port, patience=world.patience
            ) as talk:
                talk.talks()
        except TimeoutError:
            return False
        return True

    return happens


def a_refused_connection(world: World, family: int) -> bool:
    with bound(world.client, "tcp", family) as own:
        own.settimeout(world.patience)
        try:
            own.connect((SERVER[family], world.port()))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def a_reset(world: World, family: int) -> bool:
    """The server ends a connection with a RST."""
    with conversation("tcp", world.client, world.server, SERVER[family], world.port()) as talk:
        talk.answerer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        talk.answerer.close()
        talk.asker.settimeout(world.patience)
        try:
            talk.asker.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
    return False


def a_half_closed_connection(world: World, family: int) -> bool:
    """The client has sent all; the server's answer is still to come."""
    with conversation("tcp", world.client, world.server, SERVER[family], world.port()) as talk:
        talk.asker.shutdown(socket.SHUT_WR)
        assert talk.answerer.recv(1) == b""
        talk.answerer.sendall(b"at last")
        return world.hears(talk.asker, b"at last")


def an_idle_connection(world: World, family: int) -> bool:
    """As FTP's control connection during a transfer: longer than a datagram's flow lasts."""
    with conversation("tcp", world.client, world.server, SERVER[family], world.port()) as talk:
        world.age_flows()
        talk.answerer.sendall(b"complete")
        return world.hears(talk.asker, b"complete")


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


def a_server_that_calls_back(world: World, family: int) -> bool:
    """As active FTP's data connection, which only a helper would expect."""
    data = world.port()
    with (
        conversation("tcp", world.client, world.server, SERVER[family], world.port()),
        serving(world.client, "tcp", family, data),
        bound(world.server, "tcp", family) as back,
    ):
        back.settimeout(world.patience)
        try:
            back.connect((CLIENT[family], data))
        except TimeoutError:
            return False
        return True


def a_second_connection(world: World, family: int) -> bool:
    """As passive FTP's data connection."""
    with (
        conversation("tcp", world.client, world.server, SERVER[family], world.port()),
        conversation("tcp", world.client, world.server, SERVER[family], world.port()) as data,
    ):
        data.talks()
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
        return world.is_answered(asker, server, (OUTSIDE_GATEWAY[family], 8444))


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


# The path's MTU


@contextmanager
def without_path_mtu(namespace: Namespace) -> Iterator[None]:
    """The kernel has not learned the MTU of any path yet."""
    namespace.ip("-4 route flush cache", "-6 route flush cache")
    yield


def path_mtu_of_tcp(place: str) -> Happens:
    """Segments that are too large for a link behind the server."""

    def happens(world: World, family: int) -> bool:
        namespace: Namespace = getattr(world, place)
        address, port = world.far.address[family], world.port()
        with (
            without_path_mtu(namespace),
            conversation("tcp", namespace, world.far.namespace, address, port) as talk,
        ):
            for each in (talk.asker, talk.answerer):
                each.settimeout(world.patience)
            try:
                transfer(talk.asker, talk.answerer, 1 << 16)
            except TimeoutError:
                return False
            return True

    return happens


def path_mtu_of_udp(place: str) -> Happens:
    """The sender's kernel learns what a link behind the server takes."""

    def happens(world: World, family: int) -> bool:
        namespace: Namespace = getattr(world, place)
        with without_path_mtu(namespace), bound(namespace, "udp", family) as own:
            own.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DO)
            own.connect((world.far.address[family], world.port()))
            own.send(bytes(1400))
            return wait_until(
                lambda: own.getsockopt(*PATH_MTU[family]) == SMALL_MTU, world.patience
            )

    return happens


# Fragments


def large_datagrams(place: str) -> Happens:
    """Question and answer in fragments, in order."""

    def happens(world: World, family: int) -> bool:
        port, data = world.port(), bytes(4000)
        with (
            serving(world.server, "udp", family, port) as server,
            bound(getattr(world, place), "udp", family) as own,
        ):
            own.sendto(data, (SERVER[family], port))
            server.settimeout(world.patience)
            asked, address = server.recvfrom(5000)
            assert asked == data
            server.sendto(data, address)
            return world.hears(own, data)

    return happens


def a_large_ping(world: World, family: int) -> bool:
    """Request and reply in fragments, of a client."""
    identifier, data = world.port(), bytes(range(250)) * 12
    request = (
        ICMP(id=identifier) / data if family == 4 else ICMPv6EchoRequest(id=identifier, data=data)
    )
    with raw_socket(world.client, family, ICMP_NUMBER[family]) as own:
        own.sendto(bytes(request), (SERVER[family], 0))
        return world.hears_message(
            own,
            family,
            lambda message: message[0] == ECHO_REPLY[family] and message[8:] == data,
        )


def fragments_of(packet: Packet, identification: int) -> list[Packet]:
    if isinstance(packet, IPv6):
        whole = IPv6(bytes(packet))
        header = IPv6ExtHdrFragment(nh=whole.nh, id=identification)
        head = IPv6(src=whole.src, dst=whole.dst)
        packets: list[Packet] = fragment6(  # type: ignore[no-untyped-call]
            head / header / Raw(bytes(whole.payload)), 1000
        )
        return packets
    packet.id = identification
    packets = fragment(packet, 800)  # type: ignore[no-untyped-call]
    return packets


def shuffled_to(where: str, order: Callable[[list[Packet]], list[Packet]]) -> Happens:
    """An answer whose fragments come in this order, to the gateway or to a client behind it."""

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
            world.send(world.server, *order(fragments_of(answer, port)))
            return world.hears(own, bytes(2000))

    return happens


def last_first(fragments: list[Packet]) -> list[Packet]:
    return fragments[::-1]


def first_in_the_middle(fragments: list[Packet]) -> list[Packet]:
    first, *others = fragments
    return [others[-1], first, *others[:-1]]


# Tunnels


def of_protocol(protocol: int | dict[int, int]) -> Happens:
    """A packet of the gateway's to a peer, and the peer's, as of a tunnel."""

    def happens(world: World, family: int) -> bool:
        number = protocol if isinstance(protocol, int) else protocol[family]
        # RFC 4302: AH is a header before another one, here ESP's.
        head = struct.pack("!BBHII", ESP, 1, 0, 9, 1) if number == AH else b""
        data = head + world.port().to_bytes(4, "big") + bytes(12)
        with (
            raw_socket(world.gateway, family, number) as own,
            raw_socket(world.server, family, number) as peer,
        ):
            own.sendto(data + b"there", (SERVER[family], 0))
            if not world.hears(peer, b"there"):
                return False
            peer.sendto(data + b"back", (OUTSIDE_GATEWAY[family], 0))
            return world.hears(own, b"back")

    return happens
