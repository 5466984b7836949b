# SPDX-License-Identifier: GPL-2.0-only
"""What the firewall would do with each packet of a capture.

Each packet is asked for itself, with the flows and sockets of now: a packet of the capture makes
no flow for those behind it. Only fragments depend on each other here as on the wire.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall import programs, reasons
from zfw_py.firewall.capture import Captured, frame_of
from zfw_py.firewall.explain import Programs
from zfw_py.firewall.interfaces import Interfaces, index_of
from zfw_py.firewall.listing import read_rule
from zfw_py.firewall.maps import Maps
from zfw_py.firewall.rules.find import port_rules
from zfw_py.firewall.story import VERDICTS
from zfw_py.values.endpoint import Endpoint
from zfw_py.values.prefix import address_text, mapped_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zfw_py.firewall.model import Rule

# Under one lock, so that a writer waits for no long capture.
_CHUNK = 256
# A test run takes a page, less what the kernel needs around a packet.
_MOST_BYTES = 3000
_MOST_DATAGRAMS = 4096  # as the map of fragments

_ETHERNET, _TAG = 14, 4
_TAGS = (b"\x81\x00", b"\x88\xa8")
_MOST_TAGS = 2
_NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmpv6", 112: "vrrp"}
_FRAGMENT_HEADER = 44
_EXTENSIONS = (0, 43, _FRAGMENT_HEADER, 51, 60)
_MOST_EXTENSIONS = 8


class Outline(NamedTuple):
    """What a frame is about, as far as its headers say. A port of 0 stands for none."""

    protocol: str
    source: str = ""
    source_port: int = 0
    destination: str = ""
    destination_port: int = 0
    fragment: str = ""  # "first" or "later"
    # What its fragments have in common, and what the datagrams between the two hosts have.
    datagram: bytes = b""
    hosts: bytes = b""

    @property
    def source_text(self) -> str:
        """The source with its port."""
        return str(Endpoint(self.source, self.source_port))

    @property
    def destination_text(self) -> str:
        """The destination with its port."""
        return str(Endpoint(self.destination, self.destination_port))


class Answer(NamedTuple):
    """The decision about a packet of a capture.

    ``verdict`` and ``reason`` are None for a frame that a test run does not take: it is shorter
    than the headers that it announces.
    """

    packet: Captured
    outline: Outline
    verdict: str | None
    reason: str | None
    rule: Rule | None


class _Rules:
    """The rules by slot, read again when a writer has written."""

    def __init__(self) -> None:
        self._stamp = -1
        self._found: dict[int, Rule] = {}

    def at(self, maps: Maps, slot: int) -> Rule | None:
        stamp = maps.state().stamp
        if stamp != self._stamp:
            self._found.clear()
            self._stamp = stamp
        if slot not in self._found:
            interfaces = Interfaces(maps)
            for key, _, rules in port_rules(maps):
                for rule in rules:
                    if rule.slot == slot:
                        self._found[slot] = read_rule(maps, interfaces, key, rule)
        return self._found.get(slot)


class _Firsts:
    """What became of first fragments. The program writes it down; a test run does not."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()

    def note(self, seen: Outline, verdict: str) -> None:
        self._verdicts[seen.datagram] = verdict
        if verdict == "pass":
            # Fragments that overtake the first one of their datagram pass between these hosts.
            self._verdicts[seen.hosts] = verdict
        while len(self._verdicts) > _MOST_DATAGRAMS:
            self._verdicts.popitem(last=False)

    def verdict_of(self, seen: Outline) -> str | None:
        return self._verdicts.get(seen.datagram) or self._verdicts.get(seen.hosts)


def replay(captured: Iterable[Captured], interface: str | None, direction: str) -> Iterator[Answer]:
    """Ask about each packet; takes the lock for some packets at a time.

    Without ``interface`` each packet is seen at the interface that the capture names. Raises
    UsageError where it names none, NotFound for one that does not exist.
    """
    rules = _Rules()
    firsts = _Firsts()
    fault: list[UsageError] = []
    rest = _until_fault(captured, fault)
    while some := list(islice(rest, _CHUNK)):
        with Maps(is_writer=False) as maps, Programs(maps) as running:
            seen: dict[str, tuple[int, bool]] = {}
            answers = []
            for packet in some:
                name = interface or packet.interface
                if name is None:
                    raise UsageError("-i: missing: the capture does not name the interface")
                if name not in seen:
                    ifindex = index_of(name)
                    at = programs.attachment_at(maps, ifindex, direction)
                    seen[name] = ifindex, at is not None
                answers.append(_ask(maps, running, rules, firsts, packet, *seen[name], direction))
        yield from answers
    if fault:
        raise fault[0]


def _until_fault(captured: Iterable[Captured], fault: list[UsageError]) -> Iterator[Captured]:
    """The packets up to an error, which is put into ``fault``: those before it are answered."""
    try:
        yield from captured
    except UsageError as error:
        fault.append(error)


def _ask(
    maps: Maps,
    running: Programs,
    rules: _Rules,
    firsts: _Firsts,
    packet: Captured,
    ifindex: int,
    is_attached: bool,
    direction: str,
) -> Answer:
    frame = _untagged(frame_of(packet))
    seen = outline(frame)
    if not is_attached:
        return Answer(packet, seen, "pass", reasons.NOT_ATTACHED, None)
    missing = min(packet.length - len(packet.data), _MOST_BYTES)
    try:
        decision = running.decide(fitted(frame + bytes(missing)), ifindex, direction)
    except UsageError:
        return Answer(packet, seen, None, None, None)
    verdict, reason = VERDICTS[decision.verdict], decision.reason
    if seen.fragment == "later" and reason.startswith("fragment_"):
        known = firsts.verdict_of(seen)
        if known is not None:
            verdict = known
            reason = "fragment_passed" if known == "pass" else "fragment_dropped"
    elif seen.fragment == "first":
        firsts.note(seen, "drop" if verdict == "drop" else "pass")
    rule = None if decision.slot is None else rules.at(maps, decision.slot)
    return Answer(packet, seen, verdict, reason, rule)


def _untagged(frame: bytes) -> bytes:
    """The frame without its outer VLAN tag, which the kernel keeps beside it."""
    if frame[_ETHERNET - 2 : _ETHERNET] not in _TAGS:
        return frame
    return frame[: _ETHERNET - 2] + frame[_ETHERNET + _TAG - 2 :]


def fitted(frame: bytes) -> bytes:
    """A frame that a test run takes: a longer one is cut, and its IP header says so."""
    if len(frame) <= _MOST_BYTES:
        return frame
    cut = bytearray(frame[:_MOST_BYTES])
    kind, start = _network(frame)
    if kind == b"\x08\x00":
        cut[start + 2 : start + 4] = (len(cut) - start).to_bytes(2, "big")
    elif kind == b"\x86\xdd":
        cut[start + 4 : start + 6] = (len(cut) - start - 40).to_bytes(2, "big")
    return bytes(cut)


def _network(frame: bytes) -> tuple[bytes, int]:
    """The type of a frame, and where its payload begins, behind at most two VLAN tags."""
    start = _ETHERNET
    for _ in range(_MOST_TAGS):
        if frame[start - 2 : start] in _TAGS:
            start += _TAG
    return frame[start - 2 : start], start


def outline(frame: bytes) -> Outline:
    """The ends of a frame's packet. What the frame is too short for is left empty."""
    kind, start = _network(frame)
    if kind == b"\x08\x06":
        return Outline("arp")
    if kind == b"\x08\x00" and len(frame) >= start + 20:
        return _outline_ipv4(frame, start)
    if kind == b"\x86\xdd" and len(frame) >= start + 40:
        return _outline_ipv6(frame, start)
    return Outline(f"ethertype 0x{kind.hex()}")


def _outline_ipv4(frame: bytes, start: int) -> Outline:
    number = frame[start + 9]
    field = int.from_bytes(frame[start + 6 : start + 8], "big") & 0x3FFF
    source, destination = frame[start + 12 : start + 16], frame[start + 16 : start + 20]
    hosts = source + destination + bytes((number,))
    datagram = hosts + frame[start + 4 : start + 6]
    fragment = "later" if field & 0x1FFF else "first" if field else ""
    transport = start + 4 * (frame[start] & 15)
    seen = _ends(frame, number, source, destination, transport, fragment)
    return seen._replace(datagram=datagram, hosts=hosts)


def _outline_ipv6(frame: bytes, start: int) -> Outline:
    number, at = frame[start + 6], start + 40
    source, destination = frame[start + 8 : start + 24], frame[start + 24 : start + 40]
    fragment = identification = ""
    for _ in range(_MOST_EXTENSIONS):
        if number not in _EXTENSIONS or len(frame) < at + 8:
            break
        header = frame[at : at + 8]
        if number == _FRAGMENT_HEADER:
            field = int.from_bytes(header[2:4], "big")
            fragment = "later" if field & 0xFFF8 else "first" if field & 1 else ""
            identification = header[4:8].hex()
            at += 8
        else:
            at += 4 * (header[1] + 2) if number == 51 else 8 * (header[1] + 1)
        number = header[0]
        if fragment == "later":
            break
    hosts = source + destination
    seen = _ends(frame, number, source, destination, at, fragment)
    return seen._replace(datagram=hosts + bytes.fromhex(identification), hosts=hosts)


def _ends(
    frame: bytes,
    number: int,
    source: bytes,
    destination: bytes,
    transport: int,
    fragment: str,
) -> Outline:
    ports = [0, 0]
    if number in (6, 17) and fragment != "later" and len(frame) >= transport + 4:
        ports = [int.from_bytes(frame[transport + at : transport + at + 2], "big") for at in (0, 2)]
    family = 4 if len(source) == 4 else 6
    return Outline(
        _NAMES.get(number, f"protocol {number}"),
        address_text(mapped_address(family, source)),
        ports[0],
        address_text(mapped_address(family, destination)),
        ports[1],
        fragment,
    )
