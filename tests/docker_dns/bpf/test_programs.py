# SPDX-License-Identifier: GPL-2.0-only
"""docker_dns's two programs, packet by packet, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDPerror
from scapy.layers.inet import UDP as UdpHeader
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.docker_dns.support.container import container, opened
from tests.docker_dns.support.packets import Build, Style, fragments, whole
from tests.docker_dns.support.programs import (
    CHECKSUM_COMPLETE,
    DROP,
    LEAVE,
    REDIRECT,
    RESOLVER,
    SERVER,
    SOURCE,
    Answer,
    AnswerKey,
    Event,
    Fragment,
    FragmentKey,
    Programs,
    Query,
    QueryKey,
    Settings,
    coarse_now,
)
from tests.docker_dns.support.reference import SECOND, TCP, UDP, Ends, LocalSocket
from tests.support.kernels import skip_lacking
from zfw_py.docker_dns import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

LOCALHOST, ELSEWHERE = IPv4Address("127.0.0.1"), IPv4Address("192.0.2.9")
OTHER_SERVER = IPv4Address("10.9.0.3")
DAEMON = {UDP: 41552, TCP: 41553}
CLIENT_PORT, PORT = 40000, 20000
UPLINK = Settings().uplink_ifindex
# One port: what a packet becomes can be written down.
ONE_PORT = Settings(first_port=PORT, port_count=1)

ETHERNET = "000000000000 000000000000 0800"
QUESTION = "1234 0100 0001 0000 0000 0000 03777777076578616d706c6500 0001 0001"
ANSWER = (
    "1234 8180 0001 0001 0000 0000 03777777076578616d706c6500 0001 0001"
    "03777777076578616d706c6500 0001 0001 0000003c 0004 c0000201"
)
MESSAGE = bytes.fromhex(QUESTION)


@pytest.fixture
def programs(loaded: Programs) -> Programs:
    """The caller is in the container; there is no flow."""
    loaded.clear()
    loaded.configure(Settings())
    loaded.set_daemon(DAEMON[UDP], DAEMON[TCP])
    loaded.set_domains(set())
    return loaded


def _ends(protocol: int) -> Ends:
    """Of a query."""
    return Ends(LOCALHOST, RESOLVER, CLIENT_PORT, DAEMON[protocol])


def _key(protocol: int) -> QueryKey:
    return QueryKey(LOCALHOST, RESOLVER, CLIENT_PORT, DAEMON[protocol], protocol)


def _write_flow(programs: Programs, key: QueryKey, age: int = 0) -> AnswerKey:
    """A flow at the port PORT; how it is known outside."""
    then = coarse_now() - age * SECOND
    outside = AnswerKey(SERVER, 53, PORT, key.protocol)
    programs.write_query(key, Query(then, SERVER, 53, PORT))
    programs.write_answer(outside, Answer(then, key))
    return outside


def _plain_query(source: IPv4Address) -> bytes:
    """A query from this address; scapy takes too long for thousands."""
    udp = struct.pack("!HHHH", CLIENT_PORT, DAEMON[UDP], 8 + len(MESSAGE), 0) + MESSAGE
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, UDP, 0)
    return bytes(12) + b"\x08\0" + ip + source.packed + RESOLVER.packed + udp


def _source_port(frame: bytes) -> int:
    place = 14 + (frame[14] & 15) * 4
    return int.from_bytes(frame[place : place + 2], "big")


# --- golden packets --------------------------------------------------------------------------


class Golden(NamedTuple):
    """IP header, transport header and payload, before and after."""

    program: str
    before: tuple[str, str]
    after: tuple[str, str]
    payload: str


GOLDEN = {
    "udp query": Golden(
        "query",
        ("450000391c464000401120627f0000017f00000b", "9c40a2500025d946"),
        ("450000391c46400040110a5a0a0900020a090001", "4e2000350025b37a"),
        QUESTION,
    ),
    "router alert, ttl 1": Golden(
        "query",
        ("46b8003d00010000011125e77f0000017f00000b94040000", "9c40a2500025d946"),
        ("46b8003d0001000001110fdf0a0900020a09000194040000", "4e2000350025b37a"),
        QUESTION,
    ),
    "no udp checksum": Golden(
        "query",
        ("450000390001000040117ca77f0000017f00000b", "9c40a25000250000"),
        ("45000039000100004011669f0a0900020a090001", "4e20003500250000"),
        QUESTION,
    ),
    "udp checksum becomes 0, which is ffff": Golden(
        "query",
        ("4500001e0001000040117cc27f0000017f00000b", "9c40a250000a25cc"),
        ("4500001e00010000401166ba0a0900020a090001", "4e200035000affff"),
        "9d70",
    ),
    "udp checksum was 0, which is ffff": Golden(
        "query",
        ("4500001e0001000040117cc27f0000017f00000b", "9c40a250000affff"),
        ("4500001e00010000401166ba0a0900020a090001", "4e200035000ada33"),
        "c33c",
    ),
    "syn": Golden(
        "query",
        (
            "4500002c0001000040067cbf7f0000017f00000b",
            "9c40a251 11223344 00000000 6002 2000 fcfd 0000 0204ffd7",
        ),
        (
            "4500002c00010000400666b70a0900020a090001",
            # 1,460, which fits into the uplink's 1,500, and not lo's 65,495.
            "4e200035 11223344 00000000 6002 2000 d156 0000 020405b4",
        ),
        "",
    ),
    "udp answer": Golden(
        "answer",
        ("450000549a0100003f11cd830a0900010a090002", "00354e200040e5aa"),
        ("450000549a0100003f11e38b7f00000b7f000001", "a2509c4000400b77"),
        ANSWER,
    ),
    "syn-ack": Golden(
        "answer",
        (
            "4500002800014000400626bb0a0900010a090002",
            "00354e20 55667788 11223345 5012 2000 1c13 0000",
        ),
        (
            "450000280001400040063cc37f00000b7f000001",
            "a2519c40 55667788 11223345 5012 2000 41de 0000",
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_packets(programs: Programs, name: str) -> None:
    golden = GOLDEN[name]
    programs.configure(ONE_PORT)
    if golden.program == "answer":
        for protocol in (UDP, TCP):
            _write_flow(programs, _key(protocol))
    before, after = (
        bytes.fromhex(ETHERNET + "".join(packet) + golden.payload)
        for packet in (golden.before, golden.after)
    )
    assert programs.run(golden.program, before) == (REDIRECT, after)
    assert programs.outcomes() == {golden.program: 1}


def test_an_answer_undoes_what_became_of_the_query(programs: Programs) -> None:
    for protocol in (UDP, TCP):
        ends = _ends(protocol)
        verdict, out = programs.run("query", whole(protocol, MESSAGE)(ends))
        assert verdict == REDIRECT
        port = _source_port(out)
        back = whole(protocol, b"answer")(Ends(SERVER, SOURCE, 53, port))
        expected = whole(protocol, b"answer")(
            Ends(RESOLVER, LOCALHOST, DAEMON[protocol], CLIENT_PORT)
        )
        assert programs.run("answer", back) == (REDIRECT, expected)


@pytest.mark.parametrize("checksum", [None, 0], ids=["summed", "unsummed"])
def test_what_a_device_summed_up_is_still_right(programs: Programs, checksum: int | None) -> None:
    if not programs.supports_checksum_complete():
        skip_lacking("test run with CHECKSUM_COMPLETE", 6, 10)
    # The kernel compares the sum with the packet itself, and fails the run (EBADMSG).
    style = Style({}, {"flags": "S"}, is_unsummed=checksum == 0)
    query = whole(UDP, MESSAGE, style)(_ends(UDP))
    verdict, out = programs.run("query", query, CHECKSUM_COMPLETE)
    assert verdict == REDIRECT
    back = whole(UDP, MESSAGE, style)(Ends(SERVER, SOURCE, 53, _source_port(out)))
    assert programs.run("answer", back, CHECKSUM_COMPLETE)[0] == REDIRECT


# --- what is left alone ----------------------------------------------------------------------


def _frame(*layers: object) -> bytes:
    frame = Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00")
    for layer in layers:
        frame /= layer
    return bytes(frame)


def _other_queries() -> Iterator[tuple[str, bytes]]:
    ends = _ends(UDP)
    query = whole(UDP, MESSAGE)(ends)
    yield "another address", whole(UDP, MESSAGE)(ends._replace(destination=LOCALHOST))
    yield "another port", whole(UDP, MESSAGE)(ends._replace(destination_port=41554))
    yield "the port for TCP", whole(UDP, MESSAGE)(_ends(TCP))
    yield "the port for UDP", whole(TCP, MESSAGE)(_ends(UDP))
    yield "port 0", whole(UDP, MESSAGE)(ends._replace(destination_port=0))
    ip = IP(src="127.0.0.1", dst=str(RESOLVER))
    udp = UdpHeader(sport=CLIENT_PORT, dport=DAEMON[UDP]) / MESSAGE
    yield "icmp", _frame(ip, ICMP())
    yield "what icmp quotes", _frame(ip, ICMP(type=3, code=3), ip, UDPerror(bytes(udp)))
    yield "udp-lite", _frame(IP(src=ip.src, dst=ip.dst, proto=136), bytes(udp))
    yield "ip in ip", _frame(IP(src=ip.src, dst=ip.dst, proto=4), ip, udp)
    yield "ipv6", _frame(IPv6(src="::1", dst="::1"), udp)
    yield "mapped ipv6", _frame(IPv6(src="::ffff:127.0.0.1", dst=f"::ffff:{RESOLVER}"), udp)
    yield "arp", _frame(ARP(psrc="127.0.0.1", pdst=str(RESOLVER)))
    yield "vlan", _frame(Dot1Q(vlan=5), ip, udp)
    yield "vlan that looks like ipv4", _frame(Dot1Q(prio=2, vlan=0x600), ip, udp)
    yield "ip header alone", query[:34]
    yield "half a udp header", query[:38]
    yield "a byte short", query[:-1]
    yield "longer than it is", query[:16] + b"\0\x3a" + query[18:]
    yield "shorter than its header", query[:16] + b"\0\x13" + query[18:]
    yield "no room for udp", query[:16] + b"\0\x1b" + query[18:]
    yield "header of 16 bytes", query[:14] + b"\x44" + query[15:]
    yield "ipv5", query[:14] + b"\x55" + query[15:]
    yield "half a tcp header", whole(TCP, b"")(_ends(TCP))[:-1]
    for number, piece in enumerate(fragments(UDP, MESSAGE, ends, [1, 2])):
        yield f"fragment {number}", piece(ends)


@pytest.mark.parametrize("frame", [pytest.param(f, id=n) for n, f in _other_queries()])
def test_what_is_no_query_is_left_alone(programs: Programs, frame: bytes) -> None:
    assert programs.run("query", frame) == (LEAVE, frame)
    assert programs.outcomes() == {}
    assert not programs.queries()
    assert not programs.answers()


def _other_answers() -> Iterator[tuple[str, bytes]]:
    ends = Ends(SERVER, SOURCE, 53, PORT)
    answer = whole(UDP, MESSAGE)(ends)
    yield "another server", whole(UDP, MESSAGE)(ends._replace(source=OTHER_SERVER))
    yield "another port of the server", whole(UDP, MESSAGE)(ends._replace(source_port=54))
    yield "for another address", whole(UDP, MESSAGE)(ends._replace(destination=OTHER_SERVER))
    yield "for another port", whole(UDP, MESSAGE)(ends._replace(destination_port=PORT + 1))
    yield "tcp", whole(TCP, MESSAGE)(ends)
    ip = IP(src=str(SERVER), dst=str(SOURCE))
    udp = UdpHeader(sport=53, dport=PORT) / MESSAGE
    yield "icmp", _frame(ip, ICMP(type=3, code=3), IP(src=ip.dst, dst=ip.src), udp)
    yield "ipv6", _frame(IPv6(src=f"::ffff:{SERVER}", dst=f"::ffff:{SOURCE}"), udp)
    yield "arp", _frame(ARP(psrc=str(SERVER), pdst=str(SOURCE)))
    yield "vlan", _frame(Dot1Q(vlan=5), ip, udp)
    yield "a byte short", answer[:-1]
    yield "another host's", b"\2\0\0\0\0\5" + answer[6:]
    yield "broadcast", b"\xff" * 6 + answer[6:]
    yield "multicast", b"\1\0\x5e\0\0\1" + answer[6:]


@pytest.mark.parametrize("frame", [pytest.param(f, id=n) for n, f in _other_answers()])
def test_what_is_no_answer_is_left_alone(programs: Programs, frame: bytes) -> None:
    _write_flow(programs, _key(UDP))
    assert programs.run("answer", frame) == (LEAVE, frame)
    assert programs.outcomes() == {}


def test_padding_of_the_frame_stays(programs: Programs) -> None:
    programs.configure(ONE_PORT)
    padded = Style({}, {}, padding=bytes(range(18)))
    query = whole(UDP, b"x", padded)
    expected = query(Ends(SOURCE, SERVER, PORT, 53))
    assert programs.run("query", query(_ends(UDP))) == (REDIRECT, expected)


@pytest.mark.usefixtures("_private_bpffs")
def test_nothing_happens_before_it_is_set() -> None:
    with container(), Programs() as fresh:
        query = whole(UDP, MESSAGE)(_ends(UDP))
        assert fresh.run("query", query) == (LEAVE, query)


# --- flows -----------------------------------------------------------------------------------


def test_the_same_port_on_other_addresses_is_another_flow(programs: Programs) -> None:
    sources = (LOCALHOST, IPv4Address("127.0.0.2"), SOURCE, RESOLVER)
    ports = {}
    for source in sources:
        ends = _ends(UDP)._replace(source=source)
        verdict, out = programs.run("query", whole(UDP, MESSAGE)(ends))
        assert verdict == REDIRECT
        ports[source] = _source_port(out)
    assert len(set(ports.values())) == len(sources)
    for source, port in ports.items():
        back = whole(UDP, b"answer")(Ends(SERVER, SOURCE, 53, port))
        expected = whole(UDP, b"answer")(Ends(RESOLVER, source, DAEMON[UDP], CLIENT_PORT))
        assert programs.run("answer", back) == (REDIRECT, expected)


def test_a_flow_keeps_its_port(programs: Programs) -> None:
    query = whole(UDP, MESSAGE)(_ends(UDP))
    first = programs.run("query", query)
    assert all(programs.run("query", query) == first for _ in range(20))
    assert len(programs.answers()) == 1


@pytest.mark.parametrize(("protocol", "limit"), [(UDP, layout.UDP_IDLE), (TCP, layout.TCP_IDLE)])
def test_an_idle_flow_is_over(programs: Programs, protocol: int, limit: int) -> None:
    answer = whole(protocol, b"answer")(Ends(SERVER, SOURCE, 53, PORT))
    query = whole(protocol, MESSAGE)(_ends(protocol))
    programs.configure(Settings(first_port=PORT + 1, port_count=100))
    # Far enough from the limit for a slow machine.
    _write_flow(programs, _key(protocol), age=limit - 20)
    assert programs.run("answer", answer)[0] == REDIRECT
    assert _source_port(programs.run("query", query)[1]) == PORT
    _write_flow(programs, _key(protocol), age=limit + 1)
    assert programs.run("answer", answer) == (LEAVE, answer)
    assert _source_port(programs.run("query", query)[1]) > PORT


def test_an_answer_keeps_a_flow(programs: Programs) -> None:
    _write_flow(programs, _key(UDP), age=20)
    before = coarse_now()
    programs.run("answer", whole(UDP, b"answer")(Ends(SERVER, SOURCE, 53, PORT)))
    (answer,) = programs.answers().values()
    assert answer.last >= before


def test_the_clock_of_another_cpu_may_be_ahead(programs: Programs) -> None:
    # The coarse clock ticks between one CPU's look at it and another's.
    _write_flow(programs, _key(UDP), age=-1)
    _write_flow(programs, _key(TCP), age=-1)
    segment = whole(TCP, b"more", Style({}, {"flags": "A"}))(_ends(TCP))
    assert _source_port(programs.run("query", segment)[1]) == PORT
    answer = whole(UDP, b"answer")(Ends(SERVER, SOURCE, 53, PORT))
    assert programs.run("answer", answer)[0] == REDIRECT


def test_halves_of_a_flow_are_none(programs: Programs) -> None:
    query = whole(UDP, MESSAGE)(_ends(UDP))
    outside = _write_flow(programs, _key(UDP))
    programs.delete_answer(outside)
    port = _source_port(programs.run("query", query)[1])
    assert programs.answers().keys() == {outside._replace(port=port)}


@pytest.mark.parametrize(
    "other",
    [
        {"source": IPv4Address("127.0.0.2")},
        {"destination": LOCALHOST},
        {"source_port": CLIENT_PORT + 1},
        {"destination_port": 53},
        {"protocol": TCP},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_port_that_is_anothers_by_now_is_no_flow(
    programs: Programs, other: dict[str, object]
) -> None:
    outside = _write_flow(programs, _key(UDP))
    owner = _key(UDP)._replace(**other)
    programs.write_answer(outside, Answer(coarse_now(), owner))
    assert _source_port(programs.run("query", whole(UDP, MESSAGE)(_ends(UDP)))[1]) != PORT
    assert programs.answers()[outside].query == owner


def test_another_server_is_another_flow(programs: Programs) -> None:
    query = whole(UDP, MESSAGE)(_ends(UDP))
    port = _source_port(programs.run("query", query)[1])
    programs.configure(Settings(server=OTHER_SERVER))
    verdict, out = programs.run("query", query)
    assert verdict == REDIRECT
    assert AnswerKey(OTHER_SERVER, 53, _source_port(out), UDP) in programs.answers()
    assert AnswerKey(SERVER, 53, port, UDP) in programs.answers()


def test_more_flows_than_the_tables_hold(programs: Programs) -> None:
    programs.configure(Settings(first_port=1024, port_count=60000))
    ports = {}
    for number in range(layout.FLOWS * 3):
        source = IPv4Address(f"127.1.{number >> 8}.{number & 255}")
        verdict, out = programs.run("query", _plain_query(source))
        # One port of four is taken: none of sixteen at random is free once in a billion times.
        assert verdict == REDIRECT
        ports[source] = _source_port(out)
    assert len(programs.answers()) <= layout.FLOWS
    # What is left is right, and the latest are there.
    owner = {answer.query.source: key.port for key, answer in programs.answers().items()}
    assert all(ports[source] == port for source, port in owner.items())
    assert set(list(ports)[-1000:]) <= owner.keys()


@pytest.mark.parametrize("protocol", [UDP, TCP], ids=["udp", "tcp"])
def test_what_the_uplink_does_not_carry_is_left(programs: Programs, protocol: int) -> None:
    headers = 20 + (8 if protocol == UDP else 20)
    fits, does_not = (
        whole(protocol, bytes(size - headers))(_ends(protocol)) for size in (1500, 1501)
    )
    assert programs.run("query", fits)[0] == REDIRECT
    assert programs.run("query", does_not) == (LEAVE, does_not)
    programs.configure(Settings(uplink_ifindex=99))
    assert programs.run("query", fits) == (LEAVE, fits)
    assert programs.outcomes() == {"query": 1, "builtin_uplink": 2}
    assert [event.outcome for event in programs.events()] == ["query", *["builtin_uplink"] * 2]


# --- ports -----------------------------------------------------------------------------------

CONNECTED = (SERVER, 53)


@pytest.mark.parametrize(
    "taker",
    [
        LocalSocket(UDP, None, PORT),
        LocalSocket(UDP, SOURCE, PORT),
        LocalSocket(UDP, SOURCE, PORT, CONNECTED),
        LocalSocket(TCP, None, PORT),
        LocalSocket(TCP, SOURCE, PORT),
        LocalSocket(TCP, SOURCE, PORT, CONNECTED),
    ],
    ids=str,
)
def test_a_port_of_a_socket_is_not_taken(programs: Programs, taker: LocalSocket) -> None:
    programs.configure(ONE_PORT)
    query = whole(taker.protocol, MESSAGE)(_ends(taker.protocol))
    with ExitStack() as sockets:
        if taker.peer and taker.protocol == TCP:
            sockets.enter_context(opened(LocalSocket(TCP, SERVER, 53)))
        sockets.enter_context(opened(taker))
        assert programs.run("query", query) == (DROP, query)
        assert programs.outcomes() == {"no_port": 1}
        assert not programs.queries()
        # The port of the other protocol is another.
        other = TCP if taker.protocol == UDP else UDP
        assert programs.run("query", whole(other, MESSAGE)(_ends(other)))[0] == REDIRECT


def test_a_port_of_a_socket_for_both_families_is_not_taken(programs: Programs) -> None:
    programs.configure(ONE_PORT)
    query = whole(UDP, MESSAGE)(_ends(UDP))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as both:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", PORT))
        assert programs.run("query", query) == (DROP, query)


@pytest.mark.parametrize(
    "bystander",
    [LocalSocket(UDP, LOCALHOST, PORT), LocalSocket(UDP, SOURCE, PORT, (OTHER_SERVER, 53))],
    ids=str,
)
def test_a_socket_that_no_answer_reaches_is_in_nobodys_way(
    programs: Programs, bystander: LocalSocket
) -> None:
    programs.configure(ONE_PORT)
    with opened(bystander):
        assert programs.run("query", whole(UDP, MESSAGE)(_ends(UDP)))[0] == REDIRECT


def test_ports_are_each_taken_once_until_there_are_none(programs: Programs) -> None:
    count = layout.PORT_ATTEMPTS
    programs.configure(Settings(first_port=65536 - count, port_count=count))
    ports = []
    for number in range(count):
        query = _plain_query(IPv4Address(f"127.0.1.{number}"))
        # It tries some at random, so that the last may take more than one query.
        while (run := programs.run("query", query))[0] != REDIRECT:
            assert run == (DROP, query)
        ports.append(_source_port(run[1]))
    assert sorted(ports) == list(range(65536 - count, 65536))
    late = _plain_query(IPv4Address("127.0.2.1"))
    assert programs.run("query", late) == (DROP, late)


def test_ports_of_idle_flows_are_taken_again(programs: Programs) -> None:
    programs.configure(ONE_PORT)
    outside = _write_flow(programs, _key(UDP), age=layout.UDP_IDLE + 1)
    late = _ends(UDP)._replace(source_port=CLIENT_PORT + 1)
    assert programs.run("query", whole(UDP, MESSAGE)(late))[0] == REDIRECT
    assert programs.answers()[outside].query.source_port == CLIENT_PORT + 1


def test_no_ports_at_all(programs: Programs) -> None:
    programs.configure(Settings(port_count=0))
    query = whole(UDP, MESSAGE)(_ends(UDP))
    assert programs.run("query", query) == (DROP, query)


# --- the daemon ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [UDP, TCP], ids=["udp", "tcp"])
def test_the_daemon_is_followed_to_another_port(programs: Programs, protocol: int) -> None:
    moved = whole(protocol, MESSAGE)(_ends(protocol)._replace(destination_port=45000))
    with opened(LocalSocket(protocol, None, 45000)):
        assert programs.run("query", moved) == (LEAVE, moved), "on all addresses: somebody else"
    with opened(LocalSocket(protocol, RESOLVER, 45000)):
        with opened(LocalSocket(protocol, RESOLVER, DAEMON[protocol])):
            assert programs.run("query", moved) == (LEAVE, moved), "it is where it was"
        assert programs.run("query", moved)[0] == REDIRECT
        ports = {**DAEMON, protocol: 45000}
        assert programs.daemon() == (ports[UDP], ports[TCP])
        before = whole(protocol, MESSAGE)(_ends(protocol))
        assert programs.run("query", before) == (LEAVE, before)


def test_a_daemon_that_is_not_known_is_found(programs: Programs) -> None:
    programs.set_daemon(0, 0)
    query = whole(UDP, MESSAGE)(_ends(UDP))
    for port in (DAEMON[UDP], 0):
        query = whole(UDP, MESSAGE)(_ends(UDP)._replace(destination_port=port))
        assert programs.run("query", query) == (LEAVE, query)
    with opened(LocalSocket(UDP, RESOLVER, DAEMON[UDP])):
        query = whole(UDP, MESSAGE)(_ends(UDP))
        assert programs.run("query", query)[0] == REDIRECT
    assert programs.daemon() == (DAEMON[UDP], 0)


def test_the_resolvers_own_port_is_always_its(programs: Programs) -> None:
    programs.set_daemon(0, 0)
    direct = whole(UDP, MESSAGE)(_ends(UDP)._replace(destination_port=53))
    assert programs.run("query", direct)[0] == REDIRECT


# --- TCP -------------------------------------------------------------------------------------


def _segment(flags: str, payload: bytes = b"") -> bytes:
    return whole(TCP, payload, Style({}, {"flags": flags}))(_ends(TCP))


def test_tcp_is_left_to_the_builtin_resolver_if_it_says_so(programs: Programs) -> None:
    programs.configure(Settings(redirects_tcp=False))
    assert programs.run("query", _segment("S")) == (LEAVE, _segment("S"))
    assert programs.outcomes() == {"builtin_tcp": 1}


@pytest.mark.parametrize("flags", ["A", "PA", "SA", "R", "FA", ""])
def test_a_connection_that_is_older_stays_with_the_builtin_resolver(
    programs: Programs, flags: str
) -> None:
    segment = _segment(flags, b"data")
    assert programs.run("query", segment) == (LEAVE, segment)
    assert programs.outcomes() == {"builtin_tcp": 1}


def test_a_connection_stays_where_it_began(programs: Programs) -> None:
    port = _source_port(programs.run("query", _segment("S"))[1])
    programs.configure(Settings(redirects_tcp=False))
    for flags in ("A", "PA", "FA", "R"):
        verdict, out = programs.run("query", _segment(flags, b"data"))
        assert (verdict, _source_port(out)) == (REDIRECT, port)
    # It is told once.
    assert [event.outcome for event in programs.events()] == ["query"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([("MSS", 65495), ("SAckOK", b"")], [("MSS", 1460), ("SAckOK", b"")]),
        ([("MSS", 1461)], [("MSS", 1460)]),
        ([("MSS", 1460)], [("MSS", 1460)]),
        ([("MSS", 0)], [("MSS", 0)]),
        ([], []),
        ([("NOP", None), ("MSS", 65495)], [("NOP", None), ("MSS", 65495)]),
    ],
    ids=str,
)
def test_segments_are_to_fit_into_the_uplink(
    programs: Programs, options: list[object], expected: list[object]
) -> None:
    programs.configure(ONE_PORT)

    def opening(flags: str, options: list[object]) -> Build:
        return whole(TCP, b"", Style({}, {"flags": flags, "options": options}))

    query, outside = _ends(TCP), Ends(SOURCE, SERVER, PORT, 53)
    assert programs.run("query", opening("S", options)(query)) == (
        REDIRECT,
        opening("S", expected)(outside),
    )
    # What the server offers, as it comes in by the uplink.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as uplink:
        uplink.bind(("eth0", 0))
        mac = uplink.getsockname()[4]
    syn_ack = opening("SA", options)(Ends(SERVER, SOURCE, 53, PORT))
    handed_back = opening("SA", expected)(Ends(RESOLVER, LOCALHOST, DAEMON[TCP], CLIENT_PORT))
    verdict, after = programs.run("answer", mac + syn_ack[6:], ifindex=UPLINK)
    assert (verdict, after) == (REDIRECT, mac + handed_back[6:])


def test_options_that_are_not_there_stay_as_they_are(programs: Programs) -> None:
    programs.configure(ONE_PORT)
    padded = Style({}, {"flags": "S", "dataofs": 6}, padding=b"\2\4\xff\xd7")
    syn = whole(TCP, b"", padded)
    expected = syn(Ends(SOURCE, SERVER, PORT, 53))
    assert programs.run("query", syn(_ends(TCP))) == (REDIRECT, expected)


# --- fragments -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_unsummed", [False, True], ids=["summed", "unsummed"])
@pytest.mark.parametrize("protocol", [UDP, TCP], ids=["udp", "tcp"])
def test_fragments_of_an_answer_follow_its_first(
    programs: Programs, protocol: int, is_unsummed: bool
) -> None:
    _write_flow(programs, _key(protocol))
    ends = Ends(SERVER, SOURCE, 53, PORT)
    back = Ends(RESOLVER, LOCALHOST, DAEMON[protocol], CLIENT_PORT)
    style = Style({"id": 7}, {"flags": "PA"}, is_unsummed=is_unsummed)
    pieces = fragments(protocol, bytes(range(256)) * 8, ends, [40, 100, 220], style)
    for piece in (pieces[2], pieces[1]):
        assert programs.run("answer", piece(ends)) == (LEAVE, piece(ends)), "not known yet"
    assert programs.outcomes() == {"orphan": 2}
    for piece in (pieces[0], pieces[3], pieces[1], pieces[2], pieces[1]):
        assert programs.run("answer", piece(ends)) == (REDIRECT, piece(back))
    assert programs.outcomes() == {"orphan": 2, "answer": 5}


def test_a_fragment_that_is_all_of_it_is_whole(programs: Programs) -> None:
    _write_flow(programs, _key(UDP))
    ends = Ends(SERVER, SOURCE, 53, PORT)
    back = Ends(RESOLVER, LOCALHOST, DAEMON[UDP], CLIENT_PORT)
    (piece,) = fragments(UDP, MESSAGE, ends, [], Style({"id": 7}, {}))
    assert programs.run("answer", piece(ends)) == (REDIRECT, piece(back))
    assert not programs.fragments()


def test_fragments_are_told_apart(programs: Programs) -> None:
    _write_flow(programs, _key(UDP))
    ends = Ends(SERVER, SOURCE, 53, PORT)
    first, later = fragments(UDP, bytes(100), ends, [3], Style({"id": 7}, {}))
    assert programs.run("answer", first(ends))[0] == REDIRECT
    assert programs.fragments().keys() == {FragmentKey(SERVER, 7, UDP)}
    for style, sender in (({"id": 8}, ends), ({"id": 7}, ends._replace(source=OTHER_SERVER))):
        other = fragments(UDP, bytes(100), sender, [3], Style(style, {}))[1](sender)
        assert programs.run("answer", other) == (LEAVE, other)
    other = fragments(TCP, bytes(100), ends, [3], Style({"id": 7}, {}))[1](ends)
    assert programs.run("answer", other) == (LEAVE, other)
    assert programs.run("answer", later(ends))[0] == REDIRECT


def test_another_datagram_by_the_same_number_is_left_alone(programs: Programs) -> None:
    _write_flow(programs, _key(UDP))
    ends = Ends(SERVER, SOURCE, 53, PORT)
    ours = fragments(UDP, bytes(100), ends, [3], Style({"id": 7}, {}))
    assert programs.run("answer", ours[0](ends))[0] == REDIRECT
    assert programs.run("answer", ours[1](ends))[0] == REDIRECT
    # What the server sends somebody else in the container, 65,536 packets later.
    ends = Ends(SERVER, SOURCE, 2049, 700)
    for piece in fragments(UDP, bytes(100), ends, [3], Style({"id": 7}, {})):
        assert programs.run("answer", piece(ends)) == (LEAVE, piece(ends))


@pytest.mark.parametrize(("age", "verdict"), [(10, REDIRECT), (-1, REDIRECT), (31, LEAVE)])
def test_a_first_fragment_is_remembered_for_a_while(
    programs: Programs, age: int, verdict: int
) -> None:
    then = coarse_now() - age * SECOND
    programs.write_fragment(FragmentKey(SERVER, 7, UDP), Fragment(then, RESOLVER, LOCALHOST))
    ends = Ends(SERVER, SOURCE, 53, PORT)
    later = fragments(UDP, bytes(100), ends, [3], Style({"id": 7}, {}))[1]
    assert programs.run("answer", later(ends))[0] == verdict


# --- what is told ----------------------------------------------------------------------------


def test_events(programs: Programs) -> None:
    programs.configure(Settings(has_domains=True))
    programs.set_domains({"example"})
    for name in ("www.example", "www.other", "WwW.eXample"):
        message = bytes(DNS(id=0x1234, qd=DNSQR(qname=name)))
        programs.run("query", whole(UDP, message)(_ends(UDP)))
    programs.run("query", whole(UDP, b"no message")(_ends(UDP)))
    (outside,) = programs.answers()
    known = (_key(UDP), SERVER, 53)
    assert programs.events() == [
        Event(*known, "query", outside.port, 0x1234, b"\3www\7example"),
        Event(*known, "builtin_name", 0, 0x1234, b"\3www\5other"),
        Event(*known, "query", outside.port, 0x1234, b"\3WwW\7eXample"),
        Event(*known, "builtin_unreadable", 0, 0, None),
    ]
    assert programs.outcomes() == {"query": 2, "builtin_name": 1, "builtin_unreadable": 1}


def test_a_name_may_be_the_root(programs: Programs) -> None:
    programs.run("query", whole(UDP, bytes(DNS(qd=DNSQR(qname="."))))(_ends(UDP)))
    (event,) = programs.events()
    assert event.name == b""


def test_nobody_is_told_who_does_not_listen(programs: Programs) -> None:
    programs.configure(Settings(is_watched=False))
    assert programs.run("query", whole(UDP, MESSAGE)(_ends(UDP)))[0] == REDIRECT
    assert programs.events() == []
    assert programs.lost() == 0


def test_events_that_find_no_room_are_counted(programs: Programs) -> None:
    query = whole(UDP, MESSAGE)(_ends(UDP))
    sent = 2 * layout.EVENT_BYTES // layout.EVENT_SIZE
    for _ in range(sent):
        assert programs.run("query", query)[0] == REDIRECT
    kept = len(programs.events())
    assert 0 < kept < sent
    assert programs.lost() == sent - kept
