# SPDX-License-Identifier: GPL-2.0-only
"""On a port of a bridge an intercept rule holds for what the bridge would send on.

client 10.9.0.2 (eth0) -- (gw0) br0 10.9.0.1 (gw1) -- (eth0) 10.9.0.3 server

The firewall is attached to gw0 alone. The server has the service's address as well, and the client
reaches it through the bridge, or asks the gateway for it.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether

from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    FAMILIES,
    GATEWAY,
    LOCAL,
    PROTOCOLS,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    SOME,
    Capture,
    Gateway,
    datagram,
    exchange,
    families,
    is_silent,
    knock,
    listening,
)
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

SERVER = {4: "10.9.0.3", 6: "fd09::3"}
ANY = {4: "0.0.0.0", 6: "::"}
HOST_BITS = {4: 32, 6: 128}
ETHERTYPE = {4: 0x0800, 6: 0x86DD}


class Bridge(Gateway):
    """A gateway whose interface is a bridge's port."""

    def __init__(self) -> None:
        super().__init__()
        gateway = self.gateway
        self.server = self.add()
        for address in (f"{GATEWAY[4]}/24", f"{GATEWAY[6]}/64"):
            gateway.ip(f"address del {address} dev gw0")
        gateway.add_veth("gw1", "eth0", self.server)
        # A MAC address of its own, which no port has.
        gateway.ip("link add br0 address 02:00:00:00:00:99 type bridge mcast_snooping 0")
        gateway.set_up("br0", f"{GATEWAY[4]}/24", f"{GATEWAY[6]}/64")
        gateway.ip("link set gw0 master br0", "link set gw1 master br0 up")
        self.server.set_up("eth0", f"{SERVER[4]}/24", f"{SERVER[6]}/64")
        self.bridge_mac = gateway.mac("br0")
        self.server_mac = self.server.mac("eth0")
        gateway.sysctl(0, "ipv4/conf/all/rp_filter", "ipv4/conf/br0/rp_filter")
        for family in FAMILIES:
            self.server.add_addresses("lo", f"{SERVICE[family]}/{HOST_BITS[family]}")
            self.client.add_neighbour("eth0", GATEWAY[family], self.bridge_mac)
            self.client.add_neighbour("eth0", SERVER[family], self.server_mac)
            self.server.add_neighbour("eth0", CLIENT[family], self.client_mac)
            gateway.add_neighbour("br0", CLIENT[family], self.client_mac)
        self.send_by("bridge")
        with gateway.entered():
            self.firewall.refresh()

    def send_by(self, way: str) -> None:
        """The client's frames have the MAC address of the bridge, of its port, or the server's."""
        for family in FAMILIES:
            router = SERVER if way == "server" else GATEWAY
            self.client.ip(f"-{family} route replace default via {router[family]}")
            mac = self.mac if way == "port" else self.bridge_mac
            self.client.add_neighbour("eth0", GATEWAY[family], mac)

    def use_netfilter(self, on: bool) -> None:
        """Whether br_netfilter takes part, as Docker and Kubernetes set it."""
        names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
        if Path("/proc/sys/net/bridge").exists():
            self.gateway.sysctl(int(on), *(f"bridge/{name}" for name in names))
        elif on:
            pytest.skip("no br_netfilter")

    def reset(self) -> None:
        """Also the client's way, and br_netfilter off."""
        super().reset()
        self.send_by("bridge")
        self.use_netfilter(False)


@pytest.fixture(scope="module")
def _bridged(_private_bpffs: None) -> Iterator[Bridge]:
    with Bridge() as made:
        yield made


@pytest.fixture
def bridge(_bridged: Bridge) -> Iterator[Bridge]:
    """The test runs inside the gateway, which has no rules; IPv6 is on."""
    with _bridged.gateway.entered():
        _bridged.reset()
        yield _bridged


ways = pytest.mark.parametrize("way", ["bridge", "port", "server"])
netfilter = pytest.mark.parametrize("has_netfilter", [False, True], ids=["alone", "br_netfilter"])


@contextmanager
def service(
    namespace: Namespace, protocol: str, family: int, port: int = 80
) -> Iterator[socket.socket]:
    """A namespace's own service on a port of all addresses."""
    with namespace.entered():
        made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    with made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ANY[family], port))
        if protocol == "tcp":
            made.listen()
        made.settimeout(PATIENCE)
        yield made


def net_counts(protocol: str, has_netfilter: bool) -> dict[str, Any]:
    """br_netfilter takes the socket away, and "deliver" gives it back."""
    lost = {"deliver_intercept": 1} if has_netfilter else {}
    return {"rule_intercept": 1, **lost, **AFTERWARDS[protocol]}


@families
@protocols
@netfilter
@ways
def test_what_a_rule_intercepts_reaches_the_listener_alone(
    bridge: Bridge, way: str, has_netfilter: bool, protocol: str, family: int
) -> None:
    bridge.send_by(way)
    bridge.use_netfilter(has_netfilter)
    with (
        listening(protocol, family) as listener,
        service(bridge.gateway, protocol, family) as own,
        service(bridge.server, protocol, family) as remote,
    ):
        rule = bridge.insert(SERVICE[family], protocol, 80, to=listener.port)
        for _ in range(5):
            with bridge.counts(**net_counts(protocol, has_netfilter)):
                bridge.talks(listener, SERVICE[family], 80)
        assert bridge.hits(rule) == 5
        assert is_silent(own, remote)


@families
@protocols
@pytest.mark.parametrize("way", ["bridge", "server"])
def test_a_packet_socket_on_the_bridge_changes_nothing(
    bridge: Bridge, way: str, protocol: str, family: int
) -> None:
    bridge.send_by(way)
    with (
        listening(protocol, family) as listener,
        service(bridge.gateway, protocol, family) as own,
        bridge.gateway.packet_socket("br0", ETHERTYPE[family]),
    ):
        bridge.insert(SERVICE[family], protocol, 80, to=listener.port)
        for _ in range(5):
            bridge.talks(listener, SERVICE[family], 80)
        assert is_silent(own)


@families
@netfilter
def test_a_long_conversation_stays_with_the_listener(
    bridge: Bridge, has_netfilter: bool, family: int
) -> None:
    """Its segments match no rule: their socket is found."""
    bridge.send_by("server")
    bridge.use_netfilter(has_netfilter)
    data = bytes(range(256)) * 2048
    with (
        listening("tcp", family) as listener,
        service(bridge.server, "tcp", family) as remote,
        Capture(bridge.server, "eth0") as captured,
    ):
        bridge.insert(SERVICE[family], "tcp", 80, to=listener.port)
        with bridge.connects(listener, SERVICE[family], 80) as (client, connection):
            bridge.firewall.flush()
            client.setblocking(False)
            connection.setblocking(False)
            left, received = data, b""

            def is_over() -> bool:
                nonlocal left, received
                with suppress(BlockingIOError):
                    left = left[client.send(left) :]
                with suppress(BlockingIOError):
                    received += connection.recv(1 << 20)
                return len(received) == len(data)

            assert wait_until(is_over)
            assert received == data
            client.settimeout(PATIENCE)
            connection.settimeout(PATIENCE)
            exchange(client, connection)
        assert is_silent(remote)
        assert not captured.has(lambda frame: frame.src == bridge.client_mac)


@families
@protocols
@netfilter
def test_what_a_rule_passes_is_bridged_as_it_is(
    bridge: Bridge, has_netfilter: bool, protocol: str, family: int
) -> None:
    bridge.send_by("server")
    bridge.use_netfilter(has_netfilter)
    with (
        listening(protocol, family) as listener,
        service(bridge.gateway, protocol, family, 81) as own,
        service(bridge.server, protocol, family, 81) as remote,
        Capture(bridge.server, "eth0") as captured,
    ):
        bridge.insert(SERVICE[family], protocol, 80, to=listener.port)
        bridge.insert(SERVICE[family], protocol, 81)
        with bridge.client_socket(protocol, family) as client:
            client.connect((SERVICE[family], 81))
            client.send(b"question")
            connection = remote.accept()[0] if protocol == "tcp" else remote
            assert connection.recv(100) == b"question"
            connection.close()
        assert is_silent(own, listener.socket)
        assert captured.has(
            lambda frame: (frame.src, frame.dst) == (bridge.client_mac, bridge.server_mac)
        )


def server_socket(bridge: Bridge, protocol: str, family: int) -> socket.socket:
    with bridge.server.entered():
        made = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    made.settimeout(PATIENCE)
    return made


@families
@protocols
def test_the_other_ports_of_the_bridge_are_left_alone(
    bridge: Bridge, protocol: str, family: int
) -> None:
    """The client's packets are promised at the same time."""
    bridge.use_netfilter(True)
    with (
        listening(protocol, family) as listener,
        service(bridge.gateway, protocol, family) as own,
        server_socket(bridge, protocol, family) as client,
    ):
        bridge.insert(GATEWAY[family], protocol, 80, to=listener.port)
        bridge.talks(listener, GATEWAY[family], 80)
        client.connect((GATEWAY[family], 80))
        client.send(b"question")
        connection = own.accept()[0] if protocol == "tcp" else own
        assert connection.recv(100) == b"question"
        connection.close()
        assert is_silent(listener.socket)


@contextmanager
def without_local_route(bridge: Bridge, forwards: bool) -> Iterator[None]:
    """The gateway knows the way to the server's addresses."""
    gateway = bridge.gateway
    prefixes = (*LOCAL[4], *LOCAL[6])
    gateway.ip(*(f"route del local {prefix} dev lo" for prefix in prefixes))
    gateway.ip(*(f"-{family} route add default via {SERVER[family]}" for family in FAMILIES))
    gateway.sysctl(int(forwards), "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    try:
        yield
    finally:
        gateway.sysctl(0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        gateway.ip(*(f"-{family} route del default" for family in FAMILIES))
        gateway.ip(*(f"route add local {prefix} dev lo" for prefix in prefixes))


@families
@protocols
@netfilter
@pytest.mark.parametrize("way", ["bridge", "server"])
def test_what_is_not_local_reaches_no_socket_where_the_host_forwards(
    bridge: Bridge, way: str, has_netfilter: bool, protocol: str, family: int
) -> None:
    bridge.send_by(way)
    bridge.use_netfilter(has_netfilter)
    with (
        without_local_route(bridge, forwards=True),
        listening(protocol, family) as listener,
        service(bridge.server, protocol, family) as remote,
    ):
        bridge.insert(SERVICE[family], protocol, 80, to=listener.port)
        bridge.is_dropped(protocol, SERVICE[family], 80, "misrouted")
        assert is_silent(remote, listener.socket)


@families
@protocols
@netfilter
def test_what_is_not_local_reaches_no_socket_where_the_host_does_not_forward(
    bridge: Bridge, has_netfilter: bool, protocol: str, family: int
) -> None:
    bridge.send_by("server")
    bridge.use_netfilter(has_netfilter)
    with (
        without_local_route(bridge, forwards=False),
        listening(protocol, family) as listener,
        service(bridge.server, protocol, family) as remote,
        bridge.client_socket(protocol, family) as client,
    ):
        bridge.insert(SERVICE[family], protocol, 80, to=listener.port)
        with bridge.counts(rule_intercept=1):
            knock(client, SERVICE[family], 80)
        assert is_silent(remote, listener.socket)


@families
@protocols
def test_without_a_listener_it_reaches_no_socket(
    bridge: Bridge, protocol: str, family: int
) -> None:
    bridge.send_by("server")
    with service(bridge.server, protocol, family) as remote:
        bridge.insert(SERVICE[family], protocol, 80, to=9999)
        bridge.is_dropped(protocol, SERVICE[family], 80, "no_listener")
        assert is_silent(remote)


@families
def test_a_syn_that_ends_a_time_wait_reaches_the_listener(bridge: Bridge, family: int) -> None:
    """The stack looks a listener up for it, by the addresses of the packet."""
    bridge.send_by("server")
    address = (SERVICE[family], 8081)
    with (
        listening("tcp", family) as listener,
        service(bridge.gateway, "tcp", family, address[1]) as own,
        service(bridge.server, "tcp", family, address[1]) as remote,
    ):
        bridge.insert(*address[:1], "tcp", address[1], to=listener.port)
        with bridge.client_socket("tcp", family) as client:
            client.connect(address)
            source = client.getsockname()
            # Closed here first, so the TIME_WAIT is the gateway's.
            listener.accept().close()
            assert client.recv(1) == b""
        assert wait_until(lambda: in_time_wait(family, source[1]))
        with (
            bridge.client_socket("tcp", family) as again,
            bridge.counts(deliver_intercept=1, established=SOME),
        ):
            again.bind(source)
            again.connect(address)
            with listener.accept() as connection:
                exchange(again, connection)
        assert is_silent(own, remote)


def in_time_wait(family: int, port: int) -> bool:
    """Whether the gateway has a TIME_WAIT with a client's port."""
    table = Path(f"/proc/thread-self/net/tcp{'' if family == 4 else 6}").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "06" for row in rows)


@families
def test_a_broadcast_frame_is_not_flooded(bridge: Bridge, family: int) -> None:
    with listening("udp", family) as listener, Capture(bridge.server, "eth0") as captured:
        bridge.insert(SERVICE[family], "udp", 80, to=listener.port)
        header = Ether(src=bridge.client_mac, dst="ff:ff:ff:ff:ff:ff")
        bridge.send(header / datagram(SERVICE[family], 80))
        assert listener.receive()[2] == (SERVICE[family], 80)
        assert not captured.has(lambda frame: UDP in frame and frame[UDP].dport == 80)


@families
@netfilter
@ways
def test_a_datagram_in_fragments_reaches_the_listener(
    bridge: Bridge, way: str, has_netfilter: bool, family: int
) -> None:
    bridge.send_by(way)
    bridge.use_netfilter(has_netfilter)
    data = bytes(range(250)) * 12
    with (
        listening("udp", family) as listener,
        service(bridge.gateway, "udp", family) as own,
        service(bridge.server, "udp", family) as remote,
        bridge.client_socket("udp", family) as client,
    ):
        bridge.insert(SERVICE[family], "udp", 80, to=listener.port)
        client.connect((SERVICE[family], 80))
        with bridge.counts(rule_intercept=3, deliver_intercept=1):
            client.send(data)
        assert listener.receive()[::2] == (data, (SERVICE[family], 80))
        assert is_silent(own, remote)
