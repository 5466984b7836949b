# SPDX-License-Identifier: GPL-2.0-only
"""A gateway with a firewall that forwards: conversations and frames through it, and its flows.

``Router`` is the value of the fixture ``router``; the tests of a file share one.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager
from struct import pack
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from tests.firewall.support import flow_tables
from tests.firewall.support.frames import (
    DEFAULT_SETTINGS,
    FAMILIES,
    SILENCE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    Capture,
    Filtering,
    family_of,
)
from tests.support.netns import Namespace, Namespaces, RoutedNetwork
from tests.support.waiting import PATIENCE
from zfw_py import Firewall, Flow, FlowLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

    from tests.support.netns import End

CLIENT = {4: RoutedNetwork.client_ipv4, 6: RoutedNetwork.client_ipv6}
SERVER = {4: RoutedNetwork.server_ipv4, 6: RoutedNetwork.server_ipv6}
INSIDE_GATEWAY = {4: "10.9.0.1", 6: "fd09::1"}
OUTSIDE_GATEWAY = {4: "10.8.0.1", 6: "fd08::1"}
# No stack has these addresses: a packet to them arrives and is not answered.
SILENT_CLIENT = {4: "10.9.0.77", 6: "fd09::77"}
SILENT_SERVER = {4: "10.8.0.77", 6: "fd08::77"}
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}

PORT = 5000


class Wires(RoutedNetwork):
    """A routed network whose client and server send frames as they are, beside their stacks."""

    def __init__(self) -> None:
        """Neighbours are permanent: no kernel resolves them in the middle of a test."""
        super().__init__()
        self._wires: dict[Namespace, tuple[socket.socket, str, str]] = {}
        # An error is never held back because of an earlier one.
        self.gateway.sysctl(0, "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit")
        self.gateway.sysctl(0, "ipv4/conf/all/rp_filter")
        for peer, name, addresses in (
            (self.client, self.inside, (INSIDE_GATEWAY, CLIENT, SILENT_CLIENT)),
            (self.server, self.outside, (OUTSIDE_GATEWAY, SERVER, SILENT_SERVER)),
        ):
            self.gateway.sysctl(0, f"ipv4/conf/{name}/rp_filter")
            peer.sysctl(0, "ipv4/conf/eth0/rp_filter")
            mac, peer_mac = self.gateway.mac(name), peer.mac("eth0")
            for family in FAMILIES:
                gateway_address, *peer_addresses = (each[family] for each in addresses)
                peer.add_neighbour("eth0", gateway_address, mac)
                for address in peer_addresses:
                    self.gateway.add_neighbour(name, address, peer_mac)
            self._wires[peer] = peer.packet_socket("eth0"), peer_mac, mac

    @property
    def interfaces(self) -> tuple[str, str]:
        """The gateway's interfaces: inside, outside."""
        return (self.inside, self.outside)

    def close(self) -> None:
        """Close the namespaces."""
        for wire, _, _ in self._wires.values():
            wire.close()
        super().close()

    def framed(self, peer: Namespace, packet: Packet | bytes) -> bytes:
        """Add an Ethernet header from that peer to the gateway, unless there is one."""
        if isinstance(packet, (bytes, Ether)):
            return bytes(packet)
        _, mac, gateway_mac = self._wires[peer]
        return bytes(Ether(src=mac, dst=gateway_mac) / packet)

    def send(self, peer: Namespace, *packets: Packet | bytes) -> None:
        """Send packets from the client or the server, as they are."""
        for packet in packets:
            self._wires[peer][0].send(self.framed(peer, packet))

    def capture(self, peer: Namespace) -> Capture:
        """Capture what arrives at the client or the server."""
        return Capture(peer, "eth0")


class Router(Filtering, Wires):
    """Wires, and the firewall on both interfaces of the gateway, in both directions."""

    # The gateway's own kernel reports its groups; unfiltered that is counted as "egress".
    unasked = frozenset({"multicast_listener", "egress"})

    def __init__(self) -> None:
        """Attach."""
        super().__init__()
        with self.gateway.entered():
            self.firewall = Firewall()
            for name in self.interfaces:
                self.firewall.attach(name, "both")

    def close(self) -> None:
        """Detach the firewall, and close the namespaces."""
        with self.gateway.entered():
            self.firewall.detach_all()
        super().close()

    def reset(self) -> None:
        """Delete all rules and flows; reset settings and limits to the defaults, but IPv6 on."""
        if self.firewall.rules():
            self.firewall.flush()
        for setting, on in DEFAULT_SETTINGS.items():
            self.firewall.set(self.interfaces, setting, on)
        self.firewall.set_flow_limits(**FlowLimits()._asdict())
        flow_tables.clear_flows()

    # Rules and settings

    def set(self, setting: str, on: bool = True, *names: str) -> None:
        """Turn a setting on or off, on both interfaces unless some are named."""
        self.firewall.set(names or self.interfaces, setting, on)

    def let_clients_in(self) -> None:
        """Pass everything that arrives at the inside interface, and nothing at the outside one."""
        self.set("per_interface_rules", True, self.outside)
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                self.insert(ANYWHERE[family], protocol, 0, 65535, interfaces=(self.inside,))

    # Flows

    def age_flows(self, seconds: float) -> None:
        """Make all flows older."""
        flow_tables.age_flows(seconds)

    def flow(self, protocol: str, port: int = PORT) -> Flow | None:
        """The tracked flow of this protocol to this port, if there is one."""
        found = [
            flow
            for flow in self.firewall.flows()
            if flow.protocol == protocol and flow.responder_port == port
        ]
        assert len(found) <= 1, found
        return found[0] if found else None

    def state(self, protocol: str = "tcp", port: int = PORT) -> str | None:
        """The state of that flow."""
        flow = self.flow(protocol, port)
        return flow.state if flow else None


# Packets


def ip(source: str, destination: str, **fields: Any) -> Packet:
    """The IP header from one address to another."""
    return (IP, IPv6)[family_of(destination) == 6](src=source, dst=destination, **fields)


def segment(
    source: tuple[str, int],
    destination: tuple[str, int],
    flags: str,
    seq: int,
    ack: int = 0,
    data: bytes = b"",
) -> Packet:
    """A TCP segment between two ends."""
    header = TCP(sport=source[1], dport=destination[1], flags=flags, seq=seq, ack=ack)
    return ip(source[0], destination[0]) / header / data


def datagram(
    source: tuple[str, int], destination: tuple[str, int], data: bytes = b"data"
) -> Packet:
    """A UDP datagram between two ends."""
    return ip(source[0], destination[0]) / UDP(sport=source[1], dport=destination[1]) / data


def ping(family: int, kind: str, identifier: int = 7) -> Packet:
    """An echo message without its IP header."""
    if family == 4:
        return ICMP(type=f"echo-{kind}", id=identifier, seq=1) / b"ping"
    message = {"request": ICMPv6EchoRequest, "reply": ICMPv6EchoReply}[kind]
    return message(id=identifier, seq=1, data=b"ping")


ECHO_REPLY = {4: ICMP, 6: ICMPv6EchoReply}


# Conversations


def raw_socket(namespace: Namespace, family: int, protocol: int) -> socket.socket:
    """A raw socket that sends and receives the payload of IP."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with namespace.entered():
        made = socket.socket(kind, socket.SOCK_RAW, protocol)
    made.settimeout(PATIENCE)
    return made


def bound(
    namespace: Namespace, protocol: str, family: int, port: int = 0, patience: float = PATIENCE
) -> socket.socket:
    """A socket in a namespace, bound to a port of all addresses, with a time-out."""
    with namespace.entered():
        made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if protocol == "tcp":
        # close(2) sends a RST. A FIN could be retransmitted during later tests.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    made.settimeout(patience)
    made.bind(("", port))
    return made


@contextmanager
def serving(
    namespace: Namespace, protocol: str, family: int, port: int = PORT
) -> Iterator[socket.socket]:
    """A TCP listener or a UDP socket in a namespace."""
    with bound(namespace, protocol, family, port) as server:
        if protocol == "tcp":
            server.listen(64)
        yield server


def hears_nothing(connection: socket.socket) -> bool:
    """Whether neither data nor a FIN arrives within SILENCE seconds."""
    return not select.select([connection], [], [], SILENCE)[0]


class Conversation:
    """Two sockets that exchange data through the gateway."""

    def __init__(self, asker: socket.socket, answerer: socket.socket) -> None:
        self.asker, self.answerer = asker, answerer

    def talks(self) -> None:
        """Send a question and its answer; both arrive."""
        for each in (self.asker, self.answerer):
            each.settimeout(PATIENCE)
        self.asker.send(b"question")
        if self.asker.type == socket.SOCK_STREAM:
            assert self.answerer.recv(100) == b"question"
            self.answerer.sendall(b"answer")
        else:
            data, address = self.answerer.recvfrom(100)
            assert data == b"question"
            self.answerer.sendto(b"answer", address)
        assert self.asker.recv(100) == b"answer"
        if self.asker.type == socket.SOCK_STREAM:
            # Acknowledge now: a delayed ACK would be counted by later steps of the test.
            self.asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def answers(self) -> None:
        """Send one more answer, without a question."""
        if self.asker.type == socket.SOCK_STREAM:
            self.answerer.sendall(b"answer")
            return
        address, peer = self.asker.getsockname(), self.asker.getpeername()
        assert peer[1] == self.answerer.getsockname()[1]
        self.answerer.sendto(b"answer", address)

    def asks_in_vain(self) -> None:
        """Send a question, which does not arrive."""
        self.asker.send(b"question")
        assert hears_nothing(self.answerer)


@contextmanager
def conversation(
    protocol: str,
    initiator: Namespace,
    responder: Namespace,
    address: str,
    port: int = PORT,
    *,
    source_port: int = 0,
    patience: float = PATIENCE,
) -> Iterator[Conversation]:
    """A conversation that has carried a question and an answer.

    ``patience`` is for the beginning: less where it is expected to fail.
    """
    family = family_of(address)
    with (
        serving(responder, protocol, family, port) as server,
        bound(initiator, protocol, family, source_port, patience) as client,
    ):
        client.connect((address, port))
        server.settimeout(patience)
        if protocol == "udp":
            made = Conversation(client, server)
            made.talks()
            yield made
            return
        connection, _ = server.accept()
        with connection:
            made = Conversation(client, connection)
            made.talks()
            yield made


def transfer(sender: socket.socket, receiver: socket.socket, size: int = 1 << 20) -> None:
    """Send ``size`` bytes, all of which arrive, in segments of any size."""
    data = bytes(range(256)) * (size // 256)
    sending = threading.Thread(target=sender.sendall, args=(data,))
    sending.start()
    received = bytearray()
    while len(received) < len(data):
        part = receiver.recv(1 << 16)
        assert part, "the connection ended early"
        received += part
    sending.join()
    assert received == data


@contextmanager
def attempt(
    protocol: str, initiator: Namespace, address: str, port: int = PORT
) -> Iterator[socket.socket]:
    """A socket that has sent a SYN or a datagram, and does not wait for an answer."""
    with bound(initiator, protocol, family_of(address)) as client:
        client.setblocking(False)
        client.connect_ex((address, port))
        if protocol == "udp":
            client.send(b"anybody?")
        yield client


class Host(Namespaces):
    """A host of subnet ``net`` behind one of the gateway's devices; addresses by family."""

    device = ""  # the gateway's

    def __init__(self, net: int) -> None:
        super().__init__()
        self.net = net
        self.namespace = self.add()
        self.address = {4: f"10.{net}.0.2", 6: f"fd0{net}::2"}
        self.gateway = {4: f"10.{net}.0.1", 6: f"fd0{net}::1"}

    def end(self, namespace: Namespace, interface: str, number: int) -> End:
        """An end of the host's link, with the addresses of this number in the subnet."""
        return (namespace, interface, f"10.{self.net}.0.{number}/24", f"fd0{self.net}::{number}/64")


@contextmanager
def host_behind(router: Router, peer: Namespace, mtu: int) -> Iterator[Host]:
    """A host behind the client or the server, which forwards to it by a link of a smaller MTU.

    The host's own MTU is larger: it may send packets that it could not receive.
    """
    via = CLIENT if peer is router.client else SERVER
    forwarding = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    subnets = {4: "10.7.0.0/24", 6: "fd07::/64"}
    host = Host(7)
    try:
        host.join(host.end(peer, "far0", 1), host.end(host.namespace, "eth0", 2))
        host.namespace.route_by(*host.gateway.values())
        peer.ip(f"link set far0 mtu {mtu}")
        peer.sysctl(1, *forwarding)
        peer.sysctl(0, *(f"ipv4/conf/{name}/rp_filter" for name in ("all", "eth0", "far0")))
        peer.sysctl(0, "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit")
        for family, net in subnets.items():
            router.gateway.ip(f"-{family} route replace {net} via {via[family]}")
        yield host
    finally:
        peer.sysctl(0, *forwarding)
        peer.run("ip", "link", "del", "far0", check=False)
        host.close()
        for family, net in subnets.items():
            router.gateway.run("ip", f"-{family}", "route", "del", net, check=False)
        for namespace in (router.client, router.server, router.gateway):
            # Path MTUs that the kernel has learned.
            namespace.ip(*(f"-{family} route flush cache" for family in FAMILIES))
