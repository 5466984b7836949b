# SPDX-License-Identifier: GPL-2.0-only
"""Parses, formats and compares IPv4 and IPv6 prefixes, whose host bits are zero. Hot.

The hot path imports this module for every rule that a router inserts.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from zfw_py.errors import UsageError

# The first 12 bytes of an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
IPV4_MAPPED = b"\0" * 10 + b"\xff\xff"


def mapped_address(family: int, address: bytes) -> bytes:
    """An address as 16 bytes in network order: IPv4 as ::ffff:a.b.c.d."""
    return IPV4_MAPPED + address if family == 4 else address


def address_text(address: bytes) -> str:
    """The text of an address of 16 bytes in network order; ::ffff:a.b.c.d is a.b.c.d."""
    if address.startswith(IPV4_MAPPED):
        return inet_ntop(AF_INET, address[12:])
    return inet_ntop(AF_INET6, address)


def parse_address(text: str, option: str) -> tuple[int, bytes]:
    """Read an address: (4 or 6, the address's 4 or 16 bytes in network order).

    IPv4 must be a dotted quad: 1.2.3 and 0x7f000001 are refused. Raises UsageError whose
    message begins with ``option``.
    """
    try:
        return 4, inet_pton(AF_INET, text)
    except (OSError, UnicodeError, ValueError):
        pass
    try:
        return 6, inet_pton(AF_INET6, text)
    except (OSError, UnicodeError, ValueError):
        raise UsageError(f"{option}: not an IPv4 or IPv6 address: {text!r}") from None


class Prefix:
    """A prefix: ``family`` 4 or 6, ``address`` in network order, ``length`` in bits."""

    __slots__ = ("address", "family", "length")

    family: int
    address: bytes
    length: int

    def __init__(self, family: int, address: bytes, length: int) -> None:
        """``address``: 4 or 16 bytes in network order; its host bits are set to 0."""
        bits = 32 if family == 4 else 128
        if not 0 <= length <= bits:
            raise UsageError(f"prefix length {length} is not within 0 to {bits}")
        host = bits - length
        if host:
            value = int.from_bytes(address, "big") >> host << host
            address = value.to_bytes(bits // 8, "big")
        self.family = family
        self.address = address
        self.length = length

    @classmethod
    def parse(cls, text: str, length: int | None = None, option: str = "prefix") -> Prefix:
        """Read ``ADDR`` or ``ADDR/LEN``. Raises UsageError whose message begins with ``option``.

        ``length`` is for a length that is not part of the text. Without any length the prefix
        is the one address. Two different lengths are refused.
        """
        address_text, slash, length_text = text.partition("/")
        family, address = parse_address(address_text, option)
        bits = 32 if family == 4 else 128
        if slash:
            if (
                not (length_text.isascii() and length_text.isdigit())
                or len(length_text) > 3
                or int(length_text) > bits
            ):
                raise UsageError(f"{option}: prefix length of {text!r} is not within 0 to {bits}")
            if length is not None and length != int(length_text):
                raise UsageError(f"{option}: {text!r} contradicts the prefix length {length}")
            length = int(length_text)
        if length is None:
            length = bits
        if not 0 <= length <= bits:
            raise UsageError(
                f"{option}: prefix length {length} of {text!r} is not within 0 to {bits}"
            )
        return cls(family, address, length)

    @classmethod
    def any(cls, family: int) -> Prefix:
        """The prefix of length 0: 0.0.0.0/0 or ::/0."""
        return _ANY4 if family == 4 else _ANY6

    @property
    def mapped(self) -> tuple[bytes, int]:
        """The address as 16 bytes, IPv4 as ::ffff:a.b.c.d, and the length in these 128 bits."""
        if self.family == 4:
            return IPV4_MAPPED + self.address, self.length + 96
        return self.address, self.length

    @classmethod
    def from_mapped(cls, family: int, address: bytes, length: int) -> Prefix:
        """The inverse of ``mapped``; the host bits must be zero."""
        self = cls.__new__(cls)
        self.family = family
        if family == 4:
            self.address, self.length = address[12:], length - 96
        else:
            self.address, self.length = address, length
        return self

    @property
    def address_text(self) -> str:
        """The address alone, as text."""
        return inet_ntop(AF_INET if self.family == 4 else AF_INET6, self.address)

    def __str__(self) -> str:
        return f"{self.address_text}/{self.length}"

    def __repr__(self) -> str:
        return f"Prefix.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prefix):
            return NotImplemented
        return self.address == other.address and self.length == other.length

    def __hash__(self) -> int:
        return hash((self.address, self.length))


_ANY4 = Prefix(4, bytes(4), 0)
_ANY6 = Prefix(6, bytes(16), 0)


def unmapped(prefix: Prefix) -> Prefix:
    """The IPv4 prefix of IPv4-mapped addresses; any other prefix is returned as it is."""
    # Because host bits are zero, a prefix with these bits has a length of at least 96.
    if prefix.family == 6 and prefix.address.startswith(IPV4_MAPPED):
        return Prefix.from_mapped(4, prefix.address, prefix.length)
    return prefix
