# SPDX-License-Identifier: GPL-2.0-only
"""What a rule intercepts reaches the listener through the devices that are above the interface.

client 10.9.0.2 (eth0) -- (gw0) [devices above] 10.9.0.1

The firewall is attached to gw0, the lowest device, or to the one that has the addresses.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from bpf.build import compile_bpf
from tests.firewall.support.frames import (
    CLIENT,
    FAMILIES,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    Gateway,
    families,
    is_silent,
    listening,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

ANY = {4: "0.0.0.0", 6: "::"}
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
PREFIX = {4: 24, 6: 64}


def add_device(namespace: Namespace, *words: str) -> None:
    """Run ip(8); skip the test if the kernel has no such kind of device."""
    made = namespace.run("ip", "link", "add", *words, check=False)
    if made.returncode != 0 and "Unknown device type" in made.stderr:
        pytest.skip(f"this kernel has no {words[words.index('type') + 1]}")
    assert made.returncode == 0, made.stderr


# Each makes devices above gw0, and returns the one that gets the addresses.


def _macvlan(gateway: Namespace, _: Namespace) -> str:
    add_device(gateway, "up0", "link", "gw0", "type", "macvlan", "mode", "bridge")
    return "up0"


def _bond(gateway: Namespace, _: Namespace, name: str = "up0") -> str:
    add_device(gateway, name, "type", "bond", "mode", "active-backup", "miimon", "100")
    gateway.ip("link set gw0 down", f"link set gw0 master {name}", "link set gw0 up")
    return name


def _bridge(gateway: Namespace, _: Namespace, port: str = "gw0") -> str:
    gateway.ip("link add up0 address 02:00:00:00:00:99 type bridge", f"link set {port} master up0")
    return "up0"


def _bond_in_a_bridge(gateway: Namespace, client: Namespace) -> str:
    _bond(gateway, client, "mid0")
    gateway.ip("link set mid0 up")
    return _bridge(gateway, client, "mid0")


def _vlan(gateway: Namespace, client: Namespace, name: str = "up0") -> str:
    add_device(client, "link", "eth0", "name", "v5", "type", "vlan", "id", "5")
    gateway.ip(f"link add link gw0 name {name} type vlan id 5")
    return name


def _vlan_in_a_bridge(gateway: Namespace, client: Namespace) -> str:
    _vlan(gateway, client, "mid0")
    gateway.ip("link set mid0 up")
    return _bridge(gateway, client, "mid0")


class Kind(NamedTuple):
    """How to make the devices, and the client's device."""

    make: Callable[..., str]
    by: str = "eth0"


KINDS = {
    "macvlan": Kind(_macvlan),
    "bond": Kind(_bond),
    "bridge": Kind(_bridge),
    "bond in a bridge": Kind(_bond_in_a_bridge),
    "vlan": Kind(_vlan, "v5"),
    "vlan in a bridge": Kind(_vlan_in_a_bridge, "v5"),
}


class Stacked(Gateway):
    """A gateway whose addresses are on a device above gw0."""

    upper = ""

    def stack(self, kind: Kind) -> None:
        """Make the devices, and move the addresses; skips the test if the kernel lacks a kind."""
        own = [f"{GATEWAY[family]}/{PREFIX[family]}" for family in FAMILIES]
        others = [f"{CLIENT[family]}/{PREFIX[family]}" for family in FAMILIES]
        for address in own:
            self.gateway.ip(f"address del {address} dev gw0")
        self.upper = kind.make(self.gateway, self.client)
        self.gateway.set_up(self.upper, *own)
        if kind.by != "eth0":
            for address in others:
                self.client.ip(f"address del {address} dev eth0")
            self.client.set_up(kind.by, *others)
        self.gateway.sysctl(0, "ipv4/conf/all/rp_filter", f"ipv4/conf/{self.upper}/rp_filter")
        for family in FAMILIES:
            self.client.add_neighbour(kind.by, GATEWAY[family], self.gateway.mac(self.upper))
            self.gateway.add_neighbour(self.upper, CLIENT[family], self.client.mac(kind.by))
            self.client.ip(f"-{family} route replace default via {GATEWAY[family]}")
        with self.gateway.entered():
            self.firewall.refresh()


@pytest.fixture(scope="module", params=KINDS)
def _stacked(_private_bpffs: None, request: pytest.FixtureRequest) -> Iterator[Stacked]:
    with Stacked() as made:
        made.stack(KINDS[request.param])
        yield made


@pytest.fixture
def stacked(_stacked: Stacked) -> Iterator[Stacked]:
    """The test runs inside the gateway, which has no rules; IPv6 is on."""
    with _stacked.gateway.entered():
        _stacked.reset()
        yield _stacked


@contextmanager
def service(protocol: str, family: int, port: int = 80) -> Iterator[socket.socket]:
    """The gateway's own service on a port of all addresses."""
    with socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol]) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ANY[family], port))
        if protocol == "tcp":
            made.listen()
        yield made


@contextmanager
def tapped(family: int) -> Iterator[None]:
    """A packet socket on each device, as a DHCP client opens it on one."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE[family])):
        yield


def reaches(gateway: Gateway, protocol: str, family: int) -> None:
    """Each of five conversations is the listener's, and is counted once."""
    with listening(protocol, family) as listener, service(protocol, family) as own:
        rule = gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        for _ in range(5):
            gateway.talks(listener, SERVICE[family], 80)
        assert gateway.hits(rule) == 5
        assert is_silent(own)


@families
@protocols
def test_attached_below_them(stacked: Stacked, protocol: str, family: int) -> None:
    reaches(stacked, protocol, family)


@families
@protocols
def test_attached_below_them_beside_a_packet_socket(
    stacked: Stacked, protocol: str, family: int
) -> None:
    with tapped(family):
        reaches(stacked, protocol, family)


@families
@protocols
def test_attached_to_the_one_with_the_addresses(
    stacked: Stacked, protocol: str, family: int
) -> None:
    stacked.firewall.detach("gw0")
    try:
        stacked.firewall.attach(stacked.upper, "ingress")
        stacked.firewall.set([stacked.upper], "ipv6", True)
        with tapped(family):
            reaches(stacked, protocol, family)
    finally:
        stacked.firewall.detach(stacked.upper)
        stacked.firewall.attach("gw0", "ingress")


# Frames that no device of the host takes


@families
@protocols
def test_a_frame_for_another_host_is_counted_as_that(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """Of a promiscuous interface."""
    gateway.client.add_neighbour("eth0", GATEWAY[family], "02:00:00:00:00:77")
    try:
        with listening(protocol, family) as listener, service(protocol, family) as own:
            gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
            gateway.is_dropped(protocol, SERVICE[family], 80, "other_host")
            assert is_silent(own, listener.socket)
    finally:
        gateway.introduce()


@families
@protocols
@pytest.mark.parametrize("kind", ["macvlan of a container", "macvtap"])
def test_what_a_device_takes_out_of_the_host_is_counted_as_that(
    gateway: Gateway, kind: str, protocol: str, family: int
) -> None:
    mac = "02:00:00:00:00:78"
    kind = kind.split()[0]
    add_device(gateway.gateway, "link", "gw0", "name", "up0", "address", mac, "type", kind)
    gateway.client.add_neighbour("eth0", GATEWAY[family], mac)
    with ExitStack() as stack:
        stack.callback(gateway.introduce)
        holder = gateway.gateway
        if kind == "macvlan":
            holder = gateway.add()
            gateway.gateway.ip(f"link set up0 netns {holder.path}")
        stack.callback(holder.ip, "link del up0")
        holder.ip("link set up0 up")
        listener = stack.enter_context(listening(protocol, family))
        own = stack.enter_context(service(protocol, family))
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.is_dropped(protocol, SERVICE[family], 80, "other_host")
        assert is_silent(own, listener.socket)


# What stands before and behind "ingress"

PROGRAMS = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
const volatile __u32 target = 0;
SEC("xdp") int passing(struct xdp_md *ctx) { return ctx ? XDP_PASS : XDP_DROP; }
char LICENSE[] SEC("license") = "GPL";
"""


@families
@protocols
@pytest.mark.parametrize("has_tap", [False, True])
def test_an_xdp_program_in_front(
    gateway: Gateway, has_tap: bool, tmp_path: Path, protocol: str, family: int
) -> None:
    source, built = tmp_path / "xdp.bpf.c", tmp_path / "xdp.bpf.o"
    source.write_text(PROGRAMS)
    compile_bpf(source, built)
    gateway.gateway.run("ip", "link", "set", "gw0", "xdpgeneric", "obj", str(built), "sec", "xdp")
    try:
        with tapped(family) if has_tap else ExitStack():
            reaches(gateway, protocol, family)
    finally:
        gateway.gateway.ip("link set gw0 xdpgeneric off")


@contextmanager
def filtering(gateway: Gateway, device: str, action: str) -> Iterator[None]:
    """A filter of TC on all that arrives at a device."""
    tc = gateway.gateway.run
    tc("tc", "qdisc", "add", "dev", device, "clsact", check=False)  # before 6.6 zfw has added it
    words = f"dev {device} ingress protocol all prio 9 u32 match u32 0 0 action {action}"
    tc("tc", "filter", "add", *words.split())
    try:
        yield
    finally:
        tc("tc", "filter", "del", "dev", device, "ingress", "prio", "9")


@families
@protocols
@pytest.mark.parametrize("has_tap", [False, True])
def test_shaping_by_an_ifb_behind_it(
    gateway: Gateway, has_tap: bool, protocol: str, family: int
) -> None:
    """The ifb puts the packet back at the interface, behind the filters."""
    add_device(gateway.gateway, "ifb7", "type", "ifb")
    gateway.gateway.ip("link set ifb7 up")
    try:
        with (
            filtering(gateway, "gw0", "mirred egress redirect dev ifb7"),
            tapped(family) if has_tap else ExitStack(),
        ):
            reaches(gateway, protocol, family)
    finally:
        gateway.gateway.ip("link del ifb7")


@families
@protocols
def test_a_mirror_behind_it(gateway: Gateway, protocol: str, family: int) -> None:
    gateway.gateway.add_veth("mirror0", "mirror1")
    gateway.gateway.ip("link set mirror0 up", "link set mirror1 up")
    try:
        with filtering(gateway, "gw0", "mirred egress mirror dev mirror0"):
            reaches(gateway, protocol, family)
    finally:
        gateway.gateway.ip("link del mirror0")


@families
@protocols
@pytest.mark.parametrize("has_tap", [False, True])
def test_what_another_interface_redirects_to_it(
    gateway: Gateway, has_tap: bool, protocol: str, family: int
) -> None:
    """The client's frames arrive at front0, and a filter of TC there puts them to gw0."""
    gateway.gateway.add_veth("front0", "eth1", gateway.client)
    gateway.gateway.ip("link set front0 up")
    gateway.client.ip("link set eth1 up")
    gateway.client.ip(f"-{family} route add {SERVICE[family]} dev eth1 src {CLIENT[family]}")
    gateway.client.add_neighbour("eth1", SERVICE[family], gateway.gateway.mac("front0"))
    try:
        with (
            filtering(gateway, "front0", "mirred ingress redirect dev gw0"),
            tapped(family) if has_tap else ExitStack(),
        ):
            reaches(gateway, protocol, family)
    finally:
        gateway.gateway.ip("link del front0")


@families
@pytest.mark.parametrize("has_tap", [False, True])
def test_what_a_veth_puts_together(gateway: Gateway, has_tap: bool, family: int) -> None:
    """GRO makes one packet of many segments, and of many datagrams."""
    gateway.gateway.run("ethtool", "-K", "gw0", "gro", "on", "rx-udp-gro-forwarding", "on")
    data = bytes(range(256)) * 1024
    try:
        with (
            listening("tcp", family) as listener,
            service("tcp", family) as own,
            tapped(family) if has_tap else ExitStack(),
        ):
            gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
            with gateway.connects(listener, SERVICE[family], 80) as (client, connection):
                client.sendall(data)
                received = b""
                while len(received) < len(data):
                    received += connection.recv(1 << 20)
                assert received == data
            assert is_silent(own)
        with tapped(family) if has_tap else ExitStack():
            reaches(gateway, "udp", family)
    finally:
        gateway.gateway.run("ethtool", "-K", "gw0", "gro", "off", "rx-udp-gro-forwarding", "off")
