# SPDX-License-Identifier: GPL-2.0-only
"""A packet that ``zfw explain`` asks about: read from options, and made into a frame. Pure."""

from __future__ import annotations

from typing import NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall.model import check_direction, check_interface_name
from zfw_py.values.endpoint import Endpoint, split_port
from zfw_py.values.prefix import Prefix, mapped_address, parse_address

PROTOCOLS = ("tcp", "udp", "icmp")
TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
SYN = TCP_FLAGS["SYN"]
# The source port of a client that gives none: the first that a kernel may choose.
ANY_PORT = 32768

# By family: ICMP's protocol number, and the types of an echo request and reply.
_ICMP = {4: (1, 8, 0), 6: (58, 128, 129)}
# The types of errors, which quote a packet (RFC 792; RFC 4443, section 3).
_ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
# Neighbour discovery and its neighbours count with this hop limit alone (RFC 4861).
_NEIGHBOUR_TYPES = (133, 134, 135, 136)
# Reports and queries of multicast groups: RFC 2710, section 3; RFC 3810, section 5.
_GROUP_TYPES = (130, 131, 132, 143)
_NUMBERS = {"tcp": 6, "udp": 17}
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_ETHERNET = bytes.fromhex("020000000001020000000002")


class Icmp(NamedTuple):
    """The type and code of an ICMP message, each 0 to 255."""

    type: int
    code: int


class Question(NamedTuple):
    """A packet, and where the firewall sees it.

    Addresses are 4 or 16 bytes in network order. ``protocol`` is "tcp", "udp" or "icmp"; with
    ``icmp`` and another protocol the packet is an ICMP error about a packet of that protocol
    from the destination to the source. Ports are 0 where there are none. ``interface`` is None
    for the one that the routes say. ``tcp_flags`` are bits of TCP_FLAGS.
    """

    family: int
    protocol: str
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    interface: str | None = None
    direction: str = "ingress"
    tcp_flags: int = SYN
    icmp: Icmp | None = None

    @property
    def sent(self) -> str:
        """The protocol of the packet itself."""
        return "icmp" if self.icmp else self.protocol

    @property
    def source_text(self) -> str:
        """The source as ADDR:PORT, or the address alone."""
        return str(self._end(self.source, self.source_port))

    @property
    def destination_text(self) -> str:
        """The destination as ADDR:PORT, or the address alone."""
        return str(self._end(self.destination, self.destination_port))

    def _end(self, address: bytes, port: int) -> Endpoint:
        return Endpoint(_text(self.family, address), 0 if self.icmp else port)

    @property
    def destination_address(self) -> str:
        """The destination without its port."""
        return _text(self.family, self.destination)

    @property
    def flags_text(self) -> str:
        """The TCP flags as "SYN,ACK"."""
        return ",".join(name for name, bit in TCP_FLAGS.items() if self.tcp_flags & bit) or "none"

    @property
    def mapped(self) -> tuple[bytes, bytes]:
        """Source and destination as 16 bytes each, as the maps have them."""
        return mapped_address(self.family, self.source), mapped_address(
            self.family, self.destination
        )

    @property
    def is_made_up(self) -> bool:
        """Whether the answer may depend on numbers that were not given: TCP's, an error's quote."""
        is_error = self.icmp is not None and self.icmp.type in _ICMP_ERRORS[self.family]
        return is_error or (self.sent == "tcp" and self.tcp_flags != SYN)


def _text(family: int, address: bytes) -> str:
    return Prefix(family, address, 8 * len(address)).address_text


def ask(
    protocol: str | None,
    source: str,
    destination: str,
    *,
    interface: str | None = None,
    direction: str = "ingress",
    tcp_flags: str | None = None,
    icmp: str | None = None,
) -> Question:
    """Read a question from the texts of options. Raises UsageError, which names the option."""
    check_direction(direction, "--direction")
    if interface is not None:
        check_interface_name(interface, "-i, --interface")
    if protocol is None and icmp is None:
        raise UsageError("-p, --protocol: missing")
    protocol = "icmp" if protocol is None else protocol.lower()
    if protocol not in PROTOCOLS:
        raise UsageError(f"-p, --protocol: not tcp, udp or icmp: {protocol!r}")
    family, from_, from_port = _endpoint(source, "--from")
    to_family, to, to_port = _endpoint(destination, "--to")
    if family != to_family:
        raise UsageError(f"--to: {destination} is not IPv{family} as --from is")
    if tcp_flags is not None and (protocol != "tcp" or icmp is not None):
        raise UsageError("--tcp-flags: only with -p tcp")
    kind = _read_icmp(icmp, family) if icmp is not None else None
    if protocol == "icmp":
        for option, port in (("--from", from_port), ("--to", to_port)):
            if port is not None:
                raise UsageError(f"{option}: ICMP has no ports: :{port}")
        kind = kind or Icmp(_ICMP[family][1], 0)
    elif to_port is None:
        raise UsageError(f"--to: {destination}: a port is missing: {_with_port(destination)}")
    return Question(
        family,
        protocol,
        from_,
        from_port or (0 if protocol == "icmp" else ANY_PORT),
        to,
        to_port or 0,
        interface,
        direction,
        SYN if tcp_flags is None else _read_flags(tcp_flags),
        kind,
    )


def _with_port(text: str) -> str:
    return f"[{text}]:443" if ":" in text else f"{text}:443"


def _endpoint(text: str, option: str) -> tuple[int, bytes, int | None]:
    host, port = split_port(text, option)
    family, address = parse_address(host, option)
    return family, address, port


def _read_flags(text: str) -> int:
    bits = 0
    for name in text.upper().replace("+", ",").split(","):
        if name not in TCP_FLAGS:
            raise UsageError(f"--tcp-flags: {name!r} is none of {', '.join(TCP_FLAGS)}: {text!r}")
        bits |= TCP_FLAGS[name]
    return bits


def _read_icmp(text: str, family: int) -> Icmp:
    if not text:
        return Icmp(_ICMP[family][1], 0)
    numbers = text.split("/")
    if len(numbers) > 2 or not all(
        each.isascii() and each.isdigit() and len(each) <= 3 and int(each) <= 255
        for each in numbers
    ):
        raise UsageError(f"--icmp: not TYPE or TYPE/CODE, each within 0 to 255: {text!r}")
    return Icmp(int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0)


# The frame


def frame(question: Question) -> bytes:
    """The packet as an Ethernet frame. Checksums are 0: the programs do not read them."""
    return (
        _ETHERNET
        + _ETHERTYPES[question.family].to_bytes(2, "big")
        + _packet(question, question.icmp)
    )


def _packet(question: Question, icmp: Icmp | None) -> bytes:
    if icmp is not None:
        payload = _message(question, icmp)
        number = _ICMP[question.family][0]
        hops = _hop_limit(question.family, icmp)
    else:
        ports = question.source_port.to_bytes(2, "big") + question.destination_port.to_bytes(
            2, "big"
        )
        if question.protocol == "tcp":
            payload = ports + bytes(8) + bytes((0x50, question.tcp_flags)) + b"\x02\0" + bytes(4)
        else:
            payload = ports + b"\0\x08\0\0"
        number, hops = _NUMBERS[question.protocol], 64
    if question.family == 4:
        length = (20 + len(payload)).to_bytes(2, "big")
        header = b"\x45\0" + length + bytes(4) + bytes((hops, number)) + bytes(2)
    else:
        header = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes((number, hops))
    return header + question.source + question.destination + payload


def _hop_limit(family: int, icmp: Icmp) -> int:
    if family == 6 and icmp.type in _NEIGHBOUR_TYPES:
        return 255
    return 1 if family == 6 and icmp.type in _GROUP_TYPES else 64


def _message(question: Question, icmp: Icmp) -> bytes:
    """An ICMP message; an error quotes a packet from the destination to the source."""
    message = bytes((*icmp, 0, 0)) + bytes(4)
    if icmp.type not in _ICMP_ERRORS[question.family]:
        return message + bytes(24)
    quoted = question._replace(
        source=question.destination,
        source_port=question.destination_port,
        destination=question.source,
        destination_port=question.source_port,
    )
    echo = Icmp(_ICMP[question.family][1], 0)
    return message + _packet(quoted, echo if question.protocol == "icmp" else None)
