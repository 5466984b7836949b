# SPDX-License-Identifier: GPL-2.0-only
"""The policy of a guard: allowed and blocked names and prefixes, and the default. Pure.

An entry is a name or a prefix, with a port if only that port is allowed::

    example.com    10.0.0.0/8     10.0.0.1        2001:db8::/32
    example.com:443  10.0.0.0/8:443  10.0.0.1:443  [2001:db8::/32]:443

The longest matching name decides: addresses of the name are allowed on its ports. The longest
matching prefix that covers the port decides: 10.1.0.0/16:443 leaves port 80 to 10.0.0.0/8 around
it. A block covers all ports, and precedes an allow of the same name or prefix.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct

from zfw_py.errors import UsageError
from zfw_py.values.dns_name import ROOT, is_like_ipv4, parse_name
from zfw_py.values.endpoint import Endpoint, Server, parse_server, split_port
from zfw_py.values.prefix import Prefix, parse_address, unmapped

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

Default = Literal["deny", "allow"]
Refusal = Literal["nxdomain", "refused"]
Otherwise = Literal["none", "allow", "block"]

# The ports that one element of the kernel's trie can hold.
MAX_PORTS = 62
# Seconds. Programs keep an address for longer than its record says: a JVM for 30 s, pools and
# servers for minutes.
_MIN_TTL = 300
_MIN_TTLS = range(5, 604_801)
# The ports of a name that is allowed on all ports. It is empty so that code that forgets this case
# allows nothing.
ANY_PORT: frozenset[int] = frozenset()
# No entry matches; no entry has port 0.
_NO_ENTRY = frozenset({0})

_ESCAPED = re.compile(r"\\.?", re.DOTALL)
# ::ffff:0:0/96, which is 0.0.0.0/0.
_IPV4 = Prefix.any(4).mapped
# RFC 6052, section 2.1; RFC 3056, section 2.
_NAT64 = b"\0\x64\xff\x9b" + bytes(8)
_6TO4 = b"\x20\x02"
# Docker's DNS in each container. The guard redirects port 53; on other ports it would resolve any
# name for a guarded program.
_DOCKER_DNS = Prefix(4, b"\x7f\0\0\x0b", 32).mapped
# RFC 1122, section 3.2.1.3, and RFC 4291, section 2.5.3.
_LOOPBACK = (Prefix(4, b"\x7f\0\0\0", 8).mapped, Prefix(6, bytes(15) + b"\1", 128).mapped)


def check_min_ttl(seconds: int, option: str) -> int:
    """Return a least lifetime of addresses. Raises UsageError that names the option."""
    if seconds not in _MIN_TTLS:
        raise UsageError(f"{option}: not from {_MIN_TTLS[0]} to {_MIN_TTLS[-1]}: {seconds}")
    return seconds


class NameEntry(NamedTuple):
    """A name and all names below it.

    ``name``: A-labels in lower case, without a dot at the end; "." is the root, which covers every
    name. ``port`` is None for every port.
    """

    name: str
    port: int | None = None

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


class PrefixEntry(NamedTuple):
    """The addresses of a prefix. ``port`` is None for every port."""

    prefix: Prefix
    port: int | None = None

    def __str__(self) -> str:
        prefix = self.prefix
        is_address = prefix.length == 8 * len(prefix.address)
        text = prefix.address_text if is_address else str(prefix)
        return text if self.port is None else str(Endpoint(text, self.port))


Entry = NameEntry | PrefixEntry


class Reach(NamedTuple):
    """The result of the entries of a prefix and of all prefixes around it.

    ``ports`` (sorted) are allowed. ``otherwise`` is the action for all other ports: "allow" (then
    ``ports`` is empty) or "block"; "none" leaves the decision to the resolved addresses, and then
    to the policy's default.
    """

    ports: tuple[int, ...]
    otherwise: Otherwise


_NOTHING = Reach((), "none")


class Policy(Struct, frozen=True, kw_only=True, dict=True):
    """The policy of a guard.

        Policy.parse(allow=["example.com:443", "10.0.0.0/8"], block=["10.9.0.0/16"])

    ``default``: the action if no entry matches. None: deny, but allow if there are blocks and no
    allows. ``has_loopback`` allows 127.0.0.0/8 without 127.0.0.11, and ::1, like entries, but has
    no effect on the default. With ``is_log_only`` nothing is denied, only logged.
    ``dns_upstreams``: the servers to ask; empty: those of the system. ``refuse``: the DNS answer
    for a name that is not allowed; None: nxdomain. ``min_ttl``: an address of a name is admitted
    for the record's time to live, and for at least this many seconds; None: 300.

    Raises UsageError for a block with a port, and for a ``min_ttl`` that is not from 5 to 604,800.
    """

    allow: tuple[Entry, ...] = ()
    block: tuple[Entry, ...] = ()
    default: Default | None = None
    has_loopback: bool = True
    is_log_only: bool = False
    dns_upstreams: tuple[Server, ...] = ()
    refuse: Refusal | None = None
    min_ttl: int | None = None

    @classmethod
    def parse(
        cls,
        *,
        allow: Iterable[str] = (),
        block: Iterable[str] = (),
        default: Default | None = None,
        has_loopback: bool = True,
        is_log_only: bool = False,
        dns_upstreams: Iterable[str] = (),
        refuse: Refusal | None = None,
        min_ttl: int | None = None,
        options: Sequence[str] = ("allow", "block", "dns_upstreams"),
    ) -> Policy:
        """A policy from texts: ``allow=["example.com:443"], dns_upstreams=["192.0.2.53"]``.

        ``options`` are the names of the three lists in errors. Raises UsageError.
        """
        return cls(
            allow=tuple(parse_entry(text, options[0]) for text in allow),
            block=tuple(parse_entry(text, options[1], is_block=True) for text in block),
            default=default,
            has_loopback=has_loopback,
            is_log_only=is_log_only,
            dns_upstreams=tuple(parse_server(text, options[2]) for text in dns_upstreams),
            refuse=refuse,
            min_ttl=min_ttl,
        )

    def __post_init__(self) -> None:
        """Refuse blocks with a port, and a ``min_ttl`` out of its range."""
        for entry in self.block:
            if entry.port is not None:
                raise UsageError(f"block: {_PORT_OF_BLOCK}: '{entry}'")
        if self.min_ttl is not None:
            check_min_ttl(self.min_ttl, "min_ttl")

    @property
    def is_allowed_by_default(self) -> bool:
        """Whether an address is allowed if no entry matches it."""
        if self.default is not None:
            return self.default == "allow"
        return bool(self.block) and not self.allow

    @property
    def least_lifetime(self) -> int:
        """For how many seconds an address of a name is admitted at least."""
        return _MIN_TTL if self.min_ttl is None else self.min_ttl

    def merged(self, other: Policy) -> Policy:
        """This policy (of a file) with the entries of another one (of the command line) added.

        The other's default, DNS servers, refusal and ``min_ttl``, if any, replace these. Loopback
        is allowed if both allow it; denials are only logged if either says so.
        """
        return Policy(
            allow=tuple(dict.fromkeys(self.allow + other.allow)),
            block=tuple(dict.fromkeys(self.block + other.block)),
            default=self.default if other.default is None else other.default,
            has_loopback=self.has_loopback and other.has_loopback,
            is_log_only=self.is_log_only or other.is_log_only,
            dns_upstreams=other.dns_upstreams or self.dns_upstreams,
            refuse=other.refuse or self.refuse,
            min_ttl=self.min_ttl if other.min_ttl is None else other.min_ttl,
        )

    def as_object(self) -> dict[str, Any]:
        """The policy as the object of a policy file; ``document.decode`` reads it back."""
        made: dict[str, Any] = {} if self.default is None else {"default": self.default}
        if self.refuse is not None:
            made["refuse"] = self.refuse
        if self.min_ttl is not None:
            made["min_ttl"] = self.min_ttl
        return made | {
            "allow": [str(entry) for entry in self.allow],
            "block": [str(entry) for entry in self.block],
            "dns_upstream": [str(server) for server in self.dns_upstreams],
            "loopback": self.has_loopback,
            "log_only": self.is_log_only,
        }

    def ports_of_name(self, name: str) -> frozenset[int] | None:
        """The ports on which addresses of a name are allowed, or ANY_PORT; None: not allowed.

        ``name`` is in the master file format of RFC 1035 (A-labels, escapes, upper or lower case,
        with or without the last dot), as dnspython writes names. One look-up for each label.
        """
        ports = self._entries_of(name)
        if ports is _NO_ENTRY:
            return ANY_PORT if self.is_allowed_by_default else None
        return ports

    def is_blocked_name(self, name: str) -> bool:
        """Whether an entry blocks a name; the default does not count."""
        return self._entries_of(name) is None

    def _entries_of(self, name: str) -> frozenset[int] | None:
        """The ports of the longest matching entry; None if it blocks, or _NO_ENTRY."""
        # No entry has an escaped character; an escaped dot does not separate labels.
        rest = _ESCAPED.sub("?", name).removesuffix(".").lower() if name.isascii() else ""
        table = self._ports_of_names
        while rest:
            if rest in table:
                return table[rest]
            rest = rest.partition(".")[2]
        return table.get(ROOT, _NO_ENTRY)

    @cached_property
    def _ports_of_names(self) -> dict[str, frozenset[int] | None]:
        ports: dict[str, set[int | None]] = {}
        for entry in self.allow:
            if isinstance(entry, NameEntry):
                ports.setdefault(entry.name, set()).add(entry.port)
        table: dict[str, frozenset[int] | None] = {
            name: frozenset(port for port in found if port is not None)
            if None not in found
            else ANY_PORT
            for name, found in ports.items()
        }
        table.update((entry.name, None) for entry in self.block if isinstance(entry, NameEntry))
        return table

    def flatten(self) -> dict[tuple[bytes, int], Reach]:
        """Flatten the prefix entries, so that one look-up of the longest prefix decides.

        The keys are ``Prefix.mapped``: 16 bytes, IPv4 as ::ffff:a.b.c.d, and a length of 0 to 128.
        Loopback is among them if it is allowed, without Docker's DNS in it. An IPv6 prefix around
        ::ffff:0:0/96 does not cover IPv4: that prefix gets an element of its own. A block of an
        IPv4 prefix also blocks the IPv6 addresses that lead there by NAT64 and 6to4. Raises
        UsageError for a prefix with more than 62 ports, including those of the prefixes around it.
        """
        ports: dict[tuple[bytes, int], set[int | None]] = {}
        for entry in self.allow:
            if isinstance(entry, PrefixEntry):
                ports.setdefault(entry.prefix.mapped, set()).add(entry.port)
        blocked = {
            key
            for entry in self.block
            if isinstance(entry, PrefixEntry)
            for key in _with_translated(*entry.prefix.mapped)
        }
        apart: dict[tuple[bytes, int], Reach] = {}
        if self.has_loopback:
            apart[_DOCKER_DNS] = _reach_of(_DOCKER_DNS, ports, blocked)
            for key in _LOOPBACK:
                ports.setdefault(key, set()).add(None)
        keys = ports.keys() | blocked
        if any(Prefix(6, _IPV4[0], length).mapped in keys for length in range(_IPV4[1])):
            keys.add(_IPV4)

        flat: dict[tuple[bytes, int], Reach] = {}
        # The prefixes around the current one, each with its last address. In sorted order, a prefix
        # comes right before those inside it.
        around: list[tuple[int, Reach]] = []
        for key in sorted(keys):
            first = int.from_bytes(key[0], "big")
            last = first | ((1 << (128 - key[1])) - 1)
            while around and around[-1][0] < first:
                around.pop()
            outer = around[-1][1] if around and key != _IPV4 else _NOTHING
            reach = _within(outer, key, ports, blocked)
            flat[key] = reach
            around.append((last, reach))
        return flat | apart


def _reach_of(
    key: tuple[bytes, int],
    ports: Mapping[tuple[bytes, int], set[int | None]],
    blocked: Container[tuple[bytes, int]],
) -> Reach:
    """What the entries say of one IPv4 address, a key of ``flatten``."""
    value = int.from_bytes(key[0], "big")
    reach = _NOTHING
    for length in range(_IPV4[1], 129):
        around = ((value >> (128 - length) << (128 - length)).to_bytes(16, "big"), length)
        reach = _within(reach, around, ports, blocked)
    return reach


def _within(
    outer: Reach,
    key: tuple[bytes, int],
    ports: Mapping[tuple[bytes, int], set[int | None]],
    blocked: Container[tuple[bytes, int]],
) -> Reach:
    """What is said of a prefix, given what is said of the next one around it."""
    own = ports.get(key, ())
    if key in blocked:
        return Reach((), "block")
    if None in own:
        return Reach((), "allow")
    if outer.otherwise == "allow" or not own:
        return outer
    allowed = {port for port in own if port is not None}.union(outer.ports)
    if len(allowed) > MAX_PORTS:
        raise UsageError(
            f"{_prefix_text(key)}: allowed on {len(allowed)} ports,"
            f" with those of the prefixes around it; {MAX_PORTS} at most"
        )
    return Reach(tuple(sorted(allowed)), outer.otherwise)


def _with_translated(address: bytes, length: int) -> Iterator[tuple[bytes, int]]:
    """A key of ``flatten``; of an IPv4 prefix also the keys of the IPv6 prefixes to it."""
    yield address, length
    if length >= _IPV4[1] and address.startswith(_IPV4[0][:12]):
        yield _NAT64 + address[12:], length
        yield _6TO4 + address[12:] + bytes(10), length - _IPV4[1] + 8 * len(_6TO4)


def _prefix_text(key: tuple[bytes, int]) -> str:
    return str(unmapped(Prefix.from_mapped(6, *key)))


# Parsing

_PORT_OF_BLOCK = "a block is for all ports, and takes no port"


def parse_entry(text: str, option: str, *, is_block: bool = False) -> Entry:
    """Parse NAME, NAME:PORT, ADDR or CIDR with or without :PORT, or [IPV6]:PORT.

    A prefix with host bits set is refused: 10.0.0.1/8 may be meant as one address. So is a name
    that ends like an IPv4 address. A name in Unicode is converted to A-labels. ``option`` names the
    text in errors. Raises UsageError.
    """
    host, port = split_port(text, option)
    if is_block and port is not None:
        raise UsageError(f"{option}: {_PORT_OF_BLOCK}: {text!r}")
    before, slash, _ = host.partition("/")
    if ":" in host or is_like_ipv4(before):
        return PrefixEntry(_parse_prefix(host, option), port)
    if slash:
        raise UsageError(f"{option}: neither a prefix nor a name, which has no slash: {text!r}")
    return NameEntry(parse_name(host, option), port)


def _parse_prefix(text: str, option: str) -> Prefix:
    prefix = Prefix.parse(text, option=option)
    _, address = parse_address(text.partition("/")[0], option)
    canonical = unmapped(prefix)
    if address != prefix.address:
        raise UsageError(f"{option}: host bits are set in {text!r}; the prefix is {canonical}")
    return canonical
