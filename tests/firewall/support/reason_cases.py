# SPDX-License-Identifier: GPL-2.0-only
"""One packet for each reason of a decision, in a router that really decides so."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import ICMP, IP, UDP, IPOption_LSRR
from scapy.layers.inet6 import (
    ICMPv6MLReport,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.firewall.support import flow_tables
from tests.firewall.support.frames import SOME, listening
from tests.firewall.support.routed import (
    OUTSIDE_GATEWAY,
    SILENT_CLIENT,
    SILENT_SERVER,
    Router,
    datagram,
    ip,
    ping,
    segment,
)
from zfw_py.firewall import layout
from zfw_py.firewall.codec import decode_interface, encode_interface, u32
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from scapy.packet import Packet

_ETH_P_IP = 0x0800
_NOBODY = 65534
_MPTCP = getattr(socket, "IPPROTO_MPTCP", 262)
GATEWAY = OUTSIDE_GATEWAY[4]
CLIENT = (SILENT_SERVER[4], 40000)


@dataclass
class Wire:
    """A packet, where the firewall sees it, how it is sent, and what is counted then.

    ``explained`` is the reason that a test run gives, where the wire shows another one later.
    """

    frame: bytes
    send: Callable[[], object]
    verdict: str
    interface: str = "wan0"
    direction: str = "ingress"
    came_by: str | None = None
    explained: str | None = None
    counted: dict[str, Any] = field(default_factory=dict)


def _from_server(router: Router, packet: Packet | bytes, verdict: str, **fields: Any) -> Wire:
    frame = router.framed(router.server, packet)
    return Wire(frame, partial(router.send, router.server, frame), verdict, **fields)


def _syn(port: int = 5000, address: str = GATEWAY) -> Packet:
    return segment(CLIENT, (address, port), "S", 1)


def _fragment(offset: int, *, more: bool, destination: str = GATEWAY) -> Packet:
    header = IP(
        src=CLIENT[0], dst=destination, id=77, proto=17, flags="MF" if more else 0, frag=offset
    )
    return header / Raw(bytes(UDP(sport=40000, dport=5000, len=48)) + bytes(16))


@contextmanager
def _plain(router: Router, packet: Packet | bytes, verdict: str, *on: str) -> Iterator[Wire]:
    """A packet that depends on settings alone."""
    for setting in on:
        router.set(setting)
    yield _from_server(router, packet, verdict)


@contextmanager
def _ipv6_off(router: Router) -> Iterator[Wire]:
    router.set("ipv6", False)
    packet = segment((SILENT_SERVER[6], 40000), (OUTSIDE_GATEWAY[6], 5000), "S", 1)
    yield _from_server(router, packet, "drop")


@contextmanager
def _loopback(router: Router) -> Iterator[Wire]:
    router.firewall.attach("lo", "ingress")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 40001))
            packet = datagram(("127.0.0.1", 40001), ("127.0.0.1", 9), b"")
            frame = bytes(Ether(dst="00:00:00:00:00:00", src="00:00:00:00:00:00") / packet)
            yield Wire(
                *(frame, lambda: sender.sendto(b"", ("127.0.0.1", 9)), "pass", "lo"),
                # The kernel answers: port unreachable, about a packet of a socket.
                counted={"loopback": 1, "icmp_error": 1},
            )
    finally:
        router.firewall.detach("lo")


@contextmanager
def _later_fragment(router: Router, verdict: str, rule: dict[str, Any] | None) -> Iterator[Wire]:
    """A fragment behind its first one, which has passed or has been dropped."""
    if rule is not None:
        router.insert(GATEWAY, "udp", 5000, **rule)
    with router.counts(**{"no_rule" if rule is None else "rule_pass": 1}):
        router.send(router.server, _fragment(0, more=True))
    yield _from_server(router, _fragment(3, more=False), verdict)


@contextmanager
def _fragment_intercept(router: Router) -> Iterator[Wire]:
    # To a host that the router forwards to.
    router.insert(SILENT_CLIENT[4], "udp", 5000, to=5353)
    yield _from_server(router, _fragment(0, more=True, destination=SILENT_CLIENT[4]), "drop")


@contextmanager
def _connected(router: Router) -> Iterator[socket.socket]:
    """A UDP socket of the gateway with this one peer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((GATEWAY, 5000))
        made.connect(CLIENT)
        yield made


@contextmanager
def _established(router: Router) -> Iterator[Wire]:
    with _connected(router):
        yield _from_server(router, datagram(CLIENT, (GATEWAY, 5000)), "pass")


def _port_unreachable() -> Packet:
    quoted = datagram((GATEWAY, 5000), CLIENT)
    return ip(CLIENT[0], GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(quoted)[:28])


@contextmanager
def _icmp_error(router: Router) -> Iterator[Wire]:
    with _connected(router):
        yield _from_server(router, _port_unreachable(), "pass")


@contextmanager
def _ruled(router: Router, verdict: str, **rule: Any) -> Iterator[Wire]:
    router.insert(GATEWAY, "tcp", 5000, **rule)
    yield _from_server(router, _syn(), verdict)


@contextmanager
def _intercepted(router: Router) -> Iterator[Wire]:
    with listening("udp", 4) as listener:
        router.insert(GATEWAY, "udp", 5000, to=listener.port)
        yield _from_server(router, datagram(CLIENT, (GATEWAY, 5000)), "intercept")
        assert listener.receive()[2] == (GATEWAY, 5000)


@contextmanager
def _assign_failed(router: Router) -> Iterator[Wire]:
    """The kernel assigns no socket in a test run; so the program that is attached has one."""
    with listening("tcp", 4) as listener, flow_tables.programs() as running:
        router.insert(GATEWAY, "tcp", 5000, to=listener.port)
        frame = router.framed(router.server, _syn())
        yield Wire(
            *(frame, partial(flow_tables.run, running["ingress"], frame, router.outside)),
            "intercept",
            explained="rule_intercept",
        )


@contextmanager
def _a_users_listener(router: Router) -> Iterator[Wire]:
    os.seteuid(_NOBODY)
    try:
        made = socket.create_server(("127.0.0.1", 0))
    finally:
        os.seteuid(0)
    with made:
        router.insert(GATEWAY, "tcp", 5000, to=made.getsockname()[1])
        yield _from_server(router, _syn(), "drop")


@contextmanager
def _rules_changing(router: Router) -> Iterator[Wire]:
    """As while an edit exchanges rules and per-interface-rules at once."""
    key = u32(socket.if_nametoindex(router.outside))
    with Maps(is_writer=False) as maps:
        interfaces = maps.map("interfaces")
    before = interfaces.lookup(key)
    assert before is not None
    ifindex, settings, *rest = decode_interface(before)
    interfaces.update(key, encode_interface(ifindex, settings | layout.SETTING_CHANGING, *rest))
    try:
        yield _from_server(router, _syn(), "drop")
    finally:
        interfaces.update(key, before)


@contextmanager
def _flow(router: Router, verdict: str, flags: str, seq: int) -> Iterator[Wire]:
    """The answer to a SYN that was let out."""
    router.insert("0.0.0.0/0", "tcp", 443)
    client, server = (SILENT_CLIENT[4], 40000), (SILENT_SERVER[4], 443)
    with router.counts(rule_pass=1):
        router.send(router.client, segment(client, server, "S", 1000))
    yield _from_server(router, segment(server, client, flags, seq, 1001), verdict)


@contextmanager
def _flow_invalid(router: Router) -> Iterator[Wire]:
    """A RST whose number acknowledges nothing that was sent."""
    router.insert("0.0.0.0/0", "tcp", 443)
    client, server = (SILENT_CLIENT[4], 40000), (SILENT_SERVER[4], 443)
    with router.counts(rule_pass=1):
        router.send(router.client, segment(client, server, "S", 1000))
    yield _from_server(router, segment(server, client, "RA", 0, 500_000_000), "drop")


@contextmanager
def _leaving(router: Router, verdict: str, *on: str) -> Iterator[Wire]:
    """A datagram of the gateway's own."""
    for setting in on:
        router.set(setting)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((GATEWAY, 5001))
        frame = router.framed(router.server, datagram((GATEWAY, 5001), CLIENT, b""))

        def send() -> None:
            try:
                sender.sendto(b"", CLIENT)
            except PermissionError:
                pass  # the sender is told of a drop by its own interface

        yield Wire(frame, send, verdict, direction="egress")


@contextmanager
def _deliver_intercept(router: Router) -> Iterator[Wire]:
    """Beside a packet socket: the kernel's clone has lost the listener."""
    with listening("udp", 4) as listener, router.gateway.packet_socket(router.outside, _ETH_P_IP):
        router.insert(GATEWAY, "udp", 5000, to=listener.port)
        yield _from_server(
            *(router, datagram(CLIENT, (GATEWAY, 5000)), "intercept"),
            explained="rule_intercept",
            counted={"rule_intercept": 1, "deliver_intercept": 1},
        )
        assert listener.receive()[2] == (GATEWAY, 5000)


@contextmanager
def _deliver_no_listener(router: Router) -> Iterator[Wire]:
    """The kernel keeps no reference to an MPTCP listener."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        router.insert(GATEWAY, "tcp", 5000, to=listener.getsockname()[1])
        with router.gateway.packet_socket(router.outside, _ETH_P_IP):
            yield _from_server(
                *(router, _syn(), "intercept"),
                explained="rule_intercept",
                counted={"rule_intercept": 1, "deliver_no_listener": 1},
            )


@contextmanager
def _misrouted(router: Router) -> Iterator[Wire]:
    """A clone without its listener, to a destination that is not this host's."""
    packet = datagram((SILENT_CLIENT[4], 1), (SILENT_SERVER[4], 80))
    inside = router.framed(router.client, packet)
    with listening("udp", 4) as listener, router.gateway.packet_socket(router.inside, _ETH_P_IP):
        router.insert(SILENT_SERVER[4], "udp", 80, to=listener.port)
        yield Wire(
            inside,
            partial(router.send, router.client, inside),
            "pass",
            direction="egress",
            came_by=router.inside,
            explained="egress",
            counted={"rule_intercept": 1, "misrouted": 1},
        )


@contextmanager
def _other_host(router: Router) -> Iterator[Wire]:
    """A frame that another host takes, on a link where this one sees it too."""
    with listening("udp", 4) as listener:
        router.insert(GATEWAY, "udp", 5000, to=listener.port)
        frame = Ether(dst="02:00:00:00:00:99", src="02:00:00:00:00:98") / datagram(
            CLIENT, (GATEWAY, 5000)
        )
        yield _from_server(router, frame, "intercept", explained="rule_intercept")


def _chain() -> Packet:
    packet = IPv6(src=SILENT_SERVER[6], dst=OUTSIDE_GATEWAY[6])
    for _ in range(9):
        packet /= IPv6ExtHdrDestOpt()
    return packet / UDP(dport=5000)


def _solicitation() -> Packet:
    target = OUTSIDE_GATEWAY[6]
    return IPv6(src=SILENT_SERVER[6], dst=target, hlim=255) / ICMPv6ND_NS(tgt=target)


def _report() -> Packet:
    return IPv6(src="fe80::77", dst="ff02::1:3", hlim=1) / ICMPv6MLReport(mladdr="ff02::1:3")


_ECHO = ip(CLIENT[0], GATEWAY) / ping(4, "request")
_STRAY = (
    ip(CLIENT[0], GATEWAY)
    / ICMP(type=3, code=3)
    / Raw(bytes(datagram((GATEWAY, 5999), CLIENT))[:28])
)
_ARP = Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=CLIENT[0], pdst="10.8.0.99")
_UNKNOWN = Ether(dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(bytes(46))
_EAPOL = Ether(dst="01:80:c2:00:00:03", type=0x888E) / Raw(bytes(46))
_DHCP = ip(CLIENT[0], GATEWAY) / UDP(sport=67, dport=68)
_ROUTED = IP(src=CLIENT[0], dst=GATEWAY, options=[IPOption_LSRR(routers=["10.1.1.1"])]) / UDP()

CASES: dict[str, Callable[[Router], AbstractContextManager[Wire]]] = {
    "no_rule": lambda r: _plain(r, _syn(), "drop"),
    "loopback": _loopback,
    "arp": lambda r: _plain(r, _ARP, "pass"),
    "non_ip": lambda r: _plain(r, _UNKNOWN, "drop"),
    "non_tuple": lambda r: _plain(r, _UNKNOWN, "pass", "pass_non_tuple"),
    "protocol": lambda r: _plain(r, ip(CLIENT[0], GATEWAY, proto=47) / Raw(bytes(8)), "drop"),
    "malformed": lambda r: _plain(r, ip(CLIENT[0], GATEWAY, ihl=4) / UDP(dport=5000), "drop"),
    "header_chain": lambda r: _plain(r, _chain(), "drop"),
    "ipv6_off": _ipv6_off,
    "fragment_passed": lambda r: _later_fragment(r, "pass", {}),
    "fragment_dropped": lambda r: _later_fragment(r, "drop", None),
    "fragment_orphan": lambda r: _plain(
        r, _fragment(3, more=False, destination=SILENT_CLIENT[4]), "drop"
    ),
    "fragment_intercept": _fragment_intercept,
    "icmp_echo": lambda r: _plain(r, _ECHO, "pass", "icmp_echo"),
    "icmp_echo_off": lambda r: _plain(r, _ECHO, "drop"),
    "icmp_error": _icmp_error,
    "icmp_error_unrelated": lambda r: _plain(r, _STRAY, "drop"),
    "icmp_other": lambda r: _plain(r, ip(CLIENT[0], GATEWAY) / ICMP(type=13), "drop"),
    "neighbour_discovery": lambda r: _plain(r, _solicitation(), "pass"),
    "multicast_listener": lambda r: _plain(r, _report(), "pass"),
    "dhcp": lambda r: _plain(r, _DHCP, "pass"),
    "ssh": lambda r: _plain(r, _syn(22), "pass"),
    "established": _established,
    "rule_deny": lambda r: _ruled(r, "drop", deny=True),
    "rule_pass": lambda r: _ruled(r, "pass"),
    "rule_intercept": _intercepted,
    "no_listener": lambda r: _ruled(r, "drop", to=5999),
    "assign_failed": _assign_failed,
    "rules_changing": _rules_changing,
    "flow": lambda r: _flow(r, "pass", "SA", 7000),
    "flow_invalid": _flow_invalid,
    "vrrp": lambda r: _plain(r, ip(CLIENT[0], GATEWAY, proto=112) / Raw(bytes(8)), "pass", "vrrp"),
    "eapol": lambda r: _plain(r, _EAPOL, "pass", "eapol"),
    "egress": lambda r: _leaving(r, "pass"),
    "egress_no_rule": lambda r: _leaving(r, "drop", "outbound_filter"),
    "listener_not_transparent": _a_users_listener,
    "deliver_intercept": _deliver_intercept,
    "deliver_no_listener": _deliver_no_listener,
    "source_route": lambda r: _plain(r, _ROUTED, "drop"),
    "misrouted": _misrouted,
    "other_host": _other_host,
}
# No program decides so any more.
NEVER = {"not_local"}
# Beside these the router's own kernel sends packets of its own accord.
REPEATED = {"multicast_listener": SOME, "neighbour_discovery": SOME}
