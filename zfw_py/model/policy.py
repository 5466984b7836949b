# SPDX-License-Identifier: GPL-2.0-only
"""What a guarded program may reach: entries of names and prefixes, and what they come to. Pure.

An entry is a name or a prefix, with a port if it is allowed on that one only::

    example.com    10.0.0.0/8     10.0.0.1        2001:db8::/32
    example.com:443  10.0.0.0/8:443  10.0.0.1:443  [2001:db8::/32]:443

Of names the longest decides: its ports are the ones that the addresses of the
name may be reached on. Of prefixes the longest that says anything about the port
decides: 10.1.0.0/16:443 leaves port 80 to 10.0.0.0/8 around it. A block is for
all ports, and counts before an allow of the same name or prefix.
"""

from __future__ import annotations

import re
from functools import cached_property
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from zfw_py.errors import UsageError
from zfw_py.model.prefix import Prefix, parse_address

Default = Literal["deny", "allow"]
Otherwise = Literal["none", "allow", "block"]

DNS_PORT = 53
# What one element of the kernel's trie holds.
MAX_PORTS = 62
# The ports of a name that is allowed on all of them. Empty: a set that was read as a
# set of ports, by who forgot to ask for this, opens nothing.
ANY_PORT: frozenset[int] = frozenset()
ROOT = "."
# No entry's ports: none has port 0.
_UNSAID = frozenset({0})

# RFC 1035, section 2.3.4, as text without the root's dot.
_MAX_NAME = 253
_MAX_LABEL = 63
# More than a name of 253 octets can have before it is in A-labels.
_MAX_TEXT = 1024
_LABEL = re.compile(r"[a-z0-9_-]+")
# What separates the labels of a name in Unicode (RFC 3490, section 3.1).
_DOTS = re.compile("[.\u3002\uff0e\uff61]")
# With these IDNA 2003 makes another name than IDNA 2008 (UTS 46, section 7).
_DEVIATIONS = frozenset("\u00df\u03c2\u1e9e\u200c\u200d")
_ESCAPED = re.compile(r"\\.?", re.DOTALL)
# ::ffff:0:0/96, which is 0.0.0.0/0.
_IPV4 = Prefix.any(4).mapped
# RFC 1122, section 3.2.1.3, and RFC 4291, section 2.5.3.
_LOOPBACK = (Prefix(4, b"\x7f\0\0\0", 8).mapped, Prefix(6, bytes(15) + b"\1", 128).mapped)


class NameEntry(NamedTuple):
    """A name and all names below it.

    ``name`` is in A-labels and lower case, without a dot at its end; "." is the
    root, which covers every name. ``port`` is None for any port.
    """

    name: str
    port: int | None = None

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


class PrefixEntry(NamedTuple):
    """The addresses of a prefix. ``port`` is None for any port."""

    prefix: Prefix
    port: int | None = None

    def __str__(self) -> str:
        prefix = self.prefix
        is_address = prefix.length == 8 * len(prefix.address)
        text = prefix.address_text if is_address else str(prefix)
        return text if self.port is None else _with_port(prefix.family, text, self.port)


Entry = NameEntry | PrefixEntry


class Server(NamedTuple):
    """A DNS server: ``family`` 4 or 6, ``address`` in network order (4 or 16 bytes), port."""

    family: int
    address: bytes
    port: int = DNS_PORT

    @property
    def address_text(self) -> str:
        """The address alone, as text."""
        return str(ip_address(self.address))

    def __str__(self) -> str:
        return _with_port(self.family, self.address_text, self.port)


class Reach(NamedTuple):
    """What the entries of a prefix and of all around it come to, for the addresses in it.

    ``ports`` (sorted) may be reached. Every other port may be reached where
    ``otherwise`` is "allow", which has no ports beside it, and may not where it is
    "block". "none" leaves it to the addresses learnt from DNS, and then to the
    policy's default.
    """

    ports: tuple[int, ...]
    otherwise: Otherwise


_NOTHING = Reach((), "none")


class Policy(Struct, frozen=True, kw_only=True, dict=True):
    """What a guarded program may reach.

    ``default`` is None where none was given: what no entry decides is then denied,
    except by a policy that only blocks: it means everything but that. With
    ``has_loopback`` it is as if there were allow entries 127.0.0.0/8 and ::1, but for
    what the default is. With ``is_log_only`` nothing is denied, only logged.
    ``dns_upstreams`` are the servers to ask; if there are none, they are not chosen here.

    Raises UsageError for a block with a port.
    """

    allow: tuple[Entry, ...] = ()
    block: tuple[Entry, ...] = ()
    default: Default | None = None
    has_loopback: bool = True
    is_log_only: bool = False
    dns_upstreams: tuple[Server, ...] = ()

    def __post_init__(self) -> None:
        """Check what the types cannot."""
        for entry in self.block:
            if entry.port is not None:
                raise UsageError(f"block: {_PORT_OF_BLOCK}: '{entry}'")

    @property
    def is_allowed_by_default(self) -> bool:
        """Whether what no entry decides may be reached."""
        if self.default is not None:
            return self.default == "allow"
        return bool(self.block) and not self.allow

    def merged(self, other: Policy) -> Policy:
        """This policy with another's entries added, the file's with the command line's.

        The other's default and DNS servers, if it has any, count instead of these.
        Loopback has to be allowed by both, and either can say to log only.
        """
        return Policy(
            allow=tuple(dict.fromkeys(self.allow + other.allow)),
            block=tuple(dict.fromkeys(self.block + other.block)),
            default=self.default if other.default is None else other.default,
            has_loopback=self.has_loopback and other.has_loopback,
            is_log_only=self.is_log_only or other.is_log_only,
            dns_upstreams=other.dns_upstreams or self.dns_upstreams,
        )

    def as_object(self) -> dict[str, Any]:
        """The policy as a file has it, every value told; ``policy_file`` reads it back."""
        made: dict[str, Any] = {} if self.default is None else {"default": self.default}
        return made | {
            "allow": [str(entry) for entry in self.allow],
            "block": [str(entry) for entry in self.block],
            "dns_upstream": [str(server) for server in self.dns_upstreams],
            "loopback": self.has_loopback,
            "log_only": self.is_log_only,
        }

    def ports_of_name(self, name: str) -> frozenset[int] | None:
        """The ports that the addresses of a name may be reached on: ANY_PORT, or these.

        None: the name is refused. ``name`` is in the master file format of RFC 1035
        (A-labels, escapes, in any case, the dot at the end or not), as dnspython
        writes names. Takes a look-up for each label.
        """
        ports = self._entries_of(name)
        if ports is _UNSAID:
            return ANY_PORT if self.is_allowed_by_default else None
        return ports

    def is_blocked_name(self, name: str) -> bool:
        """Whether an entry blocks a name, and not the default alone."""
        return self._entries_of(name) is None

    def _entries_of(self, name: str) -> frozenset[int] | None:
        """What the longest entry says of a name, or _UNSAID."""
        # No entry has an escaped character, and a dot that is one separates no labels.
        rest = _ESCAPED.sub("?", name).removesuffix(".").lower() if name.isascii() else ""
        table = self._ports_of_names
        while rest:
            if rest in table:
                return table[rest]
            rest = rest.partition(".")[2]
        return table.get(ROOT, _UNSAID)

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
        """The prefix entries, so that the longest prefix that has an address tells it all.

        The keys are ``Prefix.mapped``: 16 bytes, IPv4 as ::ffff:a.b.c.d, and a length
        of 0 to 128. Loopback is among them where it may be reached. An IPv6 prefix
        around ::ffff:0:0/96 says nothing about IPv4, which has an element of its own
        for that. Raises UsageError for a prefix with more than 62 ports, those of the
        prefixes around it included.
        """
        ports: dict[tuple[bytes, int], set[int | None]] = {}
        if self.has_loopback:
            ports = {key: {None} for key in _LOOPBACK}
        for entry in self.allow:
            if isinstance(entry, PrefixEntry):
                ports.setdefault(entry.prefix.mapped, set()).add(entry.port)
        blocked = {entry.prefix.mapped for entry in self.block if isinstance(entry, PrefixEntry)}
        keys = ports.keys() | blocked
        if any(Prefix(6, _IPV4[0], length).mapped in keys for length in range(_IPV4[1])):
            keys.add(_IPV4)

        flat: dict[tuple[bytes, int], Reach] = {}
        # The prefixes around the one at hand, with their last addresses: sorted, a
        # prefix comes right before those in it.
        around: list[tuple[int, Reach]] = []
        for key in sorted(keys):
            first = int.from_bytes(key[0], "big")
            last = first | ((1 << (128 - key[1])) - 1)
            while around and around[-1][0] < first:
                around.pop()
            outer = around[-1][1] if around and key != _IPV4 else _NOTHING
            own = ports.get(key, ())
            if key in blocked:
                reach = Reach((), "block")
            elif None in own:
                reach = Reach((), "allow")
            elif outer.otherwise == "allow" or not own:
                reach = outer
            else:
                allowed = {port for port in own if port is not None}.union(outer.ports)
                if len(allowed) > MAX_PORTS:
                    raise UsageError(
                        f"{_prefix_text(key)}: allowed on {len(allowed)} ports,"
                        f" with those of the prefixes around it; {MAX_PORTS} at most"
                    )
                reach = Reach(tuple(sorted(allowed)), outer.otherwise)
            flat[key] = reach
            around.append((last, reach))
        return flat


def _prefix_text(key: tuple[bytes, int]) -> str:
    return str(_unmapped(Prefix.from_mapped(6, *key)))


def _unmapped(prefix: Prefix) -> Prefix:
    """The IPv4 prefix that one of IPv4-mapped addresses means."""
    # Its host bits are zero: with these bits it is not shorter than 96.
    if prefix.family == 6 and prefix.address.startswith(_IPV4[0][:12]):
        return Prefix.from_mapped(4, prefix.address, prefix.length)
    return prefix


def _with_port(family: int, text: str, port: int) -> str:
    return f"[{text}]:{port}" if family == 6 else f"{text}:{port}"


# Reading

_PORT_OF_BLOCK = "a block is for all ports, and names none"


def parse_entry(text: str, option: str, *, is_block: bool = False) -> Entry:
    """Read NAME, NAME:PORT, ADDR, CIDR, either with :PORT, or IPv6 with a port in brackets.

    A prefix with host bits set is refused: 10.0.0.1/8 could be meant to be as
    narrow as it looks. So is as a name what ends like an IPv4 address. A name in
    Unicode becomes its A-labels. ``option`` names where the text came from.

    Raises UsageError.
    """
    host, port = _split_port(text, option)
    if is_block and port is not None:
        raise UsageError(f"{option}: {_PORT_OF_BLOCK}: {text!r}")
    before, slash, _ = host.partition("/")
    if ":" in host or _is_like_ipv4(before):
        return PrefixEntry(_parse_prefix(host, option), port)
    if slash:
        raise UsageError(f"{option}: neither a prefix nor a name, which has no slash: {text!r}")
    return NameEntry(_parse_name(host, option), port)


def parse_server(text: str, option: str) -> Server:
    """Read ADDR or ADDR:PORT, IPv6 with a port in brackets; the port is 53 if not given.

    Raises UsageError, for a name and for an address that no server has as well.
    """
    host, port = _split_port(text, option)
    prefix = _unmapped(Prefix(*parse_address(host, option), 128 if ":" in host else 32))
    address = ip_address(prefix.address)
    if address.is_unspecified or address.is_multicast or prefix.address == b"\xff" * 4:
        raise UsageError(f"{option}: not the address of one server: {text!r}")
    return Server(prefix.family, prefix.address, DNS_PORT if port is None else port)


def _split_port(text: str, option: str) -> tuple[str, int | None]:
    """What is before the port, without brackets; with a colon in it, it should be IPv6."""
    if not text:
        raise UsageError(f"{option}: empty")
    if len(text) > _MAX_TEXT:
        raise UsageError(f"{option}: longer than {_MAX_TEXT} characters: {text[:32]!r}...")
    if any(c.isspace() or c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise UsageError(f"{option}: blanks or control characters in {text!r}")
    if "://" in text:
        raise UsageError(f"{option}: a URL, where the name of its host is wanted: {text!r}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or not (rest == "" or rest.startswith(":")):
            raise UsageError(f"{option}: not IPv6 in brackets, with or without :PORT: {text!r}")
        return host, _parse_port(rest[1:], text, option) if rest else None
    if text.count(":") > 1:
        if ":" in text.partition("/")[2]:
            raise UsageError(f"{option}: IPv6 with a port is [ADDR/LEN]:PORT, not {text!r}")
        return text, None
    host, colon, rest = text.partition(":")
    return host, _parse_port(rest, text, option) if colon else None


def _parse_port(port: str, text: str, option: str) -> int:
    is_plain = port.isascii() and port.isdigit() and not port.startswith("0") and len(port) <= 5
    if not is_plain or int(port) > 65535:
        raise UsageError(f"{option}: the port of {text!r} is not within 1 to 65535")
    return int(port)


def _is_like_ipv4(name: str) -> bool:
    """Whether the last label is a number: no name of a host ends so (RFC 1123, section 2.1)."""
    last = name.removesuffix(".").rpartition(".")[2]
    return last.isascii() and last.isdigit()


def _parse_prefix(text: str, option: str) -> Prefix:
    prefix = Prefix.parse(text, option=option)
    _, address = parse_address(text.partition("/")[0], option)
    canonical = _unmapped(prefix)
    if address != prefix.address:
        raise UsageError(f"{option}: host bits are set in {text!r}; the prefix is {canonical}")
    return canonical


def _parse_name(text: str, option: str) -> str:
    """The canonical form of a name."""
    if text == ROOT:
        return ROOT
    if text == "*" or text.startswith("*."):
        covering = text[2:] or ROOT
        raise UsageError(f"{option}: '{covering}' covers all names below it: {text!r}")
    labels = (text if text.isascii() else _DOTS.sub(".", text)).split(".")
    if len(labels) > 1 and not labels[-1]:
        labels.pop()
    for index, label in enumerate(labels):
        made = labels[index] = label.lower() if label.isascii() else _a_label(label, text, option)
        if not made:
            raise UsageError(f"{option}: an empty label in {text!r}")
        if len(made) > _MAX_LABEL:
            raise UsageError(f"{option}: a label of more than {_MAX_LABEL} octets in {text!r}")
        if not _LABEL.fullmatch(made):
            raise UsageError(
                f"{option}: other than letters, digits, hyphens and underscores in {text!r}"
            )
    name = ".".join(labels)
    if len(name) > _MAX_NAME:
        raise UsageError(f"{option}: a name of more than {_MAX_NAME} octets: {text!r}")
    if _is_like_ipv4(name):
        raise UsageError(f"{option}: not an IPv4 or IPv6 address: {text!r}")
    return name


def _a_label(label: str, text: str, option: str) -> str:
    """By IDNA 2008 if the package idna is there, else by the standard library's IDNA 2003."""
    from dns.exception import DNSException
    from dns.name import IDNA_2003_Practical, IDNA_2008_Practical, have_idna_2008

    if not have_idna_2008 and not _DEVIATIONS.isdisjoint(label):
        # The entry would be for another name than with the package.
        raise UsageError(f"{option}: needs the Python package idna, or A-labels (xn--): {text!r}")
    codec = IDNA_2008_Practical if have_idna_2008 else IDNA_2003_Practical
    try:
        return codec.encode(label).decode("ascii").lower()
    except (DNSException, UnicodeError):
        raise UsageError(f"{option}: {label!r} is no label of a name: {text!r}") from None
