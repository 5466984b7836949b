# SPDX-License-Identifier: GPL-2.0-only
"""A rule of the firewall, and what names it.

Hot: imported for every rule that a router inserts.
"""

from __future__ import annotations

from zfw_py.errors import UsageError
from zfw_py.values.prefix import Prefix

DIRECTIONS = ("ingress", "egress")
PROTOCOLS = ("tcp", "udp")
ACTIONS = ("intercept", "pass", "deny")

# Service ids are stored in so many bytes of UTF-8.
MAX_SERVICE_ID = 64
# IFNAMSIZ less its NUL.
MAX_INTERFACE_NAME = 15


# Ports that were read before: a batch names the same few again and again, and shares them.
_ports: dict[str, int] = {}


def parse_port(text: str, option: str) -> int:
    """Read a port, 0 to 65535: decimal digits and nothing else."""
    if text in _ports:
        return _ports[text]
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65535:
        raise UsageError(f"{option}: not a port within 0 to 65535: {text!r}")
    port = _ports[text] = int(text)
    return port


def parse_length(text: str, option: str) -> int:
    """Read a prefix length, 0 to 128; whether it fits the family is the prefix's affair."""
    if not (text.isascii() and text.isdigit()) or len(text) > 3 or int(text) > 128:
        raise UsageError(f"{option}: not a prefix length within 0 to 128: {text!r}")
    return int(text)


def parse_protocol(text: str, option: str) -> str:
    """Read ``tcp`` or ``udp``, in any case."""
    if text.lower() not in PROTOCOLS:
        raise UsageError(f"{option}: not tcp or udp: {text!r}")
    return text.lower()


def check_interface_name(name: str, option: str) -> str:
    """A name that an interface could have: 1 to 15 bytes, no slash, no blank."""
    encoded = name.encode("utf-8", "surrogateescape")
    if (
        not 0 < len(encoded) <= MAX_INTERFACE_NAME
        or name in (".", "..")
        or any(c <= 32 or c in (47, 58, 127) for c in encoded)
    ):
        raise UsageError(f"{option}: not an interface name: {name!r}")
    return name


def check_service_id(text: str, option: str) -> str:
    """A service id: up to 64 bytes, no blanks, no control characters."""
    if not text:
        return text
    if len(text) <= MAX_SERVICE_ID and text.isascii() and text.isprintable() and " " not in text:
        return text
    encoded = text.encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_SERVICE_ID:
        raise UsageError(f"{option}: longer than {MAX_SERVICE_ID} bytes: {text!r}")
    if any(c <= 32 or c == 127 for c in encoded):
        raise UsageError(f"{option}: blanks or control characters in {text!r}")
    return text


class RuleKey:
    """What names a rule: a second one with the same key replaces the first."""

    __slots__ = ("destination", "direction", "low_port", "protocol", "source")

    direction: str
    destination: Prefix
    source: Prefix
    protocol: str
    low_port: int

    def __init__(
        self,
        destination: Prefix,
        protocol: str,
        low_port: int,
        *,
        source: Prefix | None = None,
        direction: str = "ingress",
    ) -> None:
        """``source`` defaults to any address of the destination's family.

        0.0.0.0/0 counts as any for IPv6 as well: routers pass it with every rule.
        """
        if direction not in DIRECTIONS:
            raise UsageError(f"direction: not ingress or egress: {direction!r}")
        if protocol not in PROTOCOLS:
            raise UsageError(f"protocol: not tcp or udp: {protocol!r}")
        if not 0 <= low_port <= 65535:
            raise UsageError(f"low port: not within 0 to 65535: {low_port}")
        if source is None or (source.length == 0 and source.family == 4):
            source = Prefix.any(destination.family)
        if source.family != destination.family:
            raise UsageError(f"source {source} and destination {destination} differ in family")
        self.direction = direction
        self.destination = destination
        self.source = source
        self.protocol = protocol
        self.low_port = low_port

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.destination.family

    def __str__(self) -> str:
        origin = "" if self.source.length == 0 else f" from {self.source}"
        return f"{self.direction} {self.protocol} {self.destination}{origin} port {self.low_port}"

    def _tuple(self) -> tuple[object, ...]:
        return (self.direction, self.destination, self.source, self.protocol, self.low_port)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RuleKey):
            return NotImplemented
        return self._tuple() == other._tuple()

    def __hash__(self) -> int:
        return hash(self._tuple())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class Rule:
    """A rule: its key, the ports' other end, and what becomes of a packet.

    ``interfaces`` are names, sorted; they count only on interfaces that are set to
    per-interface rules. ``packets`` and ``bytes`` are filled by a listing.
    """

    __slots__ = (
        "action",
        "bytes",
        "high_port",
        "interfaces",
        "is_routed",
        "key",
        "packets",
        "service_id",
        "tproxy_port",
    )

    key: RuleKey
    high_port: int
    action: str
    tproxy_port: int
    service_id: str
    interfaces: tuple[str, ...]
    is_routed: bool
    packets: int
    bytes: int

    def __init__(
        self,
        key: RuleKey,
        high_port: int | None = None,
        *,
        tproxy_port: int = 0,
        deny: bool = False,
        service_id: str = "",
        interfaces: tuple[str, ...] | list[str] = (),
    ) -> None:
        """``tproxy_port`` 0 passes packets to the stack, else they go to 127.0.0.1 or ::1."""
        if high_port is None:
            high_port = key.low_port
        if not key.low_port <= high_port <= 65535:
            raise UsageError(f"high port {high_port} is not within {key.low_port} to 65535")
        if not 0 <= tproxy_port <= 65535:
            raise UsageError(f"tproxy port: not within 0 to 65535: {tproxy_port}")
        if deny and tproxy_port:
            raise UsageError(f"a deny rule has no tproxy port: {tproxy_port}")
        if key.direction == "egress" and tproxy_port:
            raise UsageError(f"an egress rule has no tproxy port: {tproxy_port}")
        self.key = key
        self.high_port = high_port
        self.action = "deny" if deny else "intercept" if tproxy_port else "pass"
        self.tproxy_port = tproxy_port
        self.service_id = check_service_id(service_id, "service id")
        self.interfaces = ()
        if interfaces:
            self.interfaces = tuple(
                sorted({check_interface_name(name, "interface") for name in interfaces})
            )
        self.is_routed = False
        self.packets = 0
        self.bytes = 0

    def __str__(self) -> str:
        last = "" if self.high_port == self.key.low_port else f"-{self.high_port}"
        return f"{self.key}{last} {self.action}"

    def __repr__(self) -> str:
        return f"<Rule {self}>"
