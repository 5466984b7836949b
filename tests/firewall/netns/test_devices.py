# SPDX-License-Identifier: GPL-2.0-only
"""Both directions on every kind of device: offloads, VLANs, bridges, tunnels, loopback."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from tests.firewall.support.frames import (
    PROTOCOLS,
    SOME,
    exchange,
    families,
    is_silent,
    listening,
)
from tests.firewall.support.routed import (
    ANYWHERE,
    CLIENT,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Host,
    Router,
    attempt,
    bound,
    conversation,
    datagram,
    ping,
    raw_socket,
    serving,
    transfer,
)
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scapy.packet import Packet

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

BULK = 16 << 20


# Packets larger than the MTU


@families
@pytest.mark.parametrize("is_filtered", [False, True], ids=["", "filtered"])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_bulk_data_passes_in_large_packets(
    router: Router, sender: str, family: int, is_filtered: bool
) -> None:
    """Segments that offloads have put together count by what they carry (and close in order)."""
    router.let_clients_in()
    router.set("outbound_filter", is_filtered, router.outside)
    out = {"interfaces": (router.outside,), "direction": "egress"}
    router.insert(ANYWHERE[family], "tcp", PORT, **out)  # type: ignore[arg-type]
    before = router.firewall.status().reasons
    with (
        serving(router.server, "tcp", family) as listener,
        bound(router.client, "tcp", family) as client,
    ):
        client.connect((SERVER[family], PORT))
        with listener.accept()[0] as connection:
            connection.settimeout(PATIENCE)
            ends = [client, connection]
            if sender == "server":
                ends.reverse()
            transfer(*ends, BULK)
            for end in ends:
                end.shutdown(socket.SHUT_WR)
            for end in ends:
                assert end.recv(1) == b""
            assert wait_until(lambda: router.state() == "closing", PATIENCE)
    after = router.firewall.status().reasons
    reasons = {
        ("client", False): ("rule_pass", "egress"),
        ("client", True): ("rule_pass", "flow"),
        ("server", False): ("flow", "egress"),
        ("server", True): ("flow", "egress"),
    }[sender, is_filtered]
    for reason in reasons:
        packets, octets = (
            new - old for new, old in zip(after[reason], before[reason], strict=True)
        )
        assert octets > BULK
        assert octets > packets * 1514 * 2 if reason != "flow" or sender == "server" else True
    assert after["flow_invalid"] == before["flow_invalid"]
    assert after["malformed"] == before["malformed"]
    assert after["no_rule"] == before["no_rule"]


# Devices with somebody behind them


@contextmanager
def _bridge(router: Router, host: Host) -> Iterator[str]:
    gateway = router.gateway
    gateway.add_veth("port0", "eth0", host.namespace)
    try:
        gateway.add_bridge("dev0", "port0")
        yield "eth0"
    finally:
        gateway.run("ip", "link", "del", "port0", check=False)
        gateway.run("ip", "link", "del", "dev0", check=False)


@contextmanager
def _macvlan(router: Router, host: Host) -> Iterator[str]:
    gateway = router.gateway
    gateway.add_veth("base0", "eth0", host.namespace)
    try:
        # Otherwise the lower device, which has no filter, would answer ARP for the address.
        gateway.sysctl(1, "ipv4/conf/base0/arp_ignore")
        gateway.ip("link set base0 up", "link add link base0 name dev0 type macvlan")
        yield "eth0"
    finally:
        gateway.ip("link del base0")


def _carry(one: int, other: int, end: int) -> None:
    """What comes out of one tunnel goes into the other, until ``end`` is closed."""
    while True:
        ready, _, _ = select.select([one, other, end], [], [])
        if end in ready:
            return
        for fd in ready:
            try:
                os.write(other if fd == one else one, os.read(fd, 65535))
            except OSError:
                continue  # the other one is not up yet


@contextmanager
def _tun(router: Router, host: Host) -> Iterator[str]:
    ends = router.gateway.open_tun("dev0"), host.namespace.open_tun("tun0")
    stop, go = os.pipe()
    carrier = threading.Thread(target=_carry, args=(*ends, stop))
    carrier.start()
    try:
        yield "tun0"
    finally:
        os.close(go)
        carrier.join()
        for fd in (*ends, stop):
            os.close(fd)


@contextmanager
def _vlan(router: Router, host: Host) -> Iterator[str]:
    gateway = router.gateway
    gateway.add_veth("base0", "eth0", host.namespace)
    try:
        for namespace, base, name in ((gateway, "base0", "dev0"), (host.namespace, "eth0", "v5")):
            namespace.run("ip", "link", "set", base, "up")
            kind = ("type", "vlan", "id", "5")
            made = namespace.run(
                "ip", "link", "add", "link", base, "name", name, *kind, check=False
            )
            if made.returncode != 0 and "Unknown device type" in made.stderr:
                pytest.skip("no 8021q; tagged frames are tested below")
            assert made.returncode == 0, made.stderr
        yield "v5"
    finally:
        gateway.run("ip", "link", "del", "base0")


DEVICES: dict[str, Callable[..., object]] = {
    "bridge": _bridge,
    "bridge port": _bridge,
    "macvlan": _macvlan,
    "tun": _tun,
    "vlan": _vlan,
}


@pytest.fixture(params=DEVICES)
def host(router: Router, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host behind a device of the gateway, which filters both ways."""
    host = Host(6)
    with ExitStack() as stack:
        stack.callback(host.close)
        name = stack.enter_context(DEVICES[request.param](router, host))  # type: ignore[arg-type]
        for end in (host.end(router.gateway, "dev0", 1), host.end(host.namespace, name, 2)):
            namespace, device, *addresses = end
            conf = f"ipv6/conf/{device}"
            namespace.sysctl(0, f"{conf}/router_solicitations", f"{conf}/accept_dad")
            namespace.set_up(device, *addresses)
        host.namespace.route_by(*host.gateway.values())
        host.device = "port0" if request.param == "bridge port" else "dev0"
        if request.param == "bridge":
            host.namespace.run("ip", "link", "set", "eth0", "up")
        router.firewall.attach(host.device, "both")
        stack.callback(router.firewall.refresh)
        stack.callback(lambda: router.firewall.detach(host.device))
        for setting in ("ipv6", "outbound_filter", "per_interface_rules"):
            router.firewall.set([host.device], setting, True)
        yield host


def _allow(router: Router, host: Host, protocol: str, family: int, direction: str) -> None:
    interfaces = (host.device,)
    router.insert(ANYWHERE[family], protocol, PORT, interfaces=interfaces, direction=direction)


@families
@protocols
def test_a_device_lets_out_what_a_rule_allows(
    router: Router, host: Host, protocol: str, family: int
) -> None:
    old = router.firewall.status().reasons["egress_no_rule"][0]
    with attempt(protocol, router.gateway, host.address[family]) as asker:
        assert is_silent(asker)
        # The neighbour is asked for before anything leaves.
        assert wait_until(lambda: router.firewall.status().reasons["egress_no_rule"][0] > old)
    before = router.firewall.status().reasons
    _allow(router, host, protocol, family, "egress")
    with conversation(protocol, router.gateway, host.namespace, host.address[family]) as own:
        own.talks()
        flow = router.flow(protocol)
        assert flow is not None
        assert (flow.initiator, flow.responder) == (host.gateway[family], host.address[family])
        # No rule is needed by what has begun.
        router.firewall.flush()
        own.talks()
    after = router.firewall.status().reasons
    assert after["rule_pass"][0] - before["rule_pass"][0] == 1
    for reason in ("egress_no_rule", "no_rule", "malformed", "flow_invalid", "non_ip"):
        assert after[reason] == before[reason], reason


@families
@protocols
def test_a_device_lets_in_what_a_rule_allows(
    router: Router, host: Host, protocol: str, family: int
) -> None:
    before = router.firewall.status().reasons["no_rule"][0]
    with attempt(protocol, host.namespace, host.gateway[family]) as asker:
        assert is_silent(asker)
        # A macvlan's first broadcast takes its time.
        assert wait_until(lambda: router.firewall.status().reasons["no_rule"][0] > before)
    _allow(router, host, protocol, family, "ingress")
    with conversation(protocol, host.namespace, router.gateway, host.gateway[family]) as own:
        own.talks()
        flow = router.flow(protocol)
        assert flow is not None
        assert (flow.is_admitted_in, flow.is_admitted_out) == (True, False)


@families
@protocols
def test_a_device_is_forwarded_to_and_from(
    router: Router, host: Host, protocol: str, family: int
) -> None:
    router.let_clients_in()
    _allow(router, host, protocol, family, "egress")
    with conversation(protocol, router.client, host.namespace, host.address[family]) as out:
        out.talks()
    _allow(router, host, protocol, family, "ingress")
    with conversation(protocol, host.namespace, router.client, CLIENT[family]) as back:
        back.talks()


# Tagged frames


@families
@pytest.mark.parametrize("kinds", [(Dot1Q,), (Dot1AD, Dot1Q)], ids=["tagged", "twice"])
def test_tagged_frames_are_of_their_flow_both_ways(
    router: Router, kinds: tuple[type[Packet], ...], family: int
) -> None:
    """As a VLAN device on top of the interface makes and takes them."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.outside)
    out = {"interfaces": (router.outside,), "direction": "egress"}
    router.insert(SILENT_SERVER[family], "udp", PORT, **out)  # type: ignore[arg-type]
    inside, outside = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], PORT)

    def tagged(packet: Packet) -> bytes:
        stack = Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:01")
        for number, kind in enumerate(kinds):
            stack /= kind(vlan=5 + number)
        return bytes(stack / packet)

    with (
        router.gateway.packet_socket(router.outside) as wire,
        router.capture(router.server) as heard,
    ):

        def leaves(packet: Packet) -> bool:
            try:
                wire.send(tagged(packet))
            except OSError:
                pass  # the packet socket is told of a drop
            return heard.has(lambda frame: UDP in frame)

        with router.counts(egress_no_rule=1):
            assert not leaves(datagram(inside, (outside[0], PORT + 1)))
        with router.counts(rule_pass=1, flow=1):
            assert leaves(datagram(inside, outside))
            assert leaves(datagram(inside, outside))
        flow = router.flow("udp")
        assert flow is not None
        assert (flow.initiator, flow.responder) == (inside[0], outside[0])
    with router.counts(flow=1, no_rule=1):
        router.send(router.server, tagged(datagram(outside, inside)))
        router.send(router.server, tagged(datagram(outside, (inside[0], 4001))))


# Loopback


LOCAL = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture
def loopback(router: Router) -> Iterator[None]:
    """The firewall on lo as well, with every setting that is strict."""
    router.firewall.attach("lo", "both")
    for setting in ("outbound_filter", "ssh"):
        router.firewall.set(["lo"], setting, setting == "outbound_filter")
    router.firewall.set(["lo"], "ipv6", False)
    yield
    router.firewall.set(["lo"], "outbound_filter", False)
    router.firewall.set(["lo"], "ssh", True)
    router.firewall.detach("lo")


@families
@protocols
@pytest.mark.usefixtures("loopback")
def test_loopback_is_never_filtered(router: Router, protocol: str, family: int) -> None:
    router.insert(LOCAL[family], protocol, PORT, deny=True, direction="egress")
    with (
        router.counts(loopback=SOME, established=SOME),
        conversation(protocol, router.gateway, router.gateway, LOCAL[family]) as own,
    ):
        own.talks()
        assert router.firewall.flows() == []


@families
@protocols
@pytest.mark.usefixtures("loopback")
def test_rules_hold_on_loopback_as_before(router: Router, protocol: str, family: int) -> None:
    router.insert(LOCAL[family], protocol, PORT, deny=True)
    with (
        serving(router.gateway, protocol, family) as server,
        router.counts(rule_deny=1, loopback=1),
        attempt(protocol, router.gateway, LOCAL[family]) as asker,
    ):
        assert is_silent(asker, server)
    with (
        listening(protocol, family) as listener,
        bound(router.gateway, protocol, family) as client,
    ):
        router.insert(LOCAL[family], protocol, PORT + 1, to=listener.port)
        client.connect((LOCAL[family], PORT + 1))
        if protocol == "tcp":
            with listener.accept() as connection:
                exchange(client, connection)
        else:
            client.send(b"question")
            assert listener.receive()[2] == (LOCAL[family], PORT + 1)


@families
@pytest.mark.usefixtures("loopback")
def test_a_ping_of_loopback_is_answered(router: Router, family: int) -> None:
    kind = {4: 1, 6: 58}[family]
    message = bytes(ping(family, "request", 99))
    with raw_socket(router.gateway, family, kind) as own:
        before = router.firewall.status().reasons["icmp_echo"][0]
        own.sendto(message, (LOCAL[family], 0))
        data = own.recv(1000)
        while data[20 if family == 4 else 0] != {4: 0, 6: 129}[family]:
            data = own.recv(1000)
        assert router.firewall.status().reasons["icmp_echo"][0] - before == 2
