# SPDX-License-Identifier: GPL-2.0-only
"""A client and a gateway with a firewall: sockets and frames of the client, counts of the gateway.

``Gateway`` is the value of the fixture ``gateway``. The tests of a file share one, since
loading the programs takes longer than most tests.
"""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.firewall.support import flow_tables
from tests.firewall.support.listeners import (
    IP_TRANSPARENT,
    IPV6_TRANSPARENT,
    tcp_listener,
    udp_listener,
)
from tests.support.netns import Network
from tests.support.waiting import PATIENCE, wait_until
from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.firewall.model import parse_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from scapy.packet import Packet

    from tests.firewall.support.listeners import Listener
    from tests.support.netns import Namespace
    from zfw_py import Inserted

FAMILIES = (4, 6)
families = pytest.mark.parametrize("family", FAMILIES)
PROTOCOLS = ("tcp", "udp")

CLIENT = {4: Network.client_ipv4, 6: Network.client_ipv6}
GATEWAY = {4: Network.gateway_ipv4, 6: Network.gateway_ipv6}
# The client's destination in tests. The gateway has local routes for all of LOCAL, as a
# router's boot scripts add them.
SERVICE = {4: "100.72.0.4", 6: "fd72::4"}
LOCAL = {4: ("100.64.0.0/10", "172.20.0.0/16"), 6: ("fd72::/16",)}
EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
SOCKET_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
SOCKET_KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
TRANSPARENT = {4: (socket.SOL_IP, IP_TRANSPARENT), 6: (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)}

# Seconds to wait for an event that must not happen.
SILENCE = 0.03

_ETH_P_ALL = 3
DEFAULT_SETTINGS = {
    "icmp_echo": False,
    "ssh": True,
    "ipv6": True,
    "per_interface_rules": False,
    "pass_non_tuple": False,
    "verbose": False,
    "outbound_filter": False,
    "vrrp": False,
    "eapol": False,
}


class _Some:
    """Equals every count but 0: TCP decides how many segments carry some data."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "some"


SOME = _Some()
# The counts of all packets of a conversation after the one that matched a rule.
AFTERWARDS: dict[str, dict[str, int | _Some]] = {"tcp": {"established": SOME}, "udp": {}}


def listening(
    protocol: str, family: int, port: int = 0, address: str = ""
) -> AbstractContextManager[Listener]:
    """A transparent listener, on loopback unless an address is given."""
    return {"tcp": tcp_listener, "udp": udp_listener}[protocol](family, port, address)


def is_silent(*sockets: socket.socket) -> bool:
    """Whether no socket receives data, a connection or an error within SILENCE seconds."""
    for each in sockets:
        each.setblocking(False)
    connecting = [each for each in sockets if each.type == socket.SOCK_STREAM]
    return select.select(sockets, connecting, sockets, SILENCE) == ([], [], [])


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def ip(destination: str, source: str = "", **fields: Any) -> Packet:
    """The IP header of a packet from the client, or from ``source``."""
    family = family_of(destination)
    return (IP, IPv6)[family == 6](src=source or CLIENT[family], dst=destination, **fields)


def datagram(
    destination: str, port: int, data: bytes = b"data", *, source_port: int = 40000
) -> Packet:
    """A UDP datagram from the client."""
    return ip(destination) / UDP(sport=source_port, dport=port) / data


def syn(destination: str, port: int, *, source_port: int = 40000) -> Packet:
    """A SYN from the client."""
    return ip(destination) / TCP(sport=source_port, dport=port, flags="S", seq=1000)


class Filtering:
    """A host with a firewall: inserts rules, and compares what the firewall has counted."""

    firewall: Firewall
    # Reasons of packets that a kernel sends at any time.
    unasked: frozenset[str] = frozenset({"multicast_listener"})

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
        limited: bool = True,
        direction: str = "ingress",
    ) -> Inserted:
        """Insert a rule: intercept for the local port ``to``, pass if that is 0, or deny."""
        key = RuleKey(
            parse_destination(destination, None, "destination", ""),
            protocol,
            low,
            source=Prefix.parse(source) if source else None,
            direction=direction,
        )
        rule = Rule(key, high, tproxy_port=to, deny=deny, interfaces=interfaces, limited=limited)
        return self.firewall.insert(rule)

    def hits(self, inserted: Inserted) -> int:
        """The number of packets that matched a rule."""
        key = inserted.rule.key
        return next(rule.packets for rule in self.firewall.rules() if rule.key == key)

    def _counted(self) -> dict[str, int]:
        return {name: packets for name, (packets, _) in self.firewall.status().reasons.items()}

    @contextmanager
    def counts(self, **expected: int | _Some) -> Iterator[None]:
        """In the block exactly these reasons are counted, so many times each."""
        before = self._counted()
        found: dict[str, int] = {}

        def is_as_expected() -> bool:
            nonlocal found
            found = {
                name: packets - before[name]
                for name, packets in self._counted().items()
                if packets != before[name] and (name in expected or name not in self.unasked)
            }
            return found == expected

        yield
        if not wait_until(is_as_expected, PATIENCE):
            raise AssertionError(f"counted {found}, not {expected}")


class Capture:
    """The frames that arrive at an interface."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        self._sniffer = namespace.packet_socket(interface, _ETH_P_ALL)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._sniffer.close()

    def next(self, kind: type[Packet]) -> Packet:
        """The next packet of a layer's class; raises TimeoutError if none arrives."""
        self._sniffer.settimeout(PATIENCE)
        while True:
            data, address = self._sniffer.recvfrom(65535)
            frame = Ether(data)
            if address[2] != socket.PACKET_OUTGOING and kind in frame:
                found: Packet = frame[kind]
                return found

    def has(self, wanted: Callable[[Packet], bool]) -> bool:
        """Whether any of the frames that have arrived is wanted; discards all of them."""
        self._sniffer.setblocking(False)
        found = False
        while True:
            try:
                data, address = self._sniffer.recvfrom(65535)
            except BlockingIOError:
                return found
            if address[2] != socket.PACKET_OUTGOING:
                found = found or wanted(Ether(data))


class Gateway(Filtering, Network):
    """A network, and the firewall on the gateway's interface."""

    def __init__(self) -> None:
        """Attach. Neighbours are permanent: no kernel resolves them in the middle of a test."""
        super().__init__()
        self._wire = self.client.packet_socket("eth0")
        self.client_mac, self.mac = self.client.mac("eth0"), self.gateway.mac("gw0")
        self.gateway.sysctl(0, "ipv4/conf/all/rp_filter", "ipv4/conf/gw0/rp_filter")
        with self.gateway.entered():
            self.firewall = Firewall()
            self.firewall.attach(self.interface, "ingress")
        self.gateway.ip(*(f"route add local {one} dev lo" for one in (*LOCAL[4], *LOCAL[6])))
        self.introduce()

    def introduce(self) -> None:
        """Make client and gateway permanent neighbours of each other."""
        for family in FAMILIES:
            self.client.add_neighbour("eth0", GATEWAY[family], self.mac)
            self.gateway.add_neighbour("gw0", CLIENT[family], self.client_mac)

    def close(self) -> None:
        """Detach the firewall, and close the namespaces."""
        self._wire.close()
        with self.gateway.entered():
            self.firewall.detach_all()
        super().close()

    def reset(self) -> None:
        """Delete all rules, and reset the settings to the defaults, but IPv6 on."""
        if self.firewall.rules():
            self.firewall.flush()
        for setting, on in DEFAULT_SETTINGS.items():
            self.firewall.set([self.interface], setting, on)
        flow_tables.clear_pairs()

    # The client

    def send(self, *frames: Packet | bytes) -> None:
        """Send packets as they are, IP packets with an Ethernet header."""
        for frame in frames:
            self._wire.send(bytes(self.framed(frame)))

    @contextmanager
    def second_wire(self, name: str = "gw1") -> Iterator[Callable[[Packet], object]]:
        """Attach one more interface, IPv6 on; yields a function that sends a packet to it."""
        peer = f"{name}-peer"
        self.gateway.add_veth(name, peer)
        try:
            # The stack at the other end must send no packet of its own.
            self.gateway.sysctl(1, f"ipv6/conf/{peer}/disable_ipv6")
            for end in (name, peer):
                self.gateway.set_up(end)
            header = Ether(src=self.gateway.mac(peer), dst=self.gateway.mac(name))
            with self.gateway.packet_socket(peer) as wire:
                self.firewall.attach(name, "ingress")
                self.firewall.set([name], "ipv6", True)
                yield lambda packet: wire.send(bytes(header / packet))
        finally:
            self.gateway.run("ip", "link", "del", name)
            self.firewall.refresh()

    def framed(self, payload: Packet | bytes, ethertype: int | None = None) -> Packet | bytes:
        """Add an Ethernet header from the client to the gateway, unless there is one."""
        if isinstance(payload, (bytes, Ether)):
            return payload
        header = Ether(src=self.client_mac, dst=self.mac)
        if ethertype is not None:
            header.type = ethertype
        return header / payload

    @contextmanager
    def capture(self) -> Iterator[Callable[[type[Packet]], Packet]]:
        """Capture what arrives at the client; yields ``Capture.next``."""
        with Capture(self.client, "eth0") as captured:
            yield captured.next

    def client_socket(self, protocol: str, family: int, source: str = "") -> socket.socket:
        """A socket in the client's namespace, with a time-out."""
        with self.client.entered():
            made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
        made.settimeout(PATIENCE)
        if source:
            made.bind((source, 0))
        return made

    def attempt(self, protocol: str, address: str, port: int, source: str = "") -> socket.socket:
        """Send a SYN or a datagram, and wait for no answer; the socket that sent it."""
        client = self.client_socket(protocol, family_of(address), source)
        knock(client, address, port)
        return client

    def is_dropped(
        self, protocol: str, address: str, port: int, reason: str, *, source: str = ""
    ) -> None:
        """Send one packet: it is counted with this reason, and nothing is answered."""
        with self.client_socket(protocol, family_of(address), source) as client:
            with self.counts(**{reason: 1}):
                knock(client, address, port)
            assert is_silent(client), f"{protocol} to {address} port {port} was answered"

    def talks(self, listener: Listener, address: str, port: int, source: str = "") -> None:
        """Send to an address: this listener receives it, and answers from that address."""
        if listener.socket.type == socket.SOCK_STREAM:
            with self.connects(listener, address, port, source) as (client, connection):
                exchange(client, connection)
            return
        with self.client_socket("udp", family_of(address), source) as client:
            client.connect((address, port))
            client.send(b"question")
            data, client_address, original = listener.receive()
            assert (data, original) == (b"question", (address, port))
            with transparent_socket(original) as reply:
                reply.sendto(b"answer", client_address)
            assert client.recv(100) == b"answer"

    @contextmanager
    def connects(
        self, listener: Listener, address: str, port: int, source: str = ""
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Connect; this listener accepts. Yields the client's socket and the accepted one."""
        with self.client_socket("tcp", family_of(address), source) as client:
            client.connect((address, port))
            with listener.accept() as connection:
                local = connection.getsockname()
                assert local[:2] == (address, port) or local[0] == f"::ffff:{address}"
                yield client, connection
                # The client closes first, so that TIME_WAIT is at its end.
                client.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""


def knock(client: socket.socket, address: str, port: int) -> None:
    """Send a SYN or a datagram, and wait for no answer."""
    client.setblocking(False)
    client.connect_ex((address, port))
    if client.type == socket.SOCK_DGRAM:
        client.send(b"anybody?")


def exchange(client: socket.socket, connection: socket.socket) -> None:
    """Send data both ways."""
    client.sendall(b"question")
    assert connection.recv(100) == b"question"
    connection.sendall(b"answer")
    assert client.recv(100) == b"answer"


def transparent_socket(address: tuple[str, int], protocol: str = "udp") -> socket.socket:
    """A transparent socket bound to an address of another host, as a router answers from it."""
    family = family_of(address[0])
    made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(*TRANSPARENT[family], 1)
    made.settimeout(PATIENCE)
    made.bind(address)
    return made
