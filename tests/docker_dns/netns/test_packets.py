# SPDX-License-Identifier: GPL-2.0-only
"""Redirected queries packet by packet: checksums, fragments, other traffic, other devices."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rrset
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.docker_dns.support.world import (
    ANY_ANSWER,
    BUILTIN_ANSWER,
    CONTAINER,
    HOST,
    PATIENCE,
    RESOLVER,
    SERVER,
)
from tests.support.command import captured as run_captured
from zfw_py.docker_dns.model import Redirect
from zfw_py.docker_dns.service import DnsRedirect, RedirectOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.docker_dns.support.world import World
    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

SO_NO_CHECK = 11
ETH_P_ALL, ETH_P_IP = 3, 0x0800
SILENCE = 0.2
# To a port that nobody has: whatever was sent before it has arrived.
MARK_PORT = 9


@contextmanager
def captured(
    namespace: Namespace, device: str, file: Path, mark: Callable[[], None]
) -> Iterator[list[str]]:
    """What tcpdump makes of the IP packets of a with block, a line each; complete after it."""
    command = ("tcpdump", "-n", "--immediate-mode", "-U", "-i", device, "-w", str(file), "ip")
    process = namespace.start(*command, stderr=subprocess.PIPE)
    lines: list[str] = []
    try:
        assert process.stderr is not None
        while "listening on" not in (line := process.stderr.readline()):
            assert line, "no tcpdump"
        yield lines
        mark()
        deadline = time.monotonic() + PATIENCE
        while not any(f".{MARK_PORT}: " in line for line in lines):
            assert time.monotonic() < deadline, lines
            # A line that is indented goes on with the packet before it.
            shown = run_captured("tcpdump", "-n", "-vv", "-r", str(file)).stdout
            lines[:] = re.sub(r"\n\s+", " ", shown).splitlines()
        del lines[-1]
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def marker(namespace: Namespace, to: str) -> Callable[[], None]:
    def send() -> None:
        with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sent:
            sent.sendto(b"", (to, MARK_PORT))

    return send


@contextmanager
def captured_at_both_ends(docker: World, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """What the server sees of queries, and the container on lo of answers."""
    with (
        captured(
            docker.server, "eth0", folder / "server.pcap", marker(docker.container, SERVER)
        ) as outside,
        captured(
            docker.container, "lo", folder / "lo.pcap", marker(docker.container, "127.0.0.1")
        ) as inside,
    ):
        yield outside, inside


def offload(namespace: Namespace, device: str, state: str) -> None:
    namespace.run("ethtool", "-K", device, "tx", state)


@contextmanager
def client(docker: World, port: int = 0) -> Iterator[socket.socket]:
    """A socket in the container that asks the resolver."""
    with docker.container.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", port))
        one.settimeout(PATIENCE)
        one.connect((RESOLVER, 53))
        yield one


def query(name: str = "www.example") -> dns.message.QueryMessage:
    return dns.message.make_query(name, "A")


def answer_to(wire: bytes, address: str = ANY_ANSWER, padding: int = 0) -> bytes:
    """With so many bytes more than it needs."""
    asked = dns.message.from_wire(wire)
    made = dns.message.make_response(asked)
    name = asked.question[0].name
    made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
    while len(made.to_wire()) < padding:
        made.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", f'"{os.urandom(90).hex()}"'))
    return made.to_wire()


# Checksums


@pytest.mark.parametrize("state", ["on", "off"])
def test_checksums_are_right_for_an_independent_tool(
    docker: World, tmp_path: Path, state: str
) -> None:
    """Complete ones that were changed ("off"), and those that a device completes later ("on")."""
    for device in ("lo", "eth0"):
        offload(docker.container, device, state)
    # What is left to a device is done here, a hop later.
    offload(docker.network.host, "out0", "off")
    offload(docker.network.host, "veth1", "off")
    docker.redirect()
    with captured_at_both_ends(docker, tmp_path) as (outside, inside):
        assert docker.addresses("www.example") == [ANY_ANSWER]
        assert docker.addresses("www.example", "+tcp") == [ANY_ANSWER]
        assert "x" * 250 in docker.dig("big.example", "TXT", "+bufsize=4096").stdout
    queries = [line for line in outside if f"> {SERVER}.53: " in line]
    answers = [line for line in inside if f" {RESOLVER}." in line and "> 127.0.0.1." in line]
    for lines in (queries, answers):
        assert sum("proto UDP" in line for line in lines) >= 2
        assert sum("proto TCP" in line for line in lines) >= 4
        assert not [line for line in lines if re.search(r"incorrect|bad ", line)]
    assert all(f" {CONTAINER}." in line for line in queries)
    # Of a datagram in fragments the kernel has verified the checksum, and dig has it whole.
    whole = [
        line for line in queries + answers if "flags [+]" not in line and "ip-proto" not in line
    ]
    assert all("(correct)" in line or "[udp sum ok]" in line for line in whole)


def test_a_checksum_that_is_yet_to_be_completed_is_right_so_far(
    docker: World, tmp_path: Path
) -> None:
    """On lo nobody completes an answer's: it has to be the sum of the pseudo-header."""
    offload(docker.network.host, "veth1", "on")
    docker.redirect()
    with captured(
        docker.container, "lo", tmp_path / "lo.pcap", marker(docker.container, "127.0.0.1")
    ) as lines:
        assert docker.addresses("www.example", "+tcp") == [ANY_ANSWER]
    answers = [line for line in lines if f" {RESOLVER}." in line]
    assert len(answers) >= 4
    for line in answers:
        found = re.search(r"cksum 0x([0-9a-f]+) \(incorrect", line)
        length = int(re.search(r"proto TCP \(6\), length (\d+)", line)[1]) - 20  # type: ignore[index]
        assert found, line
        words = socket.inet_aton(RESOLVER) + socket.inet_aton("127.0.0.1") + pack(">HH", 6, length)
        total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, 12, 2))
        assert int(found[1], 16) == (total & 0xFFFF) + (total >> 16)


@contextmanager
def scripted_server(
    docker: World, answer: Callable[[socket.socket, bytes, tuple[str, int]], None]
) -> Iterator[int]:
    """A server of the test's own; its port. ``answer`` has each query, and the socket."""
    with docker.server.entered():
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listening.bind((SERVER, 0))
    stop, stopped = os.pipe()

    def serve() -> None:
        while stop not in (ready := select.select([listening, stop], [], [])[0]):
            if listening in ready:
                answer(listening, *listening.recvfrom(65535))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        os.close(stopped)
        thread.join()
        os.close(stop)
        listening.close()


@pytest.mark.parametrize("state", ["on", "off"])
def test_a_datagram_without_a_checksum_stays_without_one(
    docker: World, tmp_path: Path, state: str
) -> None:
    offload(docker.container, "lo", state)

    def answer(listening: socket.socket, wire: bytes, source: tuple[str, int]) -> None:
        listening.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        listening.sendto(answer_to(wire), source)

    with scripted_server(docker, answer) as port:
        docker.redirect(to=f"{SERVER}:{port}", is_probed=False)
        with captured_at_both_ends(docker, tmp_path) as (outside, inside), client(docker) as one:
            one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
            asked = query()
            one.send(asked.to_wire())
            assert asked.is_response(dns.message.from_wire(one.recv(4096)))
    (sent,) = [line for line in outside if f"> {SERVER}.{port}: " in line]
    (came,) = [line for line in inside if f" {RESOLVER}." in line]
    assert "[no cksum]" in sent
    assert "[no cksum]" in came


# Fragments


def raw_sender(namespace: Namespace) -> socket.socket:
    """Sends IP packets as they are."""
    with namespace.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


@pytest.mark.parametrize(
    ("order", "arrives"),
    [
        (lambda parts: parts, True),
        (lambda parts: [parts[0], *reversed(parts[1:])], True),
        (lambda parts: [*parts, parts[1]], True),
        (lambda parts: [*parts[1:], parts[0]], False),
        (lambda parts: [parts[1], parts[0], *parts[2:]], False),
    ],
    ids=[
        "in order",
        "the first one first",
        "one twice",
        "the first one last",
        "the second one first",
    ],
)
def test_an_answer_in_fragments(
    docker: World, order: Callable[[list[Packet]], list[Packet]], arrives: bool
) -> None:
    """Without the first one nobody knows whose the others are: they are left alone, and counted."""
    answers: list[bytes] = []
    with raw_sender(docker.server) as sender:

        def answer(listening: socket.socket, wire: bytes, source: tuple[str, int]) -> None:
            answers.append(answer_to(wire, padding=3000))
            udp = UDP(sport=listening.getsockname()[1], dport=source[1]) / Raw(answers[-1])
            datagram = IP(src=SERVER, dst=source[0], id=0x4242) / udp
            for part in order(fragment(IP(bytes(datagram)), 800)):
                sender.sendto(bytes(part), source)
            # And what tells that all of them have been there.
            listening.sendto(answer_to(wire), source)

        with scripted_server(docker, answer) as port, client(docker) as one:
            docker.redirect(to=f"{SERVER}:{port}", is_probed=False)
            asked = query()
            one.send(asked.to_wire())
            first = one.recv(65535)
            assert asked.is_response(dns.message.from_wire(first))
            assert (first == answers[0]) is arrives
    assert ("orphan" in docker.outcomes()) is not arrives


# What is not ours

_UNTOUCHED = 0xA000  # the first of the identifications of what is sent here


def numbered(packets: list[Packet]) -> list[bytes]:
    """As bytes, in fragments where they are longer than a frame."""
    made = []
    for number, packet in enumerate(packets):
        packet.id = _UNTOUCHED + number
        whole = IP(bytes(packet))
        made += map(bytes, fragment(whole, 800) if len(whole) > 1500 else [whole])
    return made


def other_packets() -> dict[str, list[bytes]]:
    """By the way they go, IP packets that are near to what is redirected."""
    resolver, loopback = RESOLVER, "127.0.0.1"
    from_server, to_server = {"src": SERVER, "dst": CONTAINER}, {"src": CONTAINER, "dst": SERVER}
    message = query().to_wire()
    return {
        "lo": numbered(
            [
                IP(src=loopback, dst=loopback) / UDP(sport=1111, dport=53) / message,
                IP(src=loopback, dst=resolver) / UDP(sport=1112, dport=54) / message,
                IP(src=loopback, dst=resolver) / UDP(sport=53, dport=1113) / message,
                IP(src=loopback, dst="127.0.0.12") / UDP(sport=1114, dport=53) / message,
                IP(src=resolver, dst=loopback) / UDP(sport=53, dport=1115) / message,
                IP(src=CONTAINER, dst=CONTAINER) / UDP(sport=53, dport=1116) / message,
                IP(src=loopback, dst=resolver) / TCP(sport=1117, dport=80, flags="S"),
                IP(src=loopback, dst=resolver) / ICMP() / message,
            ]
        ),
        "in": numbered(
            [
                IP(**from_server) / UDP(sport=53, dport=2001) / message,
                IP(**from_server) / UDP(sport=53, dport=40000, chksum=0) / message,
                IP(**from_server) / UDP(sport=5353, dport=53) / message,
                IP(src=HOST, dst=CONTAINER) / UDP(sport=53, dport=2002) / message,
                IP(**from_server) / TCP(sport=53, dport=2003, flags="A", seq=7, ack=9) / message,
                IP(**from_server, options=[IPOption_Router_Alert()])
                / UDP(sport=53, dport=2004)
                / message,
                IP(**from_server, tos=4, ttl=9) / UDP(sport=53, dport=2005) / Raw(b"x" * 1400),
                IP(**from_server) / ICMP() / message,
                IP(**from_server) / UDP(sport=53, dport=2006) / Raw(b"y" * 1600),
            ]
        ),
        "out": numbered(
            [
                IP(**to_server) / UDP(sport=2001, dport=53) / message,
                IP(**to_server) / UDP(sport=2001, dport=53, chksum=0) / message,
                IP(**to_server) / TCP(sport=2003, dport=53, flags="S"),
                IP(**to_server, options=[IPOption_Router_Alert()])
                / UDP(sport=2004, dport=53)
                / message,
                IP(**to_server) / ICMP() / message,
            ]
        ),
    }


def delivered(docker: World, packets: dict[str, list[bytes]]) -> list[bytes]:
    """Those packets as they arrive: at sockets in the container, and at the other end of eth0."""
    with ExitStack() as stack:
        with docker.container.entered():
            takers = [
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
                for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP, socket.IPPROTO_ICMP)
            ]
        wire = stack.enter_context(docker.network.host.packet_socket("veth1", ETH_P_ALL))
        inside = stack.enter_context(raw_sender(docker.container))
        for packet in packets["lo"] + packets["out"]:
            inside.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        mac = docker.container.mac("eth0")
        for packet in packets["in"]:
            wire.send(bytes(Ether(dst=mac, src="02:00:00:00:00:01") / IP(packet)))
        found = []
        while ready := select.select([*takers, wire], [], [], SILENCE)[0]:
            for each in ready:
                data, address = each.recvfrom(65535)
                if each is wire:
                    if address[1] != ETH_P_IP or address[2] == socket.PACKET_OUTGOING:
                        continue
                    data = data[14:]
                if 0 <= int.from_bytes(data[4:6], "big") - _UNTOUCHED < 32:
                    found.append(data)
    return sorted(found)


@pytest.mark.parametrize("domains", [(), ("example",)], ids=["all names", "some"])
def test_other_traffic_is_byte_for_byte_as_it_was(docker: World, domains: tuple[str, ...]) -> None:
    docker.container.sysctl(1, "ipv4/icmp_echo_ignore_all")
    packets = other_packets()
    before = delivered(docker, packets)
    # Each one, but what was sent in three parts and is one by now.
    assert len(before) == sum(map(len, packets.values())) - 2
    docker.redirect(*domains)
    assert docker.addresses("www.example") == [ANY_ANSWER]
    assert delivered(docker, packets) == before


def test_an_answer_to_another_host_is_not_taken(docker: World) -> None:
    """Frames for others are seen where a bridge floods; lo would take their packets for its own."""
    queries: list[tuple[bytes, tuple[str, int]]] = []
    asked_once = threading.Event()

    def take(listening: socket.socket, wire: bytes, source: tuple[str, int]) -> None:
        queries.append((wire, source))
        asked_once.set()

    with scripted_server(docker, take) as port, client(docker) as one:
        docker.redirect(to=f"{SERVER}:{port}", is_probed=False)
        one.send(query().to_wire())
        assert asked_once.wait(PATIENCE)
        ((wire, source),) = queries
        answer = IP(src=SERVER, dst=CONTAINER) / UDP(sport=port, dport=source[1]) / answer_to(wire)
        mac = docker.container.mac("eth0")
        tagged = pack(">HH", 0x8100, 7)
        with docker.network.host.packet_socket("veth1") as tap:
            for other in ("02:00:00:00:00:99", "ff:ff:ff:ff:ff:ff"):
                tap.send(bytes(Ether(dst=other) / answer))
            frame = bytes(Ether(dst=mac) / answer)
            tap.send(frame[:12] + tagged + frame[12:])
            assert select.select([one], [], [], SILENCE)[0] == []
            tap.send(frame)
        assert one.recv(4096) == answer_to(wire)
    assert docker.outcomes() == {"query": 1, "answer": 1}


def test_answers_of_nobody_s_are_left_alone(docker: World) -> None:
    """From the server, but from another port or to one that is no query's: not delivered."""
    sources: list[tuple[str, int]] = []

    def answer(listening: socket.socket, wire: bytes, source: tuple[str, int]) -> None:
        sources.append(source)
        with docker.server.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(answer_to(wire, "203.0.113.1"), source)
        listening.sendto(answer_to(wire, "203.0.113.2"), (source[0], source[1] ^ 1))
        listening.sendto(answer_to(wire), source)

    with scripted_server(docker, answer) as port, client(docker) as one:
        docker.redirect(to=f"{SERVER}:{port}", is_probed=False)
        one.send(query().to_wire())
        assert ANY_ANSWER in dns.message.from_wire(one.recv(4096)).to_text()
        assert select.select([one], [], [], SILENCE)[0] == []
    assert len(sources) == 1
    assert docker.outcomes() == {"query": 1, "answer": 1}


# Uplinks


def test_segments_fit_the_uplink(docker: World) -> None:
    """lo offers 65,495 bytes, and what is too long for the uplink would be lost on the bridge."""
    for namespace, device in (
        (docker.container, "eth0"),
        (docker.network.host, "veth1"),
        (docker.network.host, "out0"),
        (docker.server, "eth0"),
    ):
        namespace.run("ethtool", "-K", device, "tso", "off", "gso", "off")
    docker.container.run("ip", "link", "set", "eth0", "mtu", "1300")
    docker.redirect()
    with docker.container.entered(), socket.create_connection((RESOLVER, 53), PATIENCE) as one:
        size = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert size <= 1260
        asked = dns.message.make_query("huge.example", "TXT")
        asked.use_edns(payload=65535, pad=2000)
        wire = asked.to_wire()
        assert len(wire) > 1500
        one.sendall(len(wire).to_bytes(2, "big") + wire)
        with one.makefile("rb") as stream:
            length = int.from_bytes(stream.read(2), "big")
            answer = dns.message.from_wire(stream.read(length))
    assert asked.is_response(answer)
    assert len(answer.answer[0][0].strings) == 60


def test_a_query_that_is_too_long_for_the_uplink_is_the_built_in_resolver_s(docker: World) -> None:
    docker.redirect()
    asked = query()
    asked.use_edns(payload=65535, pad=1600)
    with client(docker) as one:
        one.send(asked.to_wire())
        assert BUILTIN_ANSWER in dns.message.from_wire(one.recv(4096)).to_text()
    assert docker.outcomes() == {"builtin_uplink": 1}


def test_an_uplink_that_goes(docker: World) -> None:
    docker.redirect()
    assert docker.addresses("www.example") == [ANY_ANSWER]
    docker.network.host.run("ip", "link", "delete", "veth1")
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]
    (status,) = DnsRedirect.all()
    assert status.problem == "eth0 is gone, or the program on it"
    # Of no use to anybody: another takes its place.
    docker.network.add_uplink()
    docker.redirect()
    assert docker.addresses("www.example") == [ANY_ANSWER]


def test_an_uplink_without_ethernet(docker: World) -> None:
    """The test is at the other end of a tun device, where packets begin with the IP header."""
    device = docker.container.open_tun("tun0")
    try:
        docker.container.set_up("tun0", "10.99.0.2/24")
        asked = Redirect.parse("10.99.0.1:5300", interface="tun0")
        DnsRedirect(docker.network.path).create(asked, RedirectOptions(is_probed=False))
        with client(docker) as one:
            message = query()
            one.send(message.to_wire())
            packet = read_query(device)
            assert (packet[IP].src, packet[IP].dst, packet[UDP].dport) == (
                "10.99.0.2",
                "10.99.0.1",
                5300,
            )
            assert bytes(packet[UDP].payload) == message.to_wire()
            checksums = packet[IP].chksum, packet[UDP].chksum
            del packet[IP].chksum, packet[UDP].chksum
            again = IP(bytes(packet))
            assert (again[IP].chksum, again[UDP].chksum) == checksums
            back = IP(src="10.99.0.1", dst="10.99.0.2") / UDP(sport=5300, dport=packet[UDP].sport)
            os.write(device, bytes(back / answer_to(message.to_wire())))
            assert message.is_response(dns.message.from_wire(one.recv(4096)))
    finally:
        os.close(device)
    assert docker.outcomes() == {"query": 1, "answer": 1}


def read_query(device: int) -> Any:
    while True:
        assert select.select([device], [], [], PATIENCE)[0], "no query"
        packet = IP(os.read(device, 2048))
        if packet.version == 4 and UDP in packet:
            return packet
