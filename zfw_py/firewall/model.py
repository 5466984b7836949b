# SPDX-License-Identifier: GPL-2.0-only
"""A rule of the firewall, its key, and the one place where both are checked.

``RuleText`` makes them of texts, as front ends have them; the constructors check the values.
Errors begin with a field's name in the front end that was used: each check takes it, or the
names of all fields. Hot: imported for every rule that a router inserts.
"""

from __future__ import annotations

from zfw_py.errors import UsageError
from zfw_py.values.prefix import Prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTIONS = ("ingress", "egress")
PROTOCOLS = ("tcp", "udp")
ACTIONS = ("intercept", "pass", "deny")

MAX_PORT = 65535
# Bytes of UTF-8, as a service id is stored.
MAX_SERVICE_ID = 64
# Bytes: IFNAMSIZ less its NUL.
MAX_INTERFACE_NAME = 15


# A rule's fields, and their names in errors of the library.
FIELDS = {
    field: field.replace("_", " ")
    for field in (
        "destination",
        "prefix_length",
        "source",
        "source_length",
        "protocol",
        "low_port",
        "high_port",
        "tproxy_port",
        "interfaces",
        "service_id",
        "direction",
    )
}

# Ports that were read before: a batch repeats the same few again and again, and shares them.
_ports: dict[str, int] = {}


def parse_port(text: str, option: str) -> int:
    """Read a port, 0 to 65535: decimal digits and nothing else."""
    if text in _ports:
        return _ports[text]
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        raise UsageError(f"{option}: not a port within 0 to {MAX_PORT}: {text!r}")
    port = _ports[text] = check_port(int(text), option)
    return port


def check_port(port: int, option: str) -> int:
    """Return the port. Raises UsageError unless it is within 0 to 65535."""
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"{option}: not a port within 0 to {MAX_PORT}: {str(port)!r}")
    return port


def parse_length(text: str, option: str) -> int:
    """Read a prefix length, 0 to 128; the Prefix checks that it fits the address family."""
    if not (text.isascii() and text.isdigit()) or len(text) > 3 or int(text) > 128:
        raise UsageError(f"{option}: not a prefix length within 0 to 128: {text!r}")
    return int(text)


def parse_protocol(text: str, option: str) -> str:
    """Read ``tcp`` or ``udp``, in any case."""
    return check_protocol(text.lower(), option)


def check_protocol(name: str, option: str) -> str:
    """Return the name. Raises UsageError unless it is ``tcp`` or ``udp``."""
    if name not in PROTOCOLS:
        raise UsageError(f"{option}: not tcp or udp: {name!r}")
    return name


def check_direction(name: str, option: str) -> str:
    """Return the name. Raises UsageError unless it is ``ingress`` or ``egress``."""
    if name not in DIRECTIONS:
        raise UsageError(f"{option}: not ingress or egress: {name!r}")
    return name


def check_source(source: Prefix | None, family: int, option: str) -> Prefix:
    """Return the source of a rule of this family, 4 or 6; None is any address.

    0.0.0.0/0 is any address for IPv6 as well: routers give it with every rule.
    """
    if source is None or (source.length == 0 and source.family == 4):
        return Prefix.any(family)
    if source.family != family:
        raise UsageError(f"{option}: {source} is not IPv{family} as the destination is")
    return source


def check_interface_name(name: str, option: str) -> str:
    """Return a name that an interface could have: 1 to 15 bytes, no slash, no blank."""
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b""
    if (
        not 0 < len(encoded) <= MAX_INTERFACE_NAME
        or name in (".", "..")
        or any(c <= 32 or c in (47, 58, 127) for c in encoded)
    ):
        raise UsageError(f"{option}: not an interface name: {name!r}")
    return name


def sorted_interfaces(names: tuple[str, ...] | list[str], option: str) -> tuple[str, ...]:
    """Return the names sorted, each once. Raises UsageError for what cannot be a name."""
    return tuple(sorted({check_interface_name(name, option) for name in names})) if names else ()


def check_service_id(text: str, option: str) -> str:
    """Return a service id: up to 64 bytes, no blanks, no control characters."""
    if not text:
        return text
    if len(text) <= MAX_SERVICE_ID and text.isascii() and text.isprintable() and " " not in text:
        return text
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{option}: not text") from None
    if len(encoded) > MAX_SERVICE_ID:
        raise UsageError(f"{option}: longer than {MAX_SERVICE_ID} bytes: {text!r}")
    if any(c <= 32 or c == 127 for c in encoded):
        raise UsageError(f"{option}: blanks or control characters in {text!r}")
    return text


class OwnAddresses(Prefix):
    """A destination: each address of this host's interfaces, but those that zfw made local.

    There is one of each family, ``OWN4`` and ``OWN6``, whose texts are own4 and own6. It has the
    length of a single address, and zeros in place of one.
    """

    __slots__ = ()

    def __init__(self, family: int) -> None:
        bits = 32 if family == 4 else 128
        super().__init__(family, bytes(bits // 8), bits)

    def __str__(self) -> str:
        return f"own{self.family}"

    def __repr__(self) -> str:
        return f"OWN{self.family}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnAddresses) and other.family == self.family

    def __hash__(self) -> int:
        return hash(str(self))


OWN4, OWN6 = OwnAddresses(4), OwnAddresses(6)
_OWN = {str(own): own for own in (OWN4, OWN6)}


def parse_destination(text: str, length: int | None, option: str, length_option: str) -> Prefix:
    """Read ``own4``, ``own6``, or what ``Prefix.parse`` reads."""
    own = _OWN.get(text)
    if own is None:
        return Prefix.parse(text, length, option)
    if length is not None:
        raise UsageError(f"{length_option}: not together with {own}")
    return own


class RuleKey:
    """The key of a rule: a rule that has the key of another one replaces it."""

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
        names: Mapping[str, str] = FIELDS,
    ) -> None:
        """``source`` defaults to any address; ``names`` are those of the fields in errors."""
        self.direction = check_direction(direction, names["direction"])
        if direction == "egress" and isinstance(destination, OwnAddresses):
            raise UsageError(
                f"{names['destination']}: nothing leaves for {destination}: a rule for it is one"
                " of ingress"
            )
        self.destination = destination
        self.source = check_source(source, destination.family, names["source"])
        self.protocol = check_protocol(protocol, names["protocol"])
        self.low_port = check_port(low_port, names["low_port"])

    @classmethod
    def trusted(
        cls, direction: str, destination: Prefix, source: Prefix, protocol: str, low_port: int
    ) -> RuleKey:
        """From values that were checked before, as those in the maps."""
        self = cls.__new__(cls)
        self.direction, self.destination, self.source = direction, destination, source
        self.protocol, self.low_port = protocol, low_port
        return self

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
    """A rule: its key, its last port, and its action on a packet.

    ``interfaces`` are names, sorted. With ``is_limited`` the rule counts on these alone. Without
    it, as in the classic grammar, interfaces that lack the setting per_interface_rules do not
    look at the names. A listing fills in ``is_routed``, ``packets`` and ``bytes``.
    """

    __slots__ = (
        "action",
        "bytes",
        "high_port",
        "interfaces",
        "is_limited",
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
    is_limited: bool
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
        limited: bool = True,
        names: Mapping[str, str] = FIELDS,
    ) -> None:
        """``tproxy_port`` 0 passes packets to the stack; another is on 127.0.0.1 or ::1.

        ``high_port`` defaults to the low port; ``limited`` is of no account where the rule names
        no interface; ``names`` are those of the fields in errors.
        """
        low_port = key.low_port
        if high_port is None:
            high_port = low_port
        if check_port(high_port, names["high_port"]) < low_port:
            raise UsageError(f"{names['high_port']}: {high_port} is below the low port {low_port}")
        if check_port(tproxy_port, names["tproxy_port"]) and (deny or key.direction == "egress"):
            kind = "a deny" if deny else "an egress"
            raise UsageError(f"{names['tproxy_port']}: {kind} rule cannot intercept; use 0")
        self.key = key
        self.high_port = high_port
        self.action = "deny" if deny else "intercept" if tproxy_port else "pass"
        self.tproxy_port = tproxy_port
        self.service_id = check_service_id(service_id, names["service_id"])
        self.interfaces = sorted_interfaces(interfaces, names["interfaces"])
        self.is_limited = limited and bool(self.interfaces)
        self.is_routed = False
        self.packets = 0
        self.bytes = 0

    @classmethod
    def trusted(
        cls,
        key: RuleKey,
        high_port: int,
        action: str,
        tproxy_port: int,
        service_id: str,
        interfaces: tuple[str, ...],
        is_limited: bool,
        is_routed: bool,
    ) -> Rule:
        """From values that were checked before, as those in the maps; counters are 0."""
        self = cls.__new__(cls)
        self.key, self.high_port, self.action = key, high_port, action
        self.tproxy_port, self.service_id = tproxy_port, service_id
        self.interfaces, self.is_limited, self.is_routed = interfaces, is_limited, is_routed
        self.packets = self.bytes = 0
        return self

    def __str__(self) -> str:
        last = "" if self.high_port == self.key.low_port else f"-{self.high_port}"
        return f"{self.key}{last} {self.action}"

    def __repr__(self) -> str:
        return f"<Rule {self}>"


class RuleText:
    """The fields of a rule as texts, of which rules, keys and filters are made.

    Methods raise UsageError, which begins with the name of the field at fault.
    """

    __slots__ = ("_has_own", "_names", "_texts")

    def __init__(
        self, texts: Mapping[str, str], names: Mapping[str, str], *, has_own: bool = False
    ) -> None:
        """``texts`` by field; a field that was not given is missing. ``names`` has all FIELDS.

        ``has_own``: a destination may be own4 or own6. The classic grammar does not have them.
        """
        self._texts = texts
        self._names = names
        self._has_own = has_own

    def rule(
        self,
        interfaces: tuple[str, ...] | list[str] = (),
        *,
        limited: bool = True,
        deny: bool = False,
    ) -> Rule:
        """The rule. It needs a destination, a protocol and a low port."""
        return Rule(
            self.key(),
            self._port("high_port") if "high_port" in self._texts else None,
            tproxy_port=self._port("tproxy_port") if "tproxy_port" in self._texts else 0,
            deny=deny,
            service_id=self._texts.get("service_id", ""),
            interfaces=interfaces,
            limited=limited,
            names=self._names,
        )

    def key(self) -> RuleKey:
        """The key, which needs the same three."""
        return RuleKey(
            self.destination(),
            self.protocol(),
            self._port("low_port"),
            source=self._source(),
            direction=self._texts.get("direction", "ingress"),
            names=self._names,
        )

    def check_the_rest(self) -> None:
        """Check the syntax of those fields that are no part of the key."""
        for field in ("high_port", "tproxy_port"):
            if field in self._texts:
                self._port(field)
        check_service_id(self._texts.get("service_id", ""), self._names["service_id"])

    def destination(self) -> Prefix:
        """The destination: an address with its length, or without one for a single address."""
        return self._prefix("destination", "prefix_length", has_own=self._has_own)

    def source(self, family: int) -> Prefix | None:
        """The source, where a destination of this family may have one; None if not given."""
        source = self._source()
        return source and check_source(source, family, self._names["source"])

    def protocol(self) -> str:
        """The protocol, whose text may be in capitals."""
        return parse_protocol(self._required("protocol"), self._names["protocol"])

    def _source(self) -> Prefix | None:
        if "source" not in self._texts:
            # Routers give a length of 0 alone for any source.
            length = self._texts.get("source_length", "0")
            if parse_length(length, self._names["source_length"]) == 0:
                return None
        return self._prefix("source", "source_length")

    def _prefix(self, field: str, length_field: str, *, has_own: bool = False) -> Prefix:
        text = self._required(field, length_field)
        length = None
        if length_field in self._texts:
            length = parse_length(self._texts[length_field], self._names[length_field])
        if has_own:
            names = self._names[field], self._names[length_field]
            return parse_destination(text, length, *names)
        return Prefix.parse(text, length, self._names[field])

    def _port(self, field: str) -> int:
        return parse_port(self._required(field), self._names[field])

    def _required(self, field: str, by: str | None = None) -> str:
        text = self._texts.get(field)
        if text is None:
            needed = f", {self._names[by]} needs it" if by and by in self._texts else ""
            raise UsageError(f"{self._names[field]}: missing{needed}")
        return text
