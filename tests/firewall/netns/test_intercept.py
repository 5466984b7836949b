# SPDX-License-Identifier: GPL-2.0-only
"""The main job, on real traffic: intercept, pass, drop, and let others be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    FAMILIES,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    Capture,
    Gateway,
    datagram,
    families,
    is_silent,
    listening,
)
from tests.firewall.support.listeners import LOOPBACK
from tests.support.kernels import needs_kernel
from tests.support.waiting import wait_until
from zfw_py import Prefix, Rule, RuleKey
from zfw_py.firewall.maps import STORE
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@families
@protocols
def test_the_listener_is_reached_with_the_original_destination(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family) as listener:
        rule = gateway.insert(SERVICE[family], protocol, 22, to=listener.port)
        with gateway.counts(rule_intercept=1, **AFTERWARDS[protocol]):
            gateway.talks(listener, SERVICE[family], 22)
    assert gateway.hits(rule) == 1


@families
@protocols
def test_a_pass_rule_leaves_it_to_the_stack(gateway: Gateway, protocol: str, family: int) -> None:
    with listening(protocol, family, 5000, GATEWAY[family]) as service:
        rule = gateway.insert(GATEWAY[family], protocol, 5000)
        with gateway.counts(rule_pass=1, **AFTERWARDS[protocol]):
            gateway.talks(service, GATEWAY[family], 5000)
    assert gateway.hits(rule) == 1


@families
@protocols
def test_without_a_rule_it_is_dropped_in_silence(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family, 5000, GATEWAY[family]) as service:
        gateway.is_dropped(protocol, GATEWAY[family], 5000, "no_rule")
        assert is_silent(service.socket)


@families
@protocols
def test_a_deny_rule_drops_in_silence(gateway: Gateway, protocol: str, family: int) -> None:
    with listening(protocol, family, 5000, GATEWAY[family]) as service:
        rule = gateway.insert(GATEWAY[family], protocol, 5000, deny=True)
        gateway.is_dropped(protocol, GATEWAY[family], 5000, "rule_deny")
        assert is_silent(service.socket)
    assert gateway.hits(rule) == 1


@families
@protocols
def test_a_rule_is_for_its_own_protocol(gateway: Gateway, protocol: str, family: int) -> None:
    (other,) = set(PROTOCOLS) - {protocol}
    gateway.insert(SERVICE[family], other, 1, 65535)
    gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")


@families
def test_a_rule_is_for_its_own_family(gateway: Gateway, family: int) -> None:
    (other,) = set(FAMILIES) - {family}
    gateway.insert(frames.EVERYWHERE[other], "tcp", 0, 65535)
    gateway.is_dropped("tcp", SERVICE[family], 80, "no_rule")


@families
def test_packets_and_bytes_are_counted_by_rule_and_by_reason(gateway: Gateway, family: int) -> None:
    gateway.insert(GATEWAY[family], "udp", 5000)
    packet = gateway.framed(datagram(GATEWAY[family], 5000, bytes(100)))
    before = gateway.firewall.status().reasons["rule_pass"]
    with gateway.counts(rule_pass=3):
        gateway.send(packet, packet, packet)
    after = gateway.firewall.status().reasons["rule_pass"]
    (rule,) = gateway.firewall.rules()
    assert (rule.packets, rule.bytes) == (3, 3 * len(packet))
    assert (after[0] - before[0], after[1] - before[1]) == (3, 3 * len(packet))


@pytest.mark.parametrize(
    ("destination", "address"),
    [
        ("10.77.3.4/32", "10.77.3.4"),
        ("10.78.3.4/16", "10.78.200.1"),
        ("fd77::4/128", "fd77::4"),
        ("fd78::/64", "fd78::abcd"),
    ],
)
def test_route_makes_the_destination_local_for_as_long_as_the_rule_stands(
    gateway: Gateway, destination: str, address: str
) -> None:
    def is_local() -> bool:
        found = gateway.gateway.run("ip", "route", "get", address, check=False)
        return found.stdout.startswith("local ")

    prefix = Prefix.parse(destination)
    key = RuleKey(prefix, "tcp", 22)
    assert not is_local()
    with listening("tcp", prefix.family) as listener:
        gateway.firewall.insert(Rule(key, tproxy_port=listener.port), route=True)
        assert is_local()
        gateway.talks(listener, address, 22)
    gateway.firewall.delete(key)
    assert not is_local()


@families
def test_route_never_cuts_off_the_neighbours(gateway: Gateway, family: int) -> None:
    """Local routes are looked at first: a subnet must not vanish behind one."""
    key = RuleKey(Prefix.parse(frames.EVERYWHERE[family]), "tcp", 22)
    with listening("tcp", family) as listener:
        inserted = gateway.firewall.insert(Rule(key, tproxy_port=listener.port), route=True)
        assert inserted.warnings()
        gateway.talks(listener, SERVICE[family], 22)


OUTSIDE = {4: "203.0.113.5", 6: "2001:db8::5"}


@families
@protocols
def test_what_is_not_local_is_not_forwarded(gateway: Gateway, protocol: str, family: int) -> None:
    """The kernel drops a packet that it would forward and that has a socket."""
    route = f"{OUTSIDE[family]} via {CLIENT[family]}"
    gateway.gateway.sysctl(1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    gateway.gateway.ip(f"route add {route}")
    try:
        with Capture(gateway.client, "eth0") as captured, listening(protocol, family) as listener:

            def is_forwarded() -> bool:
                layer = (IP, IPv6)[family == 6]
                return captured.has(lambda f: layer in f and f[layer].dst == OUTSIDE[family])

            gateway.insert(OUTSIDE[family], protocol, 80)
            gateway.attempt(protocol, OUTSIDE[family], 80).close()
            assert wait_until(is_forwarded), "a pass rule lets it through"
            gateway.insert(OUTSIDE[family], protocol, 80, to=listener.port)
            with gateway.counts(rule_intercept=1):
                gateway.attempt(protocol, OUTSIDE[family], 80).close()
            assert is_silent(listener.socket)
            assert not is_forwarded()
    finally:
        gateway.gateway.ip(f"route del {route}")
        gateway.gateway.sysctl(0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")


# Large segments, both ways


def _send_all(sender: socket.socket, data: bytes) -> None:
    sender.sendall(data)
    sender.shutdown(socket.SHUT_WR)


def _digest_of_all(receiver: socket.socket) -> str:
    digest = hashlib.sha256()
    while data := receiver.recv(1 << 20):
        digest.update(data)
    return digest.hexdigest()


def _transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    data = os.urandom(1 << 20) * (size >> 20)
    thread = threading.Thread(target=_send_all, args=(sender, data))
    thread.start()
    assert _digest_of_all(receiver) == hashlib.sha256(data).hexdigest()
    thread.join()


# IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE and IFLA_GRO_IPV4_MAX_SIZE,
# include/uapi/linux/if_link.h. The last two are news to iproute2 6.1.
_SIZE_LIMITS = (41, 58, 63, 64)
_RTM_NEWLINK, _NLM_F_REQUEST, _NLM_F_ACK = 16, 1, 4


def _limit_segments(name: str, size: int) -> None:
    """Let an interface make and join segments of so many bytes."""
    attributes = b"".join(struct.pack("=HHI", 8, limit, size) for limit in _SIZE_LIMITS)
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0) + attributes
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    header = struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(header + body)
        (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if error:
        raise OSError(-error, f"{name}: segments of {size} bytes: {os.strerror(-error)}")


@contextlib.contextmanager
def _segments_up_to(gateway: Gateway, size: int) -> Iterator[None]:
    """Both ends of the wire make segments of so many bytes, and GRO joins them."""

    def both(size: int, gro: str) -> None:
        for namespace, name in ((gateway.client, "eth0"), (gateway.gateway, "gw0")):
            with namespace.entered():
                _limit_segments(name, size)
            namespace.run("ethtool", "-K", name, "gro", gro)

    both(size, "on")
    try:
        yield
    finally:
        both(65536, "off")


@families
@pytest.mark.parametrize(
    "segment",
    [pytest.param(65536, id="gro"), pytest.param(190000, id="big_tcp", marks=needs_kernel(6, 3))],
)
def test_bulk_goes_through_whole_in_large_segments(
    gateway: Gateway, family: int, segment: int
) -> None:
    size = 16 << 20
    with listening("tcp", family) as listener, _segments_up_to(gateway, segment):
        rule = gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
        means: list[float] = []

        def is_large() -> bool:
            with gateway.client_socket("tcp", family) as client:
                client.connect((SERVICE[family], 80))
                with listener.accept() as connection:
                    before = gateway.firewall.status().reasons["established"]
                    _transfer(client, connection, size)
                    after = gateway.firewall.status().reasons["established"]
                    _transfer(connection, client, size)
            packets, octets = (b - a for a, b in zip(before, after, strict=True))
            assert octets >= size
            means.append(octets / packets)
            return means[-1] > segment / 2

        # A receiver that has to wait for a processor offers a small window.
        assert wait_until(is_large), f"the segments were small, nothing was shown: {means}"
    assert gateway.hits(rule) == len(means)


# Other filters


DROP_ALL = """
#include <linux/bpf.h>
__attribute__((section("classifier"), used)) int drop(struct __sk_buff *skb) { return 2; }
"""


@pytest.fixture(scope="module")
def foreign_program(running: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The object of somebody else's filter, which drops all that it sees."""
    made: Path = tmp_path_factory.mktemp("foreign") / "drop.o"
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    clang = ("clang", "-target", "bpf", "-O2", include, "-x", "c", "-c", "-", "-o", str(made))
    subprocess.run(clang, input=DROP_ALL, text=True, check=True)
    return str(made)


@pytest.mark.parametrize("mode", [pytest.param("tcx", marks=needs_kernel(6, 6)), "clsact"])
@protocols
def test_filters_behind_ours_see_what_passes(
    gateway: Gateway, foreign_program: str, mode: str, protocol: str
) -> None:
    gateway.firewall.attach(gateway.interface, "ingress", mode)
    tc = ("tc", "filter", "{}", "dev", gateway.interface, "ingress", "pref", "10")
    gateway.gateway.run("tc", "qdisc", "replace", "dev", gateway.interface, "clsact")
    with listening(protocol, 4) as listener:
        gateway.insert(SERVICE[4], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[4], 80)
        add = [word.format("add") for word in tc]
        gateway.gateway.run(*add, "bpf", "da", "obj", foreign_program, "sec", "classifier")
        try:
            gateway.is_dropped(protocol, SERVICE[4], 80, "rule_intercept")
            assert is_silent(listener.socket)
        finally:
            gateway.gateway.run(*[word.format("delete") for word in tc])
            gateway.firewall.detach(gateway.interface)
            gateway.firewall.attach(gateway.interface, "ingress")
        gateway.talks(listener, SERVICE[4], 80)


@needs_kernel(6, 6)
def test_a_detached_program_is_gone_when_detach_returns(gateway: Gateway) -> None:
    """Whoever has its link open; the kernel itself has, for a while after the pin is gone."""
    with gateway.second_wire("gw1") as wire:
        index = socket.if_nametoindex("gw1")
        link = bpf_maps.open_pin(f"{STORE.directory(netns_cookie())}/link_ingress_{index}")
        try:
            gateway.firewall.detach("gw1")
            with gateway.counts():
                wire(datagram(SERVICE[4], 80))
            gateway.firewall.attach("gw1", "ingress")
            with gateway.counts(no_rule=1):
                wire(datagram(SERVICE[4], 80))
        finally:
            os.close(link)


# Loopback, and the way out


@pytest.fixture
def loopback(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway with the firewall on lo as well."""
    gateway.firewall.attach("lo", "ingress")
    yield gateway
    gateway.firewall.detach("lo")


@families
@protocols
def test_on_loopback_all_passes_that_no_rule_names(
    loopback: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family) as service:
        address = service.socket.getsockname()[:2]
        client = socket.socket(frames.SOCKET_FAMILY[family], frames.SOCKET_KIND[protocol])
        client.settimeout(frames.PATIENCE)
        with client, loopback.counts(loopback=1, **AFTERWARDS[protocol]):
            client.connect(address)
            client.send(b"hello")
            if protocol == "udp":
                assert service.receive()[0] == b"hello"
                return
            with service.accept() as connection:
                assert connection.recv(5) == b"hello"


@families
@protocols
def test_on_loopback_rules_count(loopback: Gateway, protocol: str, family: int) -> None:
    """What the gateway itself sends to an intercepted address takes this way."""
    with listening(protocol, family) as listener:
        loopback.insert(SERVICE[family], protocol, 80, to=listener.port)
        client = socket.socket(frames.SOCKET_FAMILY[family], frames.SOCKET_KIND[protocol])
        client.settimeout(frames.PATIENCE)
        with client:
            client.connect((SERVICE[family], 80))
            client.send(b"hello")
            if protocol == "udp":
                data, _, original = listener.receive()
                assert (data, original) == (b"hello", (SERVICE[family], 80))
                return
            with listener.accept() as connection:
                assert connection.getsockname()[:2] == (SERVICE[family], 80)
                assert connection.recv(5) == b"hello"


@families
def test_loopback_answers_pings_whatever_is_set(loopback: Gateway, family: int) -> None:
    """And passes other protocols and IPv6: nothing on a host works without."""
    for setting in ("icmp_echo", "ipv6", "pass_non_tuple"):
        loopback.firewall.set(["lo"], setting, False)
    protocol = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)[family == 6]
    request = bytes((8 if family == 4 else 128, 0, 0, 0, 0, 7, 0, 1))
    if family == 4:
        request = request[:2] + (0xFFFF - 0x0808).to_bytes(2, "big") + request[4:]
    with (
        socket.socket(frames.SOCKET_FAMILY[family], socket.SOCK_RAW, protocol) as ping,
        loopback.counts(icmp_echo=2),
    ):
        ping.sendto(request, ({4: "127.0.0.1", 6: "::1"}[family], 0))


@families
@protocols
def test_whoever_is_connected_to_the_proxy_does_not_stand_for_it(
    loopback: Gateway, protocol: str, family: int
) -> None:
    """A local program talks to the proxy directly, and from the same port to a service."""
    kind = frames.SOCKET_FAMILY[family], frames.SOCKET_KIND[protocol]
    with (
        listening(protocol, family) as listener,
        socket.socket(*kind) as direct,
        socket.socket(*kind) as client,
    ):
        loopback.insert(SERVICE[family], protocol, 80, to=listener.port)
        for each in (direct, client):
            each.settimeout(frames.PATIENCE)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(direct.getsockname()[:2] if each is client else (LOOPBACK[family], 0))
            if each is direct:
                each.connect(listener.socket.getsockname())
        accepted = listener.accept() if protocol == "tcp" else contextlib.nullcontext()
        with accepted, loopback.counts(rule_intercept=1, **AFTERWARDS[protocol]):
            client.connect((SERVICE[family], 80))
            client.send(b"question")
            if protocol == "udp":
                assert listener.receive()[2] == (SERVICE[family], 80)
                return
            with listener.accept() as connection:
                assert connection.getsockname()[:2] == (SERVICE[family], 80)


GROUPS = {4: "239.9.9.9", 6: "ff02::9:9"}


@families
def test_the_gateway_hears_its_own_multicast(gateway: Gateway, family: int) -> None:
    """The copy for local members comes in by the interface, without an Ethernet header."""
    index = socket.if_nametoindex(gateway.interface)
    with (
        socket.socket(frames.SOCKET_FAMILY[family], socket.SOCK_DGRAM) as member,
        socket.socket(frames.SOCKET_FAMILY[family], socket.SOCK_DGRAM) as sender,
    ):
        member.settimeout(frames.PATIENCE)
        member.bind((GROUPS[family], 9999, *(() if family == 4 else (0, index))))
        if family == 4:
            request = struct.pack("=4s4si", socket.inet_aton(GROUPS[4]), bytes(4), index)
            member.setsockopt(socket.SOL_IP, socket.IP_ADD_MEMBERSHIP, request)
            sender.setsockopt(socket.SOL_IP, socket.IP_MULTICAST_IF, request)
        else:
            group = socket.inet_pton(socket.AF_INET6, GROUPS[6])
            request = struct.pack("=16si", group, index)
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        with gateway.counts(loopback=1):
            sender.sendto(b"hello", (GROUPS[family], 9999))
        assert member.recv(100) == b"hello"


def test_the_gateway_hears_its_own_broadcast(gateway: Gateway) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(frames.PATIENCE)
        receiver.bind(("10.9.0.255", 9999))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with gateway.counts(loopback=1):
            sender.sendto(b"hello", ("10.9.0.255", 9999))
        assert receiver.recv(100) == b"hello"


@families
def test_multicast_from_outside_needs_a_rule(gateway: Gateway, family: int) -> None:
    with gateway.counts(no_rule=1):
        gateway.send(datagram(GROUPS[family], 9999))


@families
@pytest.mark.parametrize("protocol", [2, 47, 89, 112])
def test_on_the_way_out_nothing_is_dropped(gateway: Gateway, family: int, protocol: int) -> None:
    """The gateway's own OSPF, IGMP, GRE and VRRP among them."""
    gateway.firewall.attach(gateway.interface, "egress")
    kind = frames.SOCKET_FAMILY[family], socket.SOCK_RAW, protocol
    with gateway.client.entered():
        receiver = socket.socket(*kind)
    receiver.settimeout(frames.PATIENCE)
    with receiver, socket.socket(*kind) as sender:
        with gateway.counts(egress=1):
            sender.sendto(b"hello", (CLIENT[family], 0))
        assert receiver.recv(100).endswith(b"hello")
    gateway.firewall.detach(gateway.interface, "egress")
