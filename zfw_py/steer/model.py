# SPDX-License-Identifier: GPL-2.0-only
"""Mappings: which connections go to which daemon's socket; parsed and checked. Pure."""

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
MAX_BYTES = 1 << 26  # of a document

_LABEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.:@-]{{0,{MAX_LABEL - 1}}}")
# The names of units that have processes, as unit_name_is_valid() of systemd checks them.
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|socket|scope|mount|swap)")
_MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


class Ports(NamedTuple):
    """The ports from ``low`` to ``high``, both included."""

    low: int
    high: int

    @property
    def is_any(self) -> bool:
        """Whether these are all ports."""
        return self == ANY_PORT

    @property
    def is_one(self) -> bool:
        """Whether this is a single port."""
        return self.low == self.high

    def __str__(self) -> str:
        if self.is_any:
            return ANY
        return str(self.low) if self.is_one else f"{self.low}-{self.high}"


ANY_PORT = Ports(0, MAX_PORT)


class AddressTarget(NamedTuple):
    """The sockets that listen on an address and port; the address may be 0.0.0.0 or ::.

    ``address``: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. An IPv6 socket that is bound
    to ::ffff:a.b.c.d is the same target as an IPv4 socket.
    """

    address: bytes
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "--to") -> AddressTarget:
        """Read ADDR:PORT, IPv6 in brackets. Raises UsageError that names ``option``."""
        if text.startswith("["):
            address, bracket, port = text[1:].partition("]:")
            is_whole = bool(bracket) and ":" in address
        else:
            address, colon, port = text.rpartition(":")
            is_whole = bool(colon) and ":" not in address
        if not is_whole:
            raise UsageError(f"{option}: not ADDR:PORT, or [ADDR]:PORT for IPv6: {text[:80]!r}")
        family, raw = parse_address(address, option)
        return cls(mapped_address(family, raw), parse_port(port, f"{option}: port"))

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if self.address.startswith(IPV4_MAPPED) else 6

    def __str__(self) -> str:
        return str(Endpoint.from_mapped(self.address, self.port))


class ProcessTarget(NamedTuple):
    """The socket on which a process listens.

    ``start_time``: of the process, in clock ticks since boot; a process id alone is reused.
    """

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int, start_time: int) -> ProcessTarget:
        """Check the range of a process id. Raises UsageError."""
        if not 0 < pid <= _MAX_PID:
            raise UsageError(f"--to-pid: not a process id: {pid}")
        return cls(pid, start_time)

    def __str__(self) -> str:
        return f"pid {self.pid}"


class UnitTarget(NamedTuple):
    """The socket on which a process of a systemd unit listens."""

    unit: str

    @classmethod
    def parse(cls, text: str) -> UnitTarget:
        """Read a unit's name; ``.service`` may be left out, as for systemctl. Raises UsageError."""
        unit = text if "." in text else f"{text}.service"
        if not _UNIT.fullmatch(unit):
            raise UsageError(f"--to-unit: not the name of a unit with processes: {text[:80]!r}")
        if unit.partition(".")[0].endswith("@"):
            raise UsageError(f"--to-unit: a template, which has no processes: {text!r}")
        return cls(unit)

    def __str__(self) -> str:
        return f"unit {self.unit}"


Target = AddressTarget | ProcessTarget | UnitTarget


class MappingKey(NamedTuple):
    """The packets of a mapping, by their destination; no two mappings have an equal key.

    ``prefix``: None for any address, IPv4 and IPv6.
    """

    protocol: Protocol
    prefix: Prefix | None
    ports: Ports

    @classmethod
    def parse(cls, protocol: str, address: str, port: str) -> MappingKey:
        """Read "tcp" or "udp", ADDR, ADDR/LEN or any, and PORT, LOW-HIGH or any.

        Raises UsageError.
        """
        return cls(parse_protocol(protocol), parse_prefix(address), parse_ports(port))

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The prefix, or for any address one of each family."""
        return (Prefix.any(4), Prefix.any(6)) if self.prefix is None else (self.prefix,)

    @property
    def address_text(self) -> str:
        """The address or prefix, as ``parse`` reads it."""
        if self.prefix is None:
            return ANY
        is_address = self.prefix.length == 8 * len(self.prefix.address)
        return self.prefix.address_text if is_address else str(self.prefix)

    def __str__(self) -> str:
        return f"{self.protocol} {self.address_text} port {self.ports}"


class Mapping(NamedTuple):
    """Leads connections, or datagrams, to the socket of a target.

    ``label``: groups mappings for ``remove_all``. ``is_override``: a socket that listens on
    exactly the address and port of a packet does not keep it. ``is_fallthrough``: if the target
    has no socket, the kernel's own look-up follows; else the packet is refused.
    """

    key: MappingKey
    target: Target
    label: str = ""
    is_override: bool = False
    is_fallthrough: bool = False

    @classmethod
    def make(
        cls,
        key: MappingKey,
        target: Target,
        label: str = "",
        *,
        is_override: bool = False,
        is_fallthrough: bool = False,
    ) -> Mapping:
        """A mapping that can work. Raises UsageError that says why it cannot.

        Any address becomes all addresses of the family of an address target.
        """
        if isinstance(target, AddressTarget):
            if key.prefix is None:
                key = key._replace(prefix=Prefix.any(target.family))
            elif key.prefix.family == 6 and target.family == 4:
                raise UsageError(f"{key}: an IPv4 socket, {target}, accepts no IPv6")
        if key.protocol == "udp":
            _check_udp(key, target)
        return cls(key, target, parse_label(label), is_override, is_fallthrough)

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
    """Read PORT, LOW-HIGH or any. Raises UsageError."""
    if text == ANY:
        return ANY_PORT
    low, dash, high = text.partition("-")
    first = parse_port(low)
    last = parse_port(high) if dash else first
    if last < first:
        raise UsageError(f"port: {text!r} ends before it begins")
    return Ports(first, last)


def parse_prefix(text: str) -> Prefix | None:
    """Read ADDR or ADDR/LEN; None for any. Raises UsageError.

    Host bits that are set are refused, because 10.0.0.1/8 may be a mistake for one address.
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
    if _is_multicast(prefix):
        raise UsageError(f"address: multicast and broadcast cannot be steered: {text!r}")
    return prefix


def _is_multicast(prefix: Prefix) -> bool:
    """Multicast or IPv4 broadcast, for which the kernel runs no sk_lookup program."""
    first = prefix.address[0]
    if prefix.family == 6:
        return first == 0xFF and prefix.length >= 8
    return (first >> 4 == 0xE and prefix.length >= 4) or prefix.address == b"\xff" * 4


def parse_label(text: str) -> str:
    """Check a label; "" is no label. Raises UsageError."""
    if text and not _LABEL.fullmatch(text):
        raise UsageError(
            f"--label: not up to {MAX_LABEL} letters, digits and _.:@- : {text[: MAX_LABEL + 1]!r}"
        )
    return text


def _check_udp(key: MappingKey, target: Target) -> None:
    """Raise UsageError if answers would have a wrong port: ``sendmsg`` sets their address only."""
    if isinstance(target, AddressTarget) and key.ports != Ports(target.port, target.port):
        raise UsageError(
            f"{key}: UDP answers of {target} come from port {target.port},"
            " which a program cannot change: clients would discard them",
            hint=f"let the daemon listen on the port that clients ask, or steer port {target.port}",
        )
    if not key.ports.is_one:
        raise UsageError(
            f"{key}: UDP answers come from the daemon's own port: steer that port alone"
        )


def parse_short(text: str) -> tuple[str, str, str, AddressTarget]:
    """Read FROM=TO of ``run -t``: protocol, address, port, target. Raises UsageError.

    FROM is PORT, LOW-HIGH, any, ADDR:PORT, ADDR/LEN:PORT or [ADDR/LEN]:PORT, with ``tcp:`` or
    ``udp:`` before it or not. ``[::]`` and ``0.0.0.0`` are all addresses of their family.
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
    return protocol, address, port, AddressTarget.parse(to, "-t")


# Documents


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in JSON; the last five fields are written by listings, and not read."""

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
    """The array of entries as a structure, because ``structured.make`` needs one."""

    entries: list[Entry]


def entry_of(mapping: Mapping) -> dict[str, object]:
    """The object of a mapping in JSON."""
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
    """The mapping of an entry. Raises UsageError.

    ``start_time``: of the process ``to_pid``, for an entry without ``to_pid_start``.
    """
    if sum(each is not None for each in (entry.to, entry.to_pid, entry.to_unit)) != 1:
        raise UsageError("needs one of to, to_pid and to_unit")
    target: Target
    if entry.to is not None:
        target = AddressTarget.parse(entry.to, "to")
    elif entry.to_unit is not None:
        target = UnitTarget.parse(entry.to_unit)
    else:
        pid = entry.to_pid or 0
        target = ProcessTarget.of(
            pid, start_time if entry.to_pid_start is None else entry.to_pid_start
        )
    return Mapping.make(
        MappingKey.parse(entry.protocol, entry.address, str(entry.port)),
        target,
        entry.label,
        is_override=entry.override,
        is_fallthrough=entry.fallthrough,
    )


def decode(data: bytes) -> list[Entry]:
    """Read the entries of a JSON document of at most MAX_BYTES.

    Entries with ``run_pid`` are left out, because a ``zfw steer run`` holds these mappings.
    Raises DocumentError with the line or path of the first error.
    """
    raw = parse(data, "json", MAX_BYTES)
    try:
        document = make({"entries": raw}, _Document)
    except DocumentError as error:
        path = error.path.removeprefix("entries")
        message = error.message.removeprefix(f"{error.path}: ")
        raise DocumentError(message, path=path or "document") from None
    entries = [entry for entry in document.entries if entry.run_pid is None]
    if len(entries) > MAX_MAPPINGS:
        raise DocumentError(f"{len(entries)} mappings; {MAX_MAPPINGS} at most")
    return entries


def mappings_of(entries: list[Entry], start_times: dict[int, int] | None = None) -> list[Mapping]:
    """The mappings of entries, whose keys must differ.

    ``start_times``: of processes, by their ids. Raises DocumentError with the index of the first
    error.
    """
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
