# SPDX-License-Identifier: GPL-2.0-only
"""Which connections land on which daemon's socket: mappings, read and checked. Pure."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import msgspec

from zfw_py.errors import UsageError
from zfw_py.values.endpoint import Endpoint
from zfw_py.values.prefix import IPV4_MAPPED, Prefix, mapped_address, parse_address
from zfw_py.values.structured import DocumentError, make, parse

Protocol = Literal["tcp", "udp"]
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")

ANY = "any"
MAX_PORT = 65535
MAX_LABEL = 63
MAX_MAPPINGS = 131_072
MAX_BYTES = 1 << 26

_LABEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:@-]{{0,{MAX_LABEL - 1}}}")
# What systemd takes for the name of a unit that has processes (unit_name_is_valid()).
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|socket|scope|mount|swap)")
_MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


class Ports(NamedTuple):
    """The ports from ``low`` to ``high``."""

    low: int
    high: int

    @property
    def is_any(self) -> bool:
        """Whether it is all ports."""
        return self == ANY_PORT

    @property
    def is_one(self) -> bool:
        """Whether it is a single port."""
        return self.low == self.high

    def __str__(self) -> str:
        if self.is_any:
            return ANY
        return str(self.low) if self.is_one else f"{self.low}-{self.high}"


ANY_PORT = Ports(0, MAX_PORT)


class AddressTarget(NamedTuple):
    """Whichever socket listens on an address and port; the address may be a wildcard's.

    ``address`` is 16 bytes in network order, IPv4 as ::ffff:a.b.c.d: an IPv6 socket that is
    bound to that is the same for a client as an IPv4 one.
    """

    address: bytes
    port: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if self.address.startswith(IPV4_MAPPED) else 6

    def __str__(self) -> str:
        return str(Endpoint.from_mapped(self.address, self.port))


class ProcessTarget(NamedTuple):
    """The socket that a process listens with.

    ``start_time`` is in clock ticks since boot: a process id is given again, both are not.
    """

    pid: int
    start_time: int

    def __str__(self) -> str:
        return f"pid {self.pid}"


class UnitTarget(NamedTuple):
    """The socket that a process of a systemd unit listens with."""

    unit: str

    def __str__(self) -> str:
        return f"unit {self.unit}"


Target = AddressTarget | ProcessTarget | UnitTarget


class Key(NamedTuple):
    """What tells mappings apart. ``prefix`` is None for any address, IPv4 and IPv6."""

    protocol: Protocol
    prefix: Prefix | None
    ports: Ports

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """What it covers, a prefix a family."""
        return (Prefix.any(4), Prefix.any(6)) if self.prefix is None else (self.prefix,)

    @property
    def address_text(self) -> str:
        """The address or prefix, as ``parse_key`` reads it."""
        if self.prefix is None:
            return ANY
        is_address = self.prefix.length == 8 * len(self.prefix.address)
        return self.prefix.address_text if is_address else str(self.prefix)

    def __str__(self) -> str:
        return f"{self.protocol} {self.address_text} port {self.ports}"


class Mapping(NamedTuple):
    """Connections, or datagrams, and where they land.

    With ``is_override`` also those that another socket listens for exactly; with
    ``is_fallthrough`` the kernel's own look-up follows where the target has no socket.
    """

    key: Key
    target: Target
    label: str = ""
    is_override: bool = False
    is_fallthrough: bool = False

    def __str__(self) -> str:
        return f"{self.key} to {self.target}"


# Reading


def parse_protocol(text: str) -> Protocol:
    """Read ``tcp`` or ``udp``. Raises UsageError."""
    if text not in PROTOCOLS:
        raise UsageError(f"not tcp or udp: {text!r}")
    return text


def parse_port(text: str, option: str = "port") -> int:
    """Read a port, 1 to 65535. Raises UsageError."""
    is_plain = text.isascii() and text.isdigit() and not text.startswith("0") and len(text) <= 5
    if not is_plain or int(text) > MAX_PORT:
        raise UsageError(f"{option}: not within 1 to {MAX_PORT}: {text[:32]!r}")
    return int(text)


def parse_ports(text: str) -> Ports:
    """Read PORT, LOW-HIGH or ``any``. Raises UsageError."""
    if text == ANY:
        return ANY_PORT
    low, dash, high = text.partition("-")
    first = parse_port(low)
    last = parse_port(high) if dash else first
    if last < first:
        raise UsageError(f"port: {text!r} ends before it begins")
    return Ports(first, last)


def parse_prefix(text: str) -> Prefix | None:
    """Read ADDR, ADDR/LEN or ``any``, which is None.

    Host bits that are set are refused: 10.0.0.1/8 could be meant to be as narrow as it
    looks. Raises UsageError.
    """
    if text == ANY:
        return None
    prefix = Prefix.parse(text, option="address")
    family, address = parse_address(text.partition("/")[0], "address")
    if address != prefix.address:
        raise UsageError(f"address: host bits are set in {text!r}; the prefix is {prefix}")
    if family == 6 and address.startswith(IPV4_MAPPED):
        if prefix.length < 96:
            raise UsageError(f"address: neither IPv4 nor IPv6: {text!r}")
        prefix = Prefix(4, address[12:], prefix.length - 96)
    if prefix.length == 8 * len(prefix.address) and not any(prefix.address):
        raise UsageError(
            f"address: no connection comes to {text!r}",
            hint="every address is 0.0.0.0/0, ::/0, any",
        )
    if _is_of_a_group(prefix):
        raise UsageError(
            f"address: a group, or all hosts, for which there is no steering: {text!r}"
        )
    return prefix


def _is_of_a_group(prefix: Prefix) -> bool:
    """Multicast, or IPv4's broadcast: the kernel runs no sk_lookup program for these."""
    first = prefix.address[0]
    if prefix.family == 6:
        return first == 0xFF and prefix.length >= 8
    return (first >> 4 == 0xE and prefix.length >= 4) or prefix.address == b"\xff" * 4


def parse_key(protocol: str, address: str, port: str) -> Key:
    """Read what a mapping is for. Raises UsageError."""
    return Key(parse_protocol(protocol), parse_prefix(address), parse_ports(port))


def parse_address_target(text: str, option: str = "--to") -> AddressTarget:
    """Read ADDR:PORT, IPv6 in brackets. Raises UsageError."""
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]:")
        is_whole = bool(bracket) and ":" in address
    else:
        address, colon, port = text.rpartition(":")
        is_whole = bool(colon) and ":" not in address
    if not is_whole:
        raise UsageError(f"{option}: not ADDR:PORT, or [ADDR]:PORT for IPv6: {text[:80]!r}")
    family, raw = parse_address(address, option)
    return AddressTarget(mapped_address(family, raw), parse_port(port, f"{option}: port"))


def parse_process_target(pid: int, start_time: int) -> ProcessTarget:
    """Check a process id. Raises UsageError."""
    if not 0 < pid <= _MAX_PID:
        raise UsageError(f"--to-pid: not a process id: {pid}")
    return ProcessTarget(pid, start_time)


def parse_unit_target(text: str) -> UnitTarget:
    """Read a unit's name; ``.service`` may be left out, as for systemctl. Raises UsageError."""
    unit = text if "." in text else f"{text}.service"
    if not _UNIT.fullmatch(unit):
        raise UsageError(f"--to-unit: not the name of a unit with processes: {text[:80]!r}")
    if unit.partition(".")[0].endswith("@"):
        raise UsageError(f"--to-unit: a template, which has no processes: {text!r}")
    return UnitTarget(unit)


def parse_label(text: str) -> str:
    """Check a label; "" is none. Raises UsageError."""
    if text and not _LABEL.fullmatch(text):
        raise UsageError(
            f"--label: not up to {MAX_LABEL} letters, digits and _.:@- : {text[: MAX_LABEL + 1]!r}"
        )
    return text


def make_mapping(
    key: Key,
    target: Target,
    label: str = "",
    *,
    is_override: bool = False,
    is_fallthrough: bool = False,
) -> Mapping:
    """A mapping that can work. Raises UsageError that says why it cannot.

    ``any`` address is of the family of a target that has one.
    """
    if isinstance(target, AddressTarget):
        if key.prefix is None:
            key = key._replace(prefix=Prefix.any(target.family))
        elif key.prefix.family == 6 and target.family == 4:
            raise UsageError(f"{key}: an IPv4 socket, {target}, takes no IPv6")
    if key.protocol == "udp":
        _check_udp(key, target)
    return Mapping(key, target, parse_label(label), is_override, is_fallthrough)


def _check_udp(key: Key, target: Target) -> None:
    """The answers' source address can be mended as they are sent; their port cannot."""
    if isinstance(target, AddressTarget) and key.ports != Ports(target.port, target.port):
        raise UsageError(
            f"{key}: UDP answers of {target} come from port {target.port},"
            " and the kernel lets nobody mend that: clients would not know them",
            hint=f"have the daemon listen on the port that clients ask, or steer port"
            f" {target.port}",
        )
    if not key.ports.is_one:
        raise UsageError(
            f"{key}: UDP answers come from the daemon's own port: steer one port, that one"
        )


def parse_short(text: str) -> tuple[str, str, str, AddressTarget]:
    """Read FROM=TO of ``run -t``: protocol, address, port, target.

    FROM is PORT, RANGE, ``any``, ADDR:PORT, ADDR/LEN:PORT or [ADDR/LEN]:PORT, after
    ``udp:`` perhaps. ``[::]`` and ``0.0.0.0`` are any address of the family. Raises UsageError.
    """
    source, equals, to = text.partition("=")
    if not equals:
        raise UsageError(f"-t: not FROM=ADDR:PORT: {text[:80]!r}")
    protocol = "tcp"
    for each in PROTOCOLS:
        if source.startswith(f"{each}:"):
            protocol, source = each, source.removeprefix(f"{each}:")
    if source.startswith("["):
        address, bracket, port = source[1:].partition("]:")
        if not bracket or ":" not in address:
            raise UsageError(f"-t: not [ADDR]:PORT before the = : {text[:80]!r}")
    else:
        address, colon, port = source.rpartition(":")
        address = address if colon else ANY
    address = {"0.0.0.0": "0.0.0.0/0", "::": "::/0"}.get(address, address)  # noqa: S104
    return protocol, address, port, parse_address_target(to, "-t")


# As a document


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping as JSON has it. What a listing tells besides is not read, but may be there."""

    protocol: Protocol
    address: str
    port: str | int
    to: str | None = None
    to_pid: int | None = None
    to_pid_start: int | None = None
    to_unit: str | None = None
    label: str = ""
    override: bool = False
    fallthrough: bool = False
    run_pid: int | None = None
    state: Any = None
    problem: Any = None
    sockets: Any = None
    counters: Any = None


class _Document(msgspec.Struct, frozen=True):
    """The array of entries; what makes a document of structures wants a structure."""

    entries: list[Entry]


def entry_of(mapping: Mapping) -> dict[str, object]:
    """A mapping as JSON has it."""
    made: dict[str, object] = {
        "protocol": mapping.key.protocol,
        "address": mapping.key.address_text,
        "port": str(mapping.key.ports),
    }
    match mapping.target:
        case AddressTarget():
            made["to"] = str(mapping.target)
        case ProcessTarget(pid, start_time):
            made |= {"to_pid": pid, "to_pid_start": start_time}
        case UnitTarget(unit):
            made["to_unit"] = unit
    return made | {
        "label": mapping.label,
        "override": mapping.is_override,
        "fallthrough": mapping.is_fallthrough,
    }


def mapping_of(entry: Entry, start_time: int = 0) -> Mapping:
    """A mapping of its JSON. ``start_time`` is for a process of which none is said.

    Raises UsageError.
    """
    if sum(each is not None for each in (entry.to, entry.to_pid, entry.to_unit)) != 1:
        raise UsageError("one of to, to_pid and to_unit says where it leads")
    target: Target
    if entry.to is not None:
        target = parse_address_target(entry.to, "to")
    elif entry.to_unit is not None:
        target = parse_unit_target(entry.to_unit)
    else:
        pid = entry.to_pid or 0
        target = parse_process_target(
            pid, start_time if entry.to_pid_start is None else entry.to_pid_start
        )
    return make_mapping(
        parse_key(entry.protocol, entry.address, str(entry.port)),
        target,
        entry.label,
        is_override=entry.override,
        is_fallthrough=entry.fallthrough,
    )


def decode(data: bytes) -> list[Entry]:
    """Read a document of at most MAX_BYTES.

    Mappings that a ``zfw steer run`` holds are that one's affair, and left out. Raises
    DocumentError with the place of the first fault.
    """
    raw = parse(data, "json", MAX_BYTES)
    try:
        document = make({"entries": raw}, _Document)
    except DocumentError as error:
        path = error.path.removeprefix("entries")
        what = error.message.removeprefix(f"{error.path}: ")
        raise DocumentError(what, path=path or "document") from None
    entries = [entry for entry in document.entries if entry.run_pid is None]
    if len(entries) > MAX_MAPPINGS:
        raise DocumentError(f"{len(entries)} mappings; {MAX_MAPPINGS} at most")
    return entries


def mappings_of(entries: list[Entry], start_times: dict[int, int] | None = None) -> list[Mapping]:
    """The mappings of a document. Raises DocumentError with the index of the first fault."""
    made: list[Mapping] = []
    taken: dict[tuple[Protocol, Prefix, Ports], int] = {}
    for index, entry in enumerate(entries):
        path = f"[{index}]"
        try:
            mapping = mapping_of(entry, (start_times or {}).get(entry.to_pid or 0, 0))
        except UsageError as error:
            raise DocumentError(error.message, path=path) from None
        for prefix in mapping.key.prefixes:
            first = taken.setdefault((mapping.key.protocol, prefix, mapping.key.ports), index)
            if first != index:
                raise DocumentError(f"{mapping.key} is [{first}] as well", path=path)
        made.append(mapping)
    return made
