# SPDX-License-Identifier: GPL-2.0-only
"""Both families side by side: the same message has the same reason, whatever carries it."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.packet import Raw

from tests.firewall.support.frames import SOME
from tests.firewall.support.routed import (
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_SERVER,
    Router,
    datagram,
    ping,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

pytestmark = pytest.mark.kernel

V4 = {"src": SERVER[4], "dst": OUTSIDE_GATEWAY[4]}
V6 = {"src": SERVER[6], "dst": OUTSIDE_GATEWAY[6]}
OUT4 = {"src": OUTSIDE_GATEWAY[4], "dst": SERVER[4]}
OUT6 = {"src": OUTSIDE_GATEWAY[6], "dst": SERVER[6]}
AH, VRRP = 51, 112
PASSED = UDP(sport=4000, dport=PORT) / Raw(b"data")
UNKNOWN = UDP(sport=4000, dport=PORT + 1) / Raw(b"data")
ADVERTISEMENT = b"\x31\x01\x64\x01" + bytes(20)


def igmp(kind: int, group: str = "224.0.0.251", ttl: int = 1, *, alert: bool = True) -> Packet:
    """An IGMP message, from the address of the direction."""
    options = [IPOption_Router_Alert()] if alert else []
    return IP(dst=group, ttl=ttl, proto=2, options=options) / Raw(pack("!BBHI", kind, 0, 0, 0))


def mld(message: Packet, group: str = "ff02::fb", hops: int = 1, *, alert: bool = True) -> Packet:
    """An MLD message."""
    options = IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()], nh=58)
    head = IPv6(src="fe80::1", dst=group, hlim=hops)
    return head / options / message if alert else head / message


def ah4(protocol: int, payload: Packet | bytes, **fields: object) -> Packet:
    """The payload after an authentication header (RFC 4302), with an ICV of 12 bytes."""
    header = pack("!BBHII", protocol, 4, 0, 7, 1) + bytes(12)
    return IP(**(V4 | fields), proto=AH) / Raw(header + bytes(payload))  # type: ignore[arg-type]


def ah6(protocol: int, payload: Packet | bytes, **fields: object) -> Packet:
    header = pack("!BBHII", protocol, 4, 0, 7, 1) + bytes(12)
    return IPv6(**(V6 | fields), nh=AH) / Raw(header + bytes(payload))  # type: ignore[arg-type]


class Row(NamedTuple):
    """A message in both families, by direction: its reasons with the outbound filter on."""

    ipv4: Packet
    ipv6: Packet
    ingress: str | None = None
    egress: str | None = None
    setting: str = ""


ROWS = {
    "membership query": Row(igmp(0x11, "224.0.0.1"), mld(ICMPv6MLQuery()), "multicast_listener"),
    "query of a group": Row(igmp(0x11), mld(ICMPv6MLQuery()), "multicast_listener"),
    "report": Row(*(igmp(0x16), mld(ICMPv6MLReport())), "multicast_listener", "multicast_listener"),
    "report, first version": Row(
        *(igmp(0x12), mld(ICMPv6MLReport())), "multicast_listener", "multicast_listener"
    ),
    "report, last version": Row(
        igmp(0x22, "224.0.0.22"),
        mld(Raw(b"\x8f\0\0\0\0\0\0\0"), "ff02::16"),
        "multicast_listener",
        "multicast_listener",
    ),
    "leave": Row(
        igmp(0x17, "224.0.0.2"),
        mld(Raw(b"\x84\0\0\0\0\0\0\0" + bytes(16)), "ff02::2"),
        "multicast_listener",
        "multicast_listener",
    ),
    "report without router alert": Row(
        igmp(0x16, alert=False),
        mld(ICMPv6MLReport(), alert=False),
        "multicast_listener",
        "multicast_listener",
    ),
    "AH, then a datagram with a rule": Row(ah4(17, PASSED), ah6(17, PASSED), "rule_pass"),
    "AH, then a datagram without": Row(ah4(17, UNKNOWN), ah6(17, UNKNOWN), "no_rule"),
    "AH, then VRRP": Row(
        ah4(VRRP, ADVERTISEMENT), ah6(VRRP, ADVERTISEMENT), "vrrp", "vrrp", "vrrp"
    ),
    "AH, then VRRP, off": Row(
        ah4(VRRP, ADVERTISEMENT), ah6(VRRP, ADVERTISEMENT), "protocol", "protocol"
    ),
    "AH, then ping": Row(
        ah4(1, ping(4, "request")),
        ah6(58, ping(6, "request")),
        "icmp_echo",
        "icmp_echo",
        "icmp_echo",
    ),
    "AH, cut off": Row(
        IP(**V4, proto=AH) / Raw(b"\x11\x04\0\0"),
        IPv6(**V6, nh=AH) / Raw(b"\x11\x04\0\0"),
        "malformed",
    ),
    "AH, longer than the packet": Row(
        IP(**V4, proto=AH) / Raw(b"\x11\xff" + bytes(30)),
        IPv6(**V6, nh=AH) / Raw(b"\x11\xff" + bytes(30)),
        "malformed",
    ),
    "options that say nothing": Row(
        IP(**V4, options=[IPOption_NOP()] * 4) / PASSED,
        IPv6(**V6) / IPv6ExtHdrDestOpt(options=[PadN()]) / PASSED,
        "rule_pass",
    ),
    "source route": Row(
        IP(**V4, options=[IPOption_LSRR(routers=[SILENT_SERVER[4]])]) / PASSED,
        IPv6(**V6) / IPv6ExtHdrRouting(type=0, segleft=1, addresses=[SILENT_SERVER[6]]) / PASSED,
        "source_route",
        "source_route",
    ),
    "first fragment": Row(
        IP(**V4, flags="MF", id=9) / PASSED,
        IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=9, nh=17) / PASSED,
        "rule_pass",
    ),
    "first fragment without its ports": Row(
        IP(**V4, flags="MF", id=9, proto=17) / Raw(b"1234"),
        IPv6(**V6) / IPv6ExtHdrFragment(m=1, id=9, nh=17) / Raw(b"1234"),
        "malformed",
    ),
    "an error about nothing": Row(
        IP(**V4) / ICMP(type=3, code=3) / Raw(bytes(datagram((OUT4["src"], 9), (OUT4["dst"], 9)))),
        IPv6(**V6) / ICMPv6DestUnreach() / Raw(bytes(datagram((OUT6["src"], 9), (OUT6["dst"], 9)))),
        "icmp_error_unrelated",
        "icmp_error",
    ),
    "another protocol": Row(
        IP(**V4, proto=89) / Raw(bytes(24)),
        IPv6(**V6, nh=89) / Raw(bytes(24)),
        "protocol",
        "protocol",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_both_families_have_one_reason(router: Router, name: str) -> None:
    row = ROWS[name]
    router.set("outbound_filter", True, router.outside)
    if row.setting:
        router.set(row.setting, True, router.outside)
    for address in (OUTSIDE_GATEWAY[4], OUTSIDE_GATEWAY[6]):
        router.insert(address, "udp", PORT)
    for direction in ("ingress", "egress"):
        wanted = getattr(row, direction)
        if wanted is None:
            continue
        for packet in (row.ipv4, row.ipv6):
            frame = router.framed(router.server, packet)
            answer = router.firewall.explain(frame, router.outside, direction)
            assert answer.reason == wanted, f"{direction} {packet.summary()}"


def test_an_igmp_message_stays_on_the_link(router: Router) -> None:
    """TTL 1, to a group, and of a kind that hosts or routers send about groups."""
    for packet in (
        igmp(0x16, ttl=2),
        igmp(0x16, OUTSIDE_GATEWAY[4]),
        igmp(0x13),
        IP(dst="224.0.0.1", ttl=1, proto=2) / Raw(b"\x11\0\0\0"),
    ):
        frame = router.framed(router.server, packet)
        assert router.firewall.explain(frame, router.outside).reason == "protocol"


def test_igmp_leaves_and_enters(router: Router) -> None:
    """A receiver behind a switch with snooping keeps its stream."""
    router.set("outbound_filter", True, router.outside)
    group = "239.1.2.3"
    with router.capture(router.server) as heard:
        joined = router.gateway.run(
            "ip", "address", "add", f"{group}/32", "dev", router.outside, "autojoin", check=False
        )
        try:
            assert joined.returncode == 0, joined.stderr
            assert any(heard.next(IP).proto == 2 for _ in range(5))
        finally:
            router.gateway.run("ip", "address", "del", f"{group}/32", "dev", router.outside)
    with router.counts(multicast_listener=SOME):
        router.send(router.server, igmp(0x11, "224.0.0.1"))
