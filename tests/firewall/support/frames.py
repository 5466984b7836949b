# SPDX-License-Identifier: GPL-2.0-only
"""A gateway under test: what a client does to it, by sockets or frame by frame, and what it counts.

A test file takes the fixtures by ``running, gateway = frames.running, frames.gateway``:
one gateway a file, since loading the programs takes longer than most tests, and
between two tests no rule and no setting is left.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.firewall.support.listeners import (
    IP_TRANSPARENT,
    IPV6_TRANSPARENT,
    tcp_listener,
    udp_listener,
)
from tests.support.netns import Network
from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from scapy.packet import Packet

    from tests.firewall.support.listeners import Listener
    from zfw_py import Inserted

FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")

CLIENT = {4: Network.client_ipv4, 6: Network.client_ipv6}
GATEWAY = {4: Network.gateway_ipv4, 6: Network.gateway_ipv6}
# What is intercepted: the gateway takes all of LOCAL for itself, as a router sees to.
SERVICE = {4: "100.72.0.4", 6: "fd72::4"}
LOCAL = {4: ("100.64.0.0/10", "172.20.0.0/16"), 6: ("fd72::/16",)}
EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
SOCKET_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
SOCKET_KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
TRANSPARENT = {4: (socket.SOL_IP, IP_TRANSPARENT), 6: (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)}

# How long something that must happen may take, and how long something that must not is awaited.
PATIENCE = 3.0
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
    """Equals every count but 0: where TCP decides how many segments there are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "some"


SOME = _Some()
# What comes after the packet that a rule decided, until the conversation ends.
AFTERWARDS: dict[str, dict[str, int | _Some]] = {"tcp": {"established": SOME}, "udp": {}}


def listening(
    protocol: str, family: int, port: int = 0, address: str = ""
) -> AbstractContextManager[Listener]:
    """A transparent listener, on loopback unless an address is given."""
    return {"tcp": tcp_listener, "udp": udp_listener}[protocol](family, port, address)


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def is_silent(*sockets: socket.socket) -> bool:
    """Whether nothing arrives at any of them, no error and no connection either."""
    for each in sockets:
        each.setblocking(False)
    connecting = [each for each in sockets if each.type == socket.SOCK_STREAM]
    return select.select(sockets, connecting, sockets, SILENCE) == ([], [], [])


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def ip(destination: str, source: str = "", **fields: Any) -> Packet:
    """The IP header of a packet from the client, or from another source behind it."""
    family = family_of(destination)
    return (IP, IPv6)[family == 6](src=source or CLIENT[family], dst=destination, **fields)


def datagram(
    destination: str, port: int, data: bytes = b"data", *, source_port: int = 40000
) -> Packet:
    """A UDP datagram from the client."""
    return ip(destination) / UDP(sport=source_port, dport=port) / data


def syn(destination: str, port: int, *, source_port: int = 40000) -> Packet:
    """A TCP segment from the client that asks for a connection."""
    return ip(destination) / TCP(sport=source_port, dport=port, flags="S", seq=1000)


class Counting:
    """Something with a firewall, whose counts of reasons are compared."""

    firewall: Firewall
    # What kernels send whenever they like.
    unasked: frozenset[str] = frozenset({"multicast_listener"})

    def _counted(self) -> dict[str, int]:
        return {name: packets for name, (packets, _) in self.firewall.status().reasons.items()}

    @contextmanager
    def counts(self, **expected: int | _Some) -> Iterator[None]:
        """In the block these reasons are counted so often, and no other one is."""
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
        if not until(is_as_expected):
            raise AssertionError(f"counted {found}, not {expected}")


class Gateway(Counting, Network):
    """The two namespaces of a network, and the firewall on the gateway's interface."""

    def __init__(self) -> None:
        """Attach; neighbours are permanent, so that nothing but a test makes packets."""
        super().__init__()
        for namespace, name in ((self.client, "eth0"), (self.gateway, "gw0")):
            with namespace.entered():
                Path(f"/proc/sys/net/ipv6/conf/{name}/router_solicitations").write_text("0")
        with self.client.entered():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._wire.bind(("eth0", 0))
        self.client_mac = self._wire.getsockname()[4].hex(":")
        with self.gateway.entered():
            for name in ("all", "gw0"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:
                probe.bind(("gw0", 0))
                self.mac = probe.getsockname()[4].hex(":")
            self.firewall = Firewall()
            self.firewall.attach(self.interface)
            for prefix in (*LOCAL[4], *LOCAL[6]):
                self.gateway.run("ip", "route", "add", "local", prefix, "dev", "lo")
        self.introduce()

    def introduce(self) -> None:
        """Client and gateway know each other's link-layer addresses for good."""
        for family in FAMILIES:
            for namespace, name, address, mac in (
                (self.client, "eth0", GATEWAY[family], self.mac),
                (self.gateway, "gw0", CLIENT[family], self.client_mac),
            ):
                entry = (address, "lladdr", mac, "nud", "permanent", "dev", name)
                namespace.run("ip", "neighbour", "replace", *entry)

    def close(self) -> None:
        """Everything goes."""
        self._wire.close()
        with self.gateway.entered():
            self.firewall.detach_all()
        super().close()

    def reset(self) -> None:
        """No rule; settings as they are by default, but with IPv6."""
        if self.firewall.rules():
            self.firewall.flush()
        for setting, on in DEFAULT_SETTINGS.items():
            self.firewall.set([self.interface], setting, on)

    # Rules

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
    ) -> Inserted:
        """Insert a rule: to a port of ours, or 0 to pass, or deny."""
        key = RuleKey(
            Prefix.parse(destination),
            protocol,
            low,
            source=Prefix.parse(source) if source else None,
        )
        rule = Rule(key, high, tproxy_port=to, deny=deny, interfaces=interfaces)
        return self.firewall.insert(rule)

    def hits(self, inserted: Inserted) -> int:
        """How many packets a rule has decided."""
        key = inserted.rule.key
        return next(rule.packets for rule in self.firewall.rules() if rule.key == key)

    # What the client does

    def send(self, *frames: Packet | bytes) -> None:
        """Put packets on the wire, as they are; an Ethernet header goes before IP."""
        for frame in frames:
            self._wire.send(bytes(self.framed(frame)))

    @contextmanager
    def second_wire(self, name: str = "gw1") -> Iterator[Callable[[Packet], object]]:
        """One more interface of the gateway, attached, IPv6 on: a function that sends to it."""
        peer = f"{name}-peer"
        self.gateway.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
        try:
            # The stack at the other end is to send nothing of its own.
            Path(f"/proc/sys/net/ipv6/conf/{peer}/disable_ipv6").write_text("1")
            for end in (name, peer):
                self.gateway.run("ip", "link", "set", end, "up")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
                wire.bind((name, 0))
                mac = wire.getsockname()[4].hex(":")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
                wire.bind((peer, 0))
                header = Ether(src=wire.getsockname()[4].hex(":"), dst=mac)
                self.firewall.attach(name)
                self.firewall.set([name], "ipv6", True)
                yield lambda packet: wire.send(bytes(header / packet))
        finally:
            self.gateway.run("ip", "link", "del", name)
            self.firewall.refresh()

    def framed(self, payload: Packet | bytes, ethertype: int | None = None) -> Packet | bytes:
        """With an Ethernet header from the client to the gateway, unless there is one."""
        if isinstance(payload, (bytes, Ether)):
            return payload
        header = Ether(src=self.client_mac, dst=self.mac)
        if ethertype is not None:
            header.type = ethertype
        return header / payload

    @contextmanager
    def capture(self) -> Iterator[Callable[[type[Packet]], Packet]]:
        """What the client's interface hears: a function that returns the next packet of a kind."""
        with self.client.entered():
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            sniffer.bind(("eth0", _ETH_P_ALL))
        sniffer.settimeout(PATIENCE)

        def heard(kind: type[Packet]) -> Packet:
            while True:
                data, address = sniffer.recvfrom(65535)
                frame: Packet = Ether(data)
                if address[2] != socket.PACKET_OUTGOING and kind in frame:
                    found: Packet = frame[kind]
                    return found

        with sniffer:
            yield heard

    def client_socket(self, protocol: str, family: int, source: str = "") -> socket.socket:
        """A socket in the client's namespace, with a time-out."""
        with self.client.entered():
            made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
        made.settimeout(PATIENCE)
        if source:
            made.bind((source, 0))
        return made

    def attempt(self, protocol: str, address: str, port: int, source: str = "") -> socket.socket:
        """Send a SYN, or a datagram; whether anything comes of it is the caller's to see."""
        client = self.client_socket(protocol, family_of(address), source)
        knock(client, address, port)
        return client

    def is_dropped(
        self, protocol: str, address: str, port: int, reason: str, *, source: str = ""
    ) -> None:
        """One packet, dropped in silence for this reason."""
        with self.client_socket(protocol, family_of(address), source) as client:
            with self.counts(**{reason: 1}):
                knock(client, address, port)
            assert is_silent(client), f"{protocol} to {address} port {port} was answered"

    def talks(self, listener: Listener, address: str, port: int, source: str = "") -> None:
        """A client that talks to an address is heard by this listener, and answered from there."""
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
        """A connection that this listener accepts: the client's end and ours."""
        with self.client_socket("tcp", family_of(address), source) as client:
            client.connect((address, port))
            with listener.accept() as connection:
                local = connection.getsockname()
                assert local[:2] == (address, port) or local[0] == f"::ffff:{address}"
                yield client, connection
                # The client first: its end has the TIME_WAIT then.
                client.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""


def knock(client: socket.socket, address: str, port: int) -> None:
    """Send a SYN, or a datagram, and wait for nothing."""
    client.setblocking(False)
    client.connect_ex((address, port))
    if client.type == socket.SOCK_DGRAM:
        client.send(b"anybody?")


def exchange(client: socket.socket, connection: socket.socket) -> None:
    """A connection carries data, both ways."""
    client.sendall(b"question")
    assert connection.recv(100) == b"question"
    connection.sendall(b"answer")
    assert client.recv(100) == b"answer"


def transparent_socket(address: tuple[str, int], protocol: str = "udp") -> socket.socket:
    """A socket bound to any address, as a router opens one to answer from there."""
    family = family_of(address[0])
    made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(*TRANSPARENT[family], 1)
    made.settimeout(PATIENCE)
    made.bind(address)
    return made


@pytest.fixture(scope="module")
def running(_private_bpffs: None) -> Iterator[Gateway]:
    """The gateway that the tests of a file share."""
    made = Gateway()
    yield made
    made.close()


@pytest.fixture
def gateway(running: Gateway) -> Iterator[Gateway]:
    """The test is inside the gateway, which has no rule; IPv6 is on."""
    with running.gateway.entered():
        running.reset()
        yield running
