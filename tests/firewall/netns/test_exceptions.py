# SPDX-License-Identifier: GPL-2.0-only
"""What passes without a rule, and that no exception is wider than its purpose."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    CLIENT,
    FAMILIES,
    GATEWAY,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    SOME,
    Gateway,
    datagram,
    families,
    ip,
    is_silent,
    listening,
    syn,
    transparent_socket,
)
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel


# A router on the way, that reports what it could not forward.
ROUTER = {4: "198.51.100.1", 6: "2001:db8::1"}


def link_local(gateway: Gateway) -> str:
    """The gateway's own link-local address."""
    for entry in gateway.gateway.run(
        "ip", "-6", "-o", "address", "show", "dev", "gw0"
    ).stdout.split():
        if entry.startswith("fe80::"):
            return entry.partition("/")[0]
    raise AssertionError("no link-local address")


@contextmanager
def additional_addresses(gateway: Gateway, interface: str, *addresses: str) -> Iterator[None]:
    """The gateway has these too; the firewall is told by nobody."""

    def edit(verb: str) -> None:
        lines = "".join(f"address {verb} {address} dev {interface}\n" for address in addresses)
        gateway.gateway.run("ip", "-batch", "-", input=lines)

    edit("add")
    try:
        yield
    finally:
        edit("del")


# SSH


@families
def test_ssh_to_an_own_address_passes(gateway: Gateway, family: int) -> None:
    with listening("tcp", family, 22, GATEWAY[family]) as sshd, gateway.counts(ssh=SOME):
        gateway.talks(sshd, GATEWAY[family], 22)


@families
def test_ssh_can_be_turned_off(gateway: Gateway, family: int) -> None:
    gateway.firewall.set(["gw0"], "ssh", False)
    with listening("tcp", family, 22, GATEWAY[family]) as sshd:
        gateway.is_dropped("tcp", GATEWAY[family], 22, "no_rule")
        gateway.firewall.set(["gw0"], "ssh", True)
        gateway.talks(sshd, GATEWAY[family], 22)


@families
def test_ssh_to_any_other_address_needs_a_rule(gateway: Gateway, family: int) -> None:
    gateway.is_dropped("tcp", SERVICE[family], 22, "no_rule")
    with listening("tcp", family) as listener:
        gateway.insert(SERVICE[family], "tcp", 22, to=listener.port)
        gateway.talks(listener, SERVICE[family], 22)


@families
@pytest.mark.parametrize(("protocol", "port"), [("udp", 22), ("tcp", 23), ("tcp", 21)])
def test_ssh_is_tcp_port_22_alone(gateway: Gateway, protocol: str, port: int, family: int) -> None:
    gateway.is_dropped(protocol, GATEWAY[family], port, "no_rule")


def test_ssh_to_an_address_of_another_interface_is_no_exception(gateway: Gateway) -> None:
    with additional_addresses(gateway, "lo", "10.99.0.1/32", "fd99::1/128"):
        gateway.firewall.refresh()
        gateway.is_dropped("tcp", "10.99.0.1", 22, "no_rule")
        gateway.is_dropped("tcp", "fd99::1", 22, "no_rule")


@pytest.mark.parametrize("address", ["10.9.1.77", "fd10::77"])
def test_a_new_address_is_known_after_a_refresh(gateway: Gateway, address: str) -> None:
    family = frames.family_of(address)
    length = {4: 32, 6: 128}[family]
    with additional_addresses(gateway, "gw0", f"{address}/{length}"):
        gateway.is_dropped("tcp", address, 22, "no_rule")
        gateway.firewall.refresh()
        with listening("tcp", family, 22, address) as sshd, gateway.counts(ssh=SOME):
            gateway.talks(sshd, address, 22)
    gateway.firewall.refresh()
    gateway.is_dropped("tcp", address, 22, "no_rule")


def test_any_number_of_addresses_is_known(gateway: Gateway) -> None:
    many = [f"10.9.1.{number}/32" for number in range(1, 21)]
    with additional_addresses(gateway, "gw0", *many):
        gateway.firewall.refresh()
        for address in many:
            with gateway.counts(ssh=1):
                gateway.send(syn(address.partition("/")[0], 22))
    gateway.firewall.refresh()


@families
def test_an_interface_without_addresses_opens_nothing(gateway: Gateway, family: int) -> None:
    """Not known to have an address is not the same as having them all."""
    restore = {4: ("10.9.0.1/24",), 6: ("fd09::1/64", link_local(gateway) + "/64")}[family]
    gateway.gateway.run("ip", f"-{family}", "address", "flush", "dev", "gw0")
    try:
        gateway.firewall.refresh()
        with gateway.counts(no_rule=2):
            gateway.send(syn(GATEWAY[family], 22), syn(SERVICE[family], 22))
    finally:
        for address in restore:
            gateway.gateway.run("ip", f"-{family}", "address", "add", address, "dev", "gw0")
        gateway.firewall.refresh()


def test_an_ipv4_address_in_an_ipv6_packet_is_no_own_address(gateway: Gateway) -> None:
    with gateway.counts(no_rule=1):
        gateway.send(syn(f"::ffff:{GATEWAY[4]}", 22))


# DHCP


class Offer(NamedTuple):
    """A server's answer, or what looks like one: destination, ports, and what is counted."""

    destination: str
    source_port: int
    destination_port: int
    reason: str

    def packet(self) -> Packet:
        family = frames.family_of(self.destination)
        source = {4: "10.9.0.254", 6: "fe80::254"}[family]
        ports = UDP(sport=self.source_port, dport=self.destination_port)
        broadcast = "ff:ff:ff:ff:ff:ff" if self.destination == "255.255.255.255" else None
        packet = ip(self.destination, source) / ports / b"offer"
        return Ether(dst=broadcast, src="02:00:00:00:00:fe") / packet if broadcast else packet


@pytest.mark.parametrize("destination", [GATEWAY[4], "255.255.255.255", "link-local"])
def test_a_dhcp_answer_arrives(gateway: Gateway, destination: str) -> None:
    if destination == "link-local":
        offer = Offer(link_local(gateway), 547, 546, "dhcp")
    else:
        offer = Offer(destination, 67, 68, "dhcp")
    any_address = {4: "0.0.0.0", 6: "::"}[frames.family_of(offer.destination)]
    with transparent_socket((any_address, offer.destination_port)) as client:
        with gateway.counts(dhcp=1):
            gateway.send(offer.packet())
        assert client.recv(100) == b"offer"


@pytest.mark.parametrize(
    "offer",
    [
        # Neither the interface's own address nor everybody's.
        Offer(SERVICE[4], 67, 68, "no_rule"),
        Offer("10.9.0.255", 67, 68, "no_rule"),
        Offer("10.9.0.3", 67, 68, "no_rule"),
        Offer("127.0.0.1", 67, 68, "no_rule"),
        Offer("224.0.0.1", 67, 68, "no_rule"),
        Offer(GATEWAY[6], 547, 546, "no_rule"),
        Offer(SERVICE[6], 547, 546, "no_rule"),
        Offer("fec0::1", 547, 546, "no_rule"),
        # Ports that are none, or the wrong way round, or the other family's.
        Offer(GATEWAY[4], 68, 67, "no_rule"),
        Offer(GATEWAY[4], 67, 69, "no_rule"),
        Offer(GATEWAY[4], 66, 68, "no_rule"),
        Offer(GATEWAY[4], 547, 546, "no_rule"),
        Offer("fe80::1", 546, 547, "no_rule"),
        Offer("fe80::1", 67, 68, "no_rule"),
    ],
)
def test_nothing_like_a_dhcp_answer_passes(gateway: Gateway, offer: Offer) -> None:
    with gateway.counts(**{offer.reason: 1}):
        gateway.send(offer.packet())


@families
def test_dhcp_is_udp(gateway: Gateway, family: int) -> None:
    source, destination = {4: (67, 68), 6: (547, 546)}[family]
    address = {4: GATEWAY[4], 6: link_local(gateway)}[family]
    with gateway.counts(no_rule=1):
        gateway.send(ip(address) / TCP(sport=source, dport=destination))


def test_dhcpv6_needs_ipv6_on(gateway: Gateway) -> None:
    gateway.firewall.set(["gw0"], "ipv6", False)
    with gateway.counts(ipv6_off=1):
        gateway.send(Offer(link_local(gateway), 547, 546, "ipv6_off").packet())


# ARP and neighbour discovery


def test_arp_is_answered(gateway: Gateway) -> None:
    request = Ether(src=gateway.client_mac, dst="ff:ff:ff:ff:ff:ff") / ARP(
        hwsrc=gateway.client_mac, psrc=CLIENT[4], pdst=GATEWAY[4]
    )
    with gateway.capture() as heard, gateway.counts(arp=1):
        gateway.send(request)
        answer = heard(ARP)
    assert (answer.psrc, answer.hwsrc) == (GATEWAY[4], gateway.mac)


def solicitation(gateway: Gateway) -> Packet:
    link_layer = ICMPv6NDOptSrcLLAddr(lladdr=gateway.client_mac)
    return ip(GATEWAY[6], hlim=255) / ICMPv6ND_NS(tgt=GATEWAY[6]) / link_layer


def test_a_neighbour_is_answered(gateway: Gateway) -> None:
    with gateway.capture() as heard, gateway.counts(neighbour_discovery=1):
        gateway.send(solicitation(gateway))
        assert heard(ICMPv6ND_NA).tgt == GATEWAY[6]


def test_neighbours_find_each_other(gateway: Gateway) -> None:
    """Nobody knows anybody: what a real stack needs to send its first packet."""
    for namespace, name in ((gateway.client, "eth0"), (gateway.gateway, "gw0")):
        namespace.run("ip", "neighbour", "flush", "dev", name, "nud", "permanent")
    try:
        for family in FAMILIES:
            with listening("tcp", family) as listener:
                gateway.insert(SERVICE[family], "tcp", 80, to=listener.port)
                gateway.talks(listener, SERVICE[family], 80)
    finally:
        gateway.introduce()


NEIGHBOUR_MESSAGES = {
    "router solicitation": ICMPv6ND_RS(),
    "router advertisement": ICMPv6ND_RA(),
    "neighbour solicitation": ICMPv6ND_NS(tgt=GATEWAY[6]),
    "neighbour advertisement": ICMPv6ND_NA(tgt=CLIENT[6]),
}
neighbour_messages = pytest.mark.parametrize(
    "message", NEIGHBOUR_MESSAGES.values(), ids=list(NEIGHBOUR_MESSAGES)
)


@neighbour_messages
def test_neighbour_discovery_passes(gateway: Gateway, message: Packet) -> None:
    with gateway.counts(neighbour_discovery=1):
        gateway.send(ip(GATEWAY[6], hlim=255) / message)


@neighbour_messages
@pytest.mark.parametrize("hop_limit", [254, 64, 1, 0])
def test_neighbour_discovery_from_off_the_link_drops(
    gateway: Gateway, message: Packet, hop_limit: int
) -> None:
    """Whoever is a router away cannot have sent 255 (RFC 4861, section 6.1)."""
    with gateway.counts(icmp_other=1):
        gateway.send(ip(GATEWAY[6], hlim=hop_limit) / message)


@neighbour_messages
def test_neighbour_discovery_has_no_codes(gateway: Gateway, message: Packet) -> None:
    message = message.copy()
    message.code = 1
    with gateway.counts(icmp_other=1):
        gateway.send(ip(GATEWAY[6], hlim=255) / message)


def test_a_redirect_drops(gateway: Gateway) -> None:
    with gateway.counts(icmp_other=2):
        gateway.send(ip(GATEWAY[4]) / ICMP(type=5, gw="10.9.0.66") / Raw(bytes(28)))
        gateway.send(ip(GATEWAY[6], hlim=255) / ICMPv6Unknown(type=137, msgbody=bytes(36)))


# About a group that nobody is in: nobody answers.
MULTICAST_MESSAGES = {
    "query": ICMPv6MLQuery(mladdr="ff02::fb"),
    "report": ICMPv6MLReport(mladdr="ff02::fb"),
    "done": ICMPv6MLDone(mladdr="ff02::fb"),
    "report, version 2": ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(dst="ff02::fb")]),
}


@pytest.mark.parametrize("message", MULTICAST_MESSAGES.values(), ids=list(MULTICAST_MESSAGES))
def test_multicast_listeners_are_heard_on_the_link(gateway: Gateway, message: Packet) -> None:
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])

    def packet(hop_limit: int) -> Packet:
        return ip("ff02::1", "fe80::2", hlim=hop_limit) / alert / message

    # Told apart from what the client's own kernel sends by asking.
    answer = gateway.firewall.explain(bytes(gateway.framed(packet(1))), "gw0")
    assert (answer.verdict, answer.reason) == ("pass", "multicast_listener")
    with gateway.counts(multicast_listener=SOME):
        gateway.send(packet(1))
    with gateway.counts(icmp_other=2):
        gateway.send(packet(2), packet(255))


# IPv6 on and off


def everything_ipv6(gateway: Gateway) -> list[Packet]:
    return [
        solicitation(gateway),
        ip(GATEWAY[6], hlim=255) / ICMPv6ND_RA(),
        ip(GATEWAY[6]) / ICMPv6EchoRequest(),
        ip(GATEWAY[6], ROUTER[6]) / ICMPv6PacketTooBig(mtu=1280),
        ip("ff02::1", "fe80::2", hlim=1) / ICMPv6MLQuery(),
        syn(GATEWAY[6], 22),
        syn(SERVICE[6], 80),
        datagram(SERVICE[6], 80),
        ip(SERVICE[6]) / IPv6ExtHdrFragment(offset=1, id=1, nh=17) / Raw(bytes(8)),
        ip(GATEWAY[6], nh=89) / Raw(bytes(8)),
    ]


def test_ipv6_drops_as_a_whole_where_it_is_off(gateway: Gateway) -> None:
    gateway.insert("::/0", "tcp", 0, 65535)
    gateway.insert("::/0", "udp", 0, 65535)
    for setting, on in (("ipv6", False), ("icmp_echo", True), ("pass_non_tuple", True)):
        gateway.firewall.set(["gw0"], setting, on)
    packets = everything_ipv6(gateway)
    with gateway.counts(ipv6_off=len(packets)):
        gateway.send(*packets)


def test_ipv6_is_off_until_it_is_turned_on(gateway: Gateway) -> None:
    with second_interface(gateway):
        gateway.firewall.attach("gw1", "ingress")
        settings = {each.name: each.settings for each in gateway.firewall.status().interfaces}
        assert settings["gw1"]["ipv6"] is False


@contextmanager
def second_interface(gateway: Gateway) -> Iterator[None]:
    """Another one on the gateway, with nobody at its other end."""
    gateway.gateway.add_veth("gw1", "nobody")
    try:
        yield
    finally:
        gateway.gateway.run("ip", "link", "del", "gw1")


# Echo


def echo(family: int, kind: str) -> Packet:
    if family == 4:
        return ip(GATEWAY[4]) / ICMP(type=f"echo-{kind}", id=7, seq=1) / b"ping"
    return ip(GATEWAY[6]) / {"request": ICMPv6EchoRequest, "reply": ICMPv6EchoReply}[kind](
        id=7, seq=1, data=b"ping"
    )


@families
def test_a_ping_is_answered_where_echo_is_on(gateway: Gateway, family: int) -> None:
    gateway.firewall.set(["gw0"], "icmp_echo", True)
    with gateway.capture() as heard, gateway.counts(icmp_echo=1):
        gateway.send(echo(family, "request"))
        answer = heard({4: ICMP, 6: ICMPv6EchoReply}[family])
        assert answer.id == 7
    with gateway.counts(icmp_echo=1):
        gateway.send(echo(family, "reply"))


@families
@pytest.mark.parametrize("kind", ["request", "reply"])
def test_a_ping_drops_in_silence_otherwise(gateway: Gateway, kind: str, family: int) -> None:
    protocol = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}[family]
    with gateway.client.entered():
        client = socket.socket(SOCKET_FAMILY[family], socket.SOCK_RAW, protocol)
    with client:
        with gateway.counts(icmp_echo_off=1):
            gateway.send(echo(family, kind))
        assert is_silent(client)


# Errors


ERRORS: dict[int, dict[str, Packet]] = {
    4: {
        "host unreachable": ICMP(type=3, code=1),
        "port unreachable": ICMP(type=3, code=3),
        "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1200),
        "time exceeded": ICMP(type=11, code=0),
        "reassembly time exceeded": ICMP(type=11, code=1),
        "parameter problem": ICMP(type=12, code=0),
    },
    6: {
        "no route": ICMPv6DestUnreach(code=0),
        "port unreachable": ICMPv6DestUnreach(code=4),
        "packet too big": ICMPv6PacketTooBig(mtu=1300),
        "time exceeded": ICMPv6TimeExceeded(code=0),
        "reassembly time exceeded": ICMPv6TimeExceeded(code=1),
        "parameter problem": ICMPv6ParamProblem(code=0),
    },
}
errors = pytest.mark.parametrize(
    ("family", "error"),
    [
        pytest.param(family, error, id=f"{family}-{name}")
        for family in FAMILIES
        for name, error in ERRORS[family].items()
    ],
)


def sent(family: int, transport: Packet, *, source: str = "") -> Packet:
    """A packet that we sent to the client, as a router has it."""
    return ip(CLIENT[family], source or SERVICE[family]) / transport / Raw(bytes(64))


def quoting(error: Packet, quoted: Packet | bytes) -> Packet:
    """The error of a router on the way about that packet."""
    family = 4 if isinstance(error, ICMP) else 6
    return ip(SERVICE[family], ROUTER[family]) / error.copy() / Raw(bytes(quoted)[:500])


@contextmanager
def flow(gateway: Gateway, protocol: str, family: int) -> Iterator[tuple[socket.socket, Packet]]:
    """An intercepted flow: our end of it, and the transport header of what we send in it."""
    with (
        listening(protocol, family) as listener,
        gateway.client_socket(protocol, family) as client,
    ):
        gateway.insert(SERVICE[family], protocol, 443, to=listener.port)
        client.connect((SERVICE[family], 443))
        client.send(b"question")
        if protocol == "tcp":
            connection = listener.accept()
        else:
            address = listener.receive()[1]
            connection = transparent_socket((SERVICE[family], 443))
            connection.connect(address)
        with connection:
            layer = {"tcp": TCP, "udp": UDP}[protocol]
            yield connection, layer(sport=443, dport=client.getsockname()[1])


@errors
@pytest.mark.parametrize("protocol", frames.PROTOCOLS)
def test_an_error_about_an_intercepted_flow_passes(
    gateway: Gateway, protocol: str, family: int, error: Packet
) -> None:
    with flow(gateway, protocol, family) as (_, transport), gateway.counts(icmp_error=1):
        gateway.send(quoting(error, sent(family, transport)))


@errors
@pytest.mark.parametrize("protocol", frames.PROTOCOLS)
def test_an_error_about_no_flow_of_ours_drops(
    gateway: Gateway, protocol: str, family: int, error: Packet
) -> None:
    with flow(gateway, protocol, family) as (_, transport):
        wrong = []
        for field, port in (("sport", 444), ("dport", 9)):
            other = transport.copy()
            other.setfieldval(field, port)
            wrong.append(sent(family, other))
        wrong.append(sent(family, transport, source=GATEWAY[family]))
        # The client's own packet: what we receive is not what we sent.
        back = type(transport)(sport=transport.dport, dport=transport.sport)
        wrong.append(ip(SERVICE[family]) / back / Raw(bytes(64)))
        with gateway.counts(icmp_error_unrelated=len(wrong)):
            gateway.send(*(quoting(error, packet) for packet in wrong))


@errors
def test_a_quote_that_names_no_flow_drops(gateway: Gateway, family: int, error: Packet) -> None:
    with flow(gateway, "udp", family) as (_, transport):
        whole = bytes(sent(family, transport))
        header = {4: 20, 6: 40}[family]
        if family == 4:
            later = bytes(ip(CLIENT[4], SERVICE[4], frag=1) / transport)
        else:
            fragment = IPv6ExtHdrFragment(offset=1, id=1)
            later = bytes(ip(CLIENT[6], SERVICE[6]) / fragment / transport)
        quotes = [
            whole[: header + 7],  # of the payload less than the eight bytes of RFC 792
            whole[: header - 1],
            b"",
            bytes((whole[0] ^ 0xF0,)) + whole[1:],
            later,
        ]
        with gateway.counts(icmp_error_unrelated=len(quotes)):
            gateway.send(*(quoting(error, quote) for quote in quotes))


@families
@pytest.mark.parametrize("protocol", frames.PROTOCOLS)
def test_a_listener_has_no_flow(gateway: Gateway, protocol: str, family: int) -> None:
    """Nobody who guesses a TCP service's port can tell it about errors."""
    layer = {"tcp": TCP, "udp": UDP}[protocol]
    quoted = sent(family, layer(sport=7000, dport=9), source=SERVICE[family])
    # An unconnected UDP socket may have sent anything to anybody.
    reason = {"tcp": "icmp_error_unrelated", "udp": "icmp_error"}[protocol]
    with listening(protocol, family, 7000, SERVICE[family]), gateway.counts(**{reason: 1}):
        gateway.send(quoting(ERRORS[family]["port unreachable"], quoted))


@families
@pytest.mark.parametrize("protocol", frames.PROTOCOLS)
def test_path_mtu_discovery_works_on_an_intercepted_flow(
    gateway: Gateway, protocol: str, family: int
) -> None:
    error, mtu = {
        4: (ERRORS[4]["fragmentation needed"], 1200),
        6: (ERRORS[6]["packet too big"], 1300),
    }[family]
    option = {4: (socket.SOL_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}[family]  # IP_MTU, IPV6_MTU
    layer = {"tcp": TCP, "udp": UDP}[protocol]
    gateway.gateway.run("ip", f"-{family}", "route", "flush", "cache")  # of earlier errors
    with flow(gateway, protocol, family) as (connection, _), gateway.capture() as heard:
        assert connection.getsockopt(*option) == 1500
        connection.send(bytes(1000))
        transport = heard(layer)
        while bytes(transport.payload) != bytes(1000):
            transport = heard(layer)
        if protocol == "tcp":
            # An error is believed about what is on its way (RFC 5927): about the next one.
            transport.seq += 1000
        quoted = sent(family, transport)
        if family == 4:
            quoted.flags = "DF"
        with gateway.counts(icmp_error=1):
            gateway.send(quoting(error, quoted))
        assert wait_until(lambda: connection.getsockopt(*option) == mtu, PATIENCE)


@families
@pytest.mark.parametrize("protocol", frames.PROTOCOLS)
def test_an_error_about_what_the_gateway_sent_itself_arrives(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """A port that is closed, at somebody the gateway asks, is a refusal and not a time-out."""
    client = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    client.settimeout(PATIENCE)

    def ask() -> None:
        client.connect((CLIENT[family], 9))
        client.send(b"anybody?")
        client.recv(1)

    expected = {"tcp": {"established": 1}, "udp": {"icmp_error": 1}}[protocol]
    with client, gateway.counts(**expected), pytest.raises(ConnectionRefusedError):
        ask()


@families
@pytest.mark.parametrize("kind", [9, 10, 13, 15, 17, 30, 139, 141, 151, 200])
def test_other_messages_drop(gateway: Gateway, kind: int, family: int) -> None:
    message = ICMP(type=kind) if family == 4 else ICMPv6Unknown(type=kind, msgbody=bytes(4))
    with gateway.counts(icmp_other=1):
        gateway.send(ip(GATEWAY[family], **({} if family == 4 else {"hlim": 255})) / message)


@families
@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_a_message_shorter_than_its_header_is_malformed(
    gateway: Gateway, length: int, family: int
) -> None:
    gateway.firewall.set(["gw0"], "icmp_echo", True)
    field, kind = {4: ({"proto": 1}, 8), 6: ({"nh": 58}, 128)}[family]
    with gateway.counts(malformed=1):
        gateway.send(ip(GATEWAY[family], **field) / Raw((bytes((kind,)) + bytes(7))[:length]))


def test_a_quote_with_extension_headers_is_understood(gateway: Gateway) -> None:
    """What we sent with options comes back with them."""
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    with flow(gateway, "udp", 6) as (_, transport), gateway.counts(icmp_error=2):
        error = ERRORS[6]["packet too big"]
        gateway.send(quoting(error, sent(6, options / transport)))
        gateway.send(quoting(error, sent(6, options / IPv6ExtHdrFragment(m=1) / transport)))


@families
def test_the_other_familys_icmp_is_an_unknown_protocol(gateway: Gateway, family: int) -> None:
    other = {4: {"proto": 58}, 6: {"nh": 1}}[family]
    with gateway.counts(protocol=1):
        gateway.send(ip(GATEWAY[family], **other) / Raw(bytes(8)))
