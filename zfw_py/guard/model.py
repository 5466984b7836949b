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
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from zfw_py.errors import UsageError
from zfw_py.values.dns_name import ROOT, is_like_ipv4, parse_name
from zfw_py.values.endpoint import Endpoint, Server, split_port
from zfw_py.values.prefix import Prefix, parse_address, unmapped

Default = Literal["deny", "allow"]
Otherwise = Literal["none", "allow", "block"]

# What one element of the kernel's trie holds.
MAX_PORTS = 62
# The ports of a name that is allowed on all of them. Empty: a set that was read as a
# set of ports, by who forgot to ask for this, opens nothing.
ANY_PORT: frozenset[int] = frozenset()
# No entry's ports: none has port 0.
_UNSAID = frozenset({0})

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
        return text if self.port is None else str(Endpoint(text, self.port))


Entry = NameEntry | PrefixEntry


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
    return str(unmapped(Prefix.from_mapped(6, *key)))


# Reading

_PORT_OF_BLOCK = "a block is for all ports, and names none"


def parse_entry(text: str, option: str, *, is_block: bool = False) -> Entry:
    """Read NAME, NAME:PORT, ADDR, CIDR, either with :PORT, or IPv6 with a port in brackets.

    A prefix with host bits set is refused: 10.0.0.1/8 could be meant to be as
    narrow as it looks. So is as a name what ends like an IPv4 address. A name in
    Unicode becomes its A-labels. ``option`` names where the text came from.

    Raises UsageError.
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
