# SPDX-License-Identifier: GPL-2.0-only
"""A gateway under test that forwards: conversations through it, frames from either side, its flows.

A test file takes the fixtures by ``forwarding, router = routed.forwarding, routed.router``:
one gateway a file; between two tests no rule, no setting and no flow is left.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from struct import pack, pack_into, unpack_from
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from tests.firewall.support.frames import (
    DEFAULT_SETTINGS,
    FAMILIES,
    PATIENCE,
    SILENCE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    Counting,
    family_of,
)
from tests.support.netns import Namespace, RoutedNetwork
from zfw_py import Firewall, Flow, FlowLimits, Prefix, Rule, RuleKey
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scapy.packet import Packet

    from zfw_py import Inserted

CLIENT = {4: RoutedNetwork.client_ipv4, 6: RoutedNetwork.client_ipv6}
SERVER = {4: RoutedNetwork.server_ipv4, 6: RoutedNetwork.server_ipv6}
INSIDE_GATEWAY = {4: "10.9.0.1", 6: "fd09::1"}
OUTSIDE_GATEWAY = {4: "10.8.0.1", 6: "fd08::1"}
# Nobody has these: what is sent to them arrives, and no stack answers.
SILENT_CLIENT = {4: "10.9.0.77", 6: "fd09::77"}
SILENT_SERVER = {4: "10.8.0.77", 6: "fd08::77"}
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}

PORT = 5000
_ETH_P_ALL = 3
_SECOND = 1_000_000_000


class Router(Counting, RoutedNetwork):
    """Three namespaces, and the firewall on both interfaces of the gateway, in both directions."""

    # The gateway's own kernel reports its groups; unfiltered that is counted as "egress".
    unasked = frozenset({"multicast_listener", "egress"})

    def __init__(self) -> None:
        """Attach; neighbours are permanent, so that nothing but a test makes packets."""
        super().__init__()
        self._wires: dict[Namespace, tuple[socket.socket, str, str]] = {}
        macs = {}
        for namespace, names in (
            (self.client, ("eth0",)),
            (self.server, ("eth0",)),
            (self.gateway, (self.inside, self.outside)),
        ):
            with namespace.entered():
                for name in names:
                    sysctl = Path("/proc/sys/net")
                    (sysctl / f"ipv6/conf/{name}/router_solicitations").write_text("0")
                    (sysctl / f"ipv4/conf/{name}/rp_filter").write_text("0")
                    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:
                        probe.bind((name, 0))
                        macs[namespace, name] = probe.getsockname()[4].hex(":")
        with self.gateway.entered():
            Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")
            # Each error has its test: none is held back for the one before.
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
            Path("/proc/sys/net/ipv6/icmp/ratelimit").write_text("0")
        for peer, name, addresses in (
            (self.client, self.inside, (INSIDE_GATEWAY, CLIENT, SILENT_CLIENT)),
            (self.server, self.outside, (OUTSIDE_GATEWAY, SERVER, SILENT_SERVER)),
        ):
            mac, peer_mac = macs[self.gateway, name], macs[peer, "eth0"]
            for family in FAMILIES:
                gateway_address, *peer_addresses = (each[family] for each in addresses)
                _introduce(peer, "eth0", gateway_address, mac)
                for address in peer_addresses:
                    _introduce(self.gateway, name, address, peer_mac)
            with peer.entered():
                wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                wire.bind(("eth0", 0))
            self._wires[peer] = wire, peer_mac, mac
        with self.gateway.entered():
            self.firewall = Firewall()
            for name in self.interfaces:
                self.firewall.attach(name, "both")

    @property
    def interfaces(self) -> tuple[str, str]:
        """The gateway's interfaces: inside, outside."""
        return (self.inside, self.outside)

    def close(self) -> None:
        """Everything goes."""
        for wire, _, _ in self._wires.values():
            wire.close()
        with self.gateway.entered():
            self.firewall.detach_all()
        super().close()

    def reset(self) -> None:
        """No rule, no flow; settings and limits as they are by default, but with IPv6."""
        if self.firewall.rules():
            self.firewall.flush()
        for setting, on in DEFAULT_SETTINGS.items():
            self.firewall.set(self.interfaces, setting, on)
        self.firewall.set_flow_limits(**FlowLimits()._asdict())
        self.forget_flows()

    # Rules and settings

    def set(self, setting: str, on: bool = True, *names: str) -> None:
        """Turn a setting on or off, on both interfaces unless some are named."""
        self.firewall.set(names or self.interfaces, setting, on)

    def insert(
        self,
        destination: str,
        protocol: str,
        low: int,
        high: int | None = None,
        *,
        to: int = 0,
        source: str = "",
        deny: bool = False,
        interfaces: tuple[str, ...] = (),
        direction: str = "ingress",
    ) -> Inserted:
        """Insert a rule: to a port of ours, or 0 to pass, or deny."""
        key = RuleKey(
            Prefix.parse(destination),
            protocol,
            low,
            source=Prefix.parse(source) if source else None,
            direction=direction,
        )
        rule = Rule(key, high, tproxy_port=to, deny=deny, interfaces=interfaces)
        return self.firewall.insert(rule)

    def let_clients_in(self) -> None:
        """Whatever comes by the inside interface may go anywhere; outside no rule holds."""
        self.set("per_interface_rules", True, self.outside)
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                self.insert(ANYWHERE[family], protocol, 0, 65535, interfaces=(self.inside,))

    # Flows

    def _tables(self, tables: Tables) -> Iterator[tuple[object, bytes, bytes]]:
        for index in range(layout.FLOW_TABLES):
            inner = tables.inner("flows", index)
            if inner is not None:
                for key, value in list(inner.items()):
                    yield inner, key, value

    def forget_flows(self) -> None:
        """No flow is left."""
        with Tables(is_writer=True) as tables:
            for inner, key, _ in self._tables(tables):
                inner.delete(key)  # type: ignore[attr-defined]

    def age_flows(self, seconds: float) -> None:
        """As if nothing had come for so long (but never before the machine started)."""
        with Tables(is_writer=True) as tables:
            for inner, key, value in self._tables(tables):
                aged = bytearray(value)
                (seen,) = unpack_from("=Q", aged)
                pack_into("=Q", aged, 0, max(seen - int(seconds * _SECOND), 0))
                inner.update(key, bytes(aged))  # type: ignore[attr-defined]

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

    # Frames

    def framed(self, peer: Namespace, packet: Packet | bytes) -> bytes:
        """With an Ethernet header from that peer to the gateway, unless there is one."""
        if isinstance(packet, (bytes, Ether)):
            return bytes(packet)
        _, mac, gateway_mac = self._wires[peer]
        return bytes(Ether(src=mac, dst=gateway_mac) / packet)

    def send(self, peer: Namespace, *packets: Packet | bytes) -> None:
        """The client or the server puts packets on its wire, as they are."""
        for packet in packets:
            self._wires[peer][0].send(self.framed(peer, packet))

    @contextmanager
    def capture(self, peer: Namespace) -> Iterator[Capture]:
        """What the gateway sends to the client or the server."""
        with peer.entered():
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sniffer.bind(("eth0", _ETH_P_ALL))
        with sniffer:
            yield Capture(sniffer)


class Capture:
    """Frames that arrive at an interface."""

    def __init__(self, sniffer: socket.socket) -> None:
        self._sniffer = sniffer

    def next(self, kind: type[Packet]) -> Packet:
        """The next packet of a kind; a time-out if there is none."""
        self._sniffer.settimeout(PATIENCE)
        while True:
            data, address = self._sniffer.recvfrom(65535)
            frame = Ether(data)
            if address[2] != socket.PACKET_OUTGOING and kind in frame:
                found: Packet = frame[kind]
                return found

    def has(self, wanted: Callable[[Packet], bool]) -> bool:
        """Whether one that is wanted is among those that have arrived; takes them all."""
        self._sniffer.setblocking(False)
        found = False
        while True:
            try:
                data, address = self._sniffer.recvfrom(65535)
            except BlockingIOError:
                return found
            if address[2] != socket.PACKET_OUTGOING:
                found = found or wanted(Ether(data))


def _introduce(namespace: Namespace, name: str, address: str, mac: str) -> None:
    entry = (address, "lladdr", mac, "nud", "permanent", "dev", name)
    namespace.run("ip", "neighbour", "replace", *entry)


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
    """A raw socket that takes the payload of IP."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with namespace.entered():
        made = socket.socket(kind, socket.SOCK_RAW, protocol)
    made.settimeout(PATIENCE)
    return made


def bound(namespace: Namespace, protocol: str, family: int, port: int = 0) -> socket.socket:
    """A socket in a namespace, bound to a port of all addresses, with a time-out."""
    with namespace.entered():
        made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if protocol == "tcp":
        # A close is a RST: no FIN is sent again and again into the tests that follow.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    made.settimeout(PATIENCE)
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
    """Whether neither data nor an end of the connection arrives."""
    return not select.select([connection], [], [], SILENCE)[0]


class Conversation:
    """Two sockets that talk through the gateway."""

    def __init__(self, asker: socket.socket, answerer: socket.socket) -> None:
        self.asker, self.answerer = asker, answerer

    def talks(self) -> None:
        """A question arrives, and so does its answer."""
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
            # The acknowledgment is sent now, and not in the middle of what follows.
            self.asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def answers(self) -> None:
        """One more answer is sent, without a question."""
        if self.asker.type == socket.SOCK_STREAM:
            self.answerer.sendall(b"answer")
            return
        address, peer = self.asker.getsockname(), self.asker.getpeername()
        assert peer[1] == self.answerer.getsockname()[1]
        self.answerer.sendto(b"answer", address)

    def asks_in_vain(self) -> None:
        """A question does not arrive."""
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
) -> Iterator[Conversation]:
    """One that has begun: it has carried a question and an answer."""
    family = family_of(address)
    with (
        serving(responder, protocol, family, port) as server,
        bound(initiator, protocol, family, source_port) as client,
    ):
        client.connect((address, port))
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
    """All of it arrives, whatever the path takes at once."""
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
    """A socket that has sent a SYN or a datagram, and waits for nothing."""
    with bound(initiator, protocol, family_of(address)) as client:
        client.setblocking(False)
        client.connect_ex((address, port))
        if protocol == "udp":
            client.send(b"anybody?")
        yield client


@pytest.fixture(scope="module")
def forwarding(_private_bpffs: None) -> Iterator[Router]:
    """The gateway that the tests of a file share."""
    made = Router()
    yield made
    made.close()


@pytest.fixture
def router(forwarding: Router) -> Iterator[Router]:
    """The test is inside the gateway, which has no rule and no flow; IPv6 is on."""
    with forwarding.gateway.entered():
        forwarding.reset()
        yield forwarding


class Host:
    """A host of a subnet of its own, addresses by family, and the gateway's device to it."""

    device = ""

    def __init__(self, namespace: Namespace, net: int) -> None:
        self.namespace = namespace
        self.address = {4: f"10.{net}.0.2", 6: f"fd0{net}::2"}
        self.gateway = {4: f"10.{net}.0.1", 6: f"fd0{net}::1"}


def _sysctl(namespace: Namespace, name: str, value: str) -> None:
    with namespace.entered():
        Path("/proc/sys/net", name).write_text(value)


@contextmanager
def host_behind(router: Router, peer: Namespace, mtu: int) -> Iterator[Host]:
    """A host behind the client or the server, which forwards to it by a link of a smaller MTU.

    The host does not know: what it sends may be larger than what it can be sent.
    """
    via = CLIENT if peer is router.client else SERVER
    host = Host(Namespace(), 7)
    try:
        _sysctl(host.namespace, "ipv6/conf/default/accept_dad", "0")
        place = f"/proc/{os.getpid()}/fd/{host.namespace.fd}"
        pair = ("type", "veth", "peer", "name", "eth0", "netns", place)
        peer.run("ip", "link", "add", "far0", *pair)
        for namespace, name, number in ((peer, "far0", 1), (host.namespace, "eth0", 2)):
            namespace.run("ip", "address", "add", f"10.7.0.{number}/24", "dev", name)
            namespace.run("ip", "address", "add", f"fd07::{number}/64", "dev", name, "nodad")
            namespace.run("ip", "link", "set", name, "up")
        peer.run("ip", "link", "set", "far0", "mtu", str(mtu))
        _sysctl(peer, "ipv4/ip_forward", "1")
        _sysctl(peer, "ipv6/conf/all/forwarding", "1")
        for name in ("all", "eth0", "far0"):
            _sysctl(peer, f"ipv4/conf/{name}/rp_filter", "0")
        _sysctl(peer, "ipv4/icmp_ratelimit", "0")
        _sysctl(peer, "ipv6/icmp/ratelimit", "0")
        for family, net in ((4, "10.7.0.0/24"), (6, "fd07::/64")):
            route = (f"-{family}", "route", "replace", net, "via", via[family])
            router.gateway.run("ip", *route)
            host.namespace.run("ip", "route", "add", "default", "via", host.gateway[family])
        yield host
    finally:
        _sysctl(peer, "ipv4/ip_forward", "0")
        _sysctl(peer, "ipv6/conf/all/forwarding", "0")
        peer.run("ip", "link", "del", "far0", check=False)
        host.namespace.close()
        for family, net in ((4, "10.7.0.0/24"), (6, "fd07::/64")):
            router.gateway.run("ip", f"-{family}", "route", "del", net, check=False)
        for namespace in (router.client, router.server, router.gateway):
            for family in FAMILIES:
                # What they have learned of path MTUs.
                namespace.run("ip", f"-{family}", "route", "flush", "cache")
