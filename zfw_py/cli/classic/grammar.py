# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar: options only, read by the rules of argp, checked, and put in order.

Hot: imported for every rule that a router inserts. Pure: nothing here touches the kernel,
looks for an interface or prints; ``parse`` says what was asked for, its caller does it.
"""

from __future__ import annotations

from zfw_py.errors import UsageError, ZfwError
from zfw_py.firewall.model import (
    DIRECTIONS,
    Rule,
    RuleKey,
    check_interface_name,
    check_service_id,
    parse_length,
    parse_port,
    parse_protocol,
)
from zfw_py.values.prefix import Prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Heading, then its options: short, long, what the argument is called ("" without one), help.
# Every word that parsing, usage and help know of an option stands here.
GROUPS = (
    (
        "What to do with rules",
        (
            ("I", "insert", "", "add a rule or replace it: needs -c -m -l -h -t -p"),
            ("D", "delete", "", "delete a rule: needs -c -m -l -p, and -o -n if it has them"),
            ("F", "flush", "", "delete all rules, or those of one direction (-z)"),
            ("L", "list", "", "list the IPv4 rules; with -6 -E -G -U -Y -C something else"),
        ),
    ),
    (
        "A rule",
        (
            ("c", "dcidr-block", "ADDR[/LEN]", "destination, IPv4 or IPv6"),
            ("m", "dprefix-len", "LEN", "prefix length of the destination"),
            ("o", "ocidr-block", "ADDR[/LEN]", "source; any if not given"),
            ("n", "oprefix-len", "LEN", "prefix length of the source"),
            ("l", "low-port", "PORT", "first destination port"),
            ("h", "high-port", "PORT", "last destination port (-h is not help)"),
            ("t", "tproxy-port", "PORT", "the local listener's port; 0 passes packets to the host"),
            ("p", "protocol", "tcp|udp", "protocol"),
            ("d", "disable", "", "with -I: deny; with -X: detach; with a setting: turn it off"),
            ("N", "interface", "IF", "only on this interface, if it is set to -P; repeatable"),
            ("r", "route", "", "make the destination local as well; with -D, -F: no longer"),
            ("s", "service-id", "ID", "name of the service that the rule belongs to"),
            ("z", "direction", "ingress|egress", "ingress if not given, but both with -F"),
        ),
    ),
    (
        "What to list (with -L)",
        (
            ("i", "intercepts", "", "only rules that intercept"),
            ("f", "passthrough", "", "only rules that pass packets to the host"),
            ("E", "list-diag", "", "each interface's settings"),
            ("G", "list-gc-sessions", "", "remove the sessions that have expired"),
            ("U", "list-ddos-dports", "", "ports protected by -a"),
            ("Y", "list-ddos-saddr", "", "sources that -a lets through"),
            ("C", "list-dnp3-fcodes", "", "DNP3 function codes that -S lets through"),
        ),
    ),
    (
        "Programs on interfaces",
        (
            ("X", "set-tc-filter", "IF|all", "attach the program of -O in direction -z"),
            ("O", "object-file", "PATH", "the program that -X attaches"),
            ("H", "init-tc", "IF|all", "attach both directions"),
            ("Z", "init-xdp", "IF", "attach the XDP program of a tunnel interface"),
            ("Q", "disable-ebpf", "", "detach everywhere and remove all state"),
        ),
    ),
    (
        "Settings of an interface (-d turns off)",
        (
            ("e", "icmp-echo", "IF|all", "answer pings"),
            ("x", "disable-ssh", "IF|all", "no longer let SSH to the interface itself through"),
            ("P", "per-interface-rules", "IF|all", "only rules with -N of this interface apply"),
            ("q", "pass-non-tuple", "IF|all", "pass all that is neither TCP nor UDP"),
            ("6", "ipv6-enable", "IF|all", "let IPv6 through the rules; -L -6 all lists IPv6"),
            ("v", "verbose", "IF|all", "trace packets"),
            ("R", "vrrp-enable", "IF|all", "pass VRRP"),
            ("w", "enable-eapol", "IF|all", "pass EAPOL frames"),
            ("T", "set-tun-mode", "IF|all", "intercept into the tunnel interface"),
            ("b", "outbound-filtering", "IF|all", "apply the egress rules"),
            ("k", "masquerade", "IF|all", "rewrite the source of what leaves"),
            ("a", "ddos-filtering", "IF|all", "protected ports take listed sources only"),
            ("S", "ot-filtering", "IF|all", "check DNP3 and Modbus responses"),
        ),
    ),
    (
        "Tables (-d deletes)",
        (
            ("u", "ddos-dport-add", "PORT", "protect a port"),
            ("y", "ddos-saddr-add", "ADDR", "let a source through"),
            ("g", "dnp3-fcode-add", "CODE", "let a DNP3 function code through"),
            ("B", "bind-saddr-add", "ADDR", "make an address local; -m is its length"),
            ("J", "bind-saddr-delete", "ADDR", "the inverse of -B, which counts"),
            ("j", "bind-flush", "", "with -F: remove all addresses of -B, and nothing else"),
        ),
    ),
    (
        "Other",
        (
            ("M", "monitor", "IF|all", "print events as they happen"),
            ("W", "write-log", "PATH", "with -M: append the events to a file"),
            ("A", "add-user-rules", "", "run /opt/openziti/bin/user/user_rules.sh"),
            ("?", "help", "", "print this"),
            ("", "usage", "", "print the options without explanations"),
            ("V", "version", "", "print the version"),
        ),
    ),
)

_OPTIONS = {option[0]: option for _, options in GROUPS for option in options}
_FLAGS = {option[0]: f"-{option[0]}, --{option[1]}" for option in _OPTIONS.values()}

# As argp does, these act where they stand: nothing after them is read.
_AT_ONCE = {"?": "help", "": "usage", "V": "version"}

# Understood, but what they ask for is not there yet.
_LATER = "TkauySgZMWUYC"

_SETTINGS = {
    "e": "icmp_echo",
    "x": "ssh",
    "6": "ipv6",
    "P": "per_interface_rules",
    "q": "pass_non_tuple",
    "v": "verbose",
    "b": "outbound_filter",
    "R": "vrrp",
    "w": "eapol",
}

# Options that mean something only next to one of these.
_NEEDS = {
    "c": "IDL",
    "m": "IDLBJ",
    "o": "IDL",
    "n": "IDL",
    "p": "IDL",
    "l": "ID",
    "h": "ID",
    "t": "ID",
    "s": "ID",
    "N": "ID",
    "r": "IDF",
    "z": "IDFLX",
    "d": "IDX" + "".join(_SETTINGS) + "RwTbkaSuyg",
    "O": "X",
    "i": "L",
    "f": "L",
    "E": "L",
    "G": "L",
    "U": "L",
    "Y": "L",
    "C": "LF",
    "j": "F",
    "W": "M",
}

_WIDTH = 100
_HELP_COLUMN = 36


class ClassicUsage(UsageError):
    """The command line does not follow the grammar."""

    exit_code = 64


class ClassicError(ZfwError):
    """The command line follows the grammar, but what it asks for makes no sense."""


class Request:
    """What a command line asks for. Beside the first four, only its verb's fields are set.

    Attributes:
        verb: insert, delete, flush, list, attach, detach, init, uninstall, set, bind, unbind,
            unbind_all, user_rules, later, version, help or usage.
        options: each option's last value as it was given, by short name.
        direction: ingress, egress or None.
        route: whether -r was given.
        rule: insert: the rule.
        key: delete: what names the rule.
        interfaces: delete: the names to take off the rule; none deletes it.
        what: list: rules, diag or gc.
        family: list: 4 or 6.
        destination: list: only rules with this destination.
        source: list: only rules with this source.
        protocol: list: only rules of this protocol.
        intercepts_only: list: only rules that intercept.
        passthrough_only: list: only rules that pass.
        interface: attach, detach, init: a name, or all.
        object_file: attach: the path of the program.
        prefix: bind, unbind: what is to be local.
        settings: set: (setting, interface or all, whether on) for each.
        feature: later: the option whose feature is not there yet.
    """

    __slots__ = (
        "destination",
        "direction",
        "family",
        "feature",
        "intercepts_only",
        "interface",
        "interfaces",
        "key",
        "object_file",
        "options",
        "passthrough_only",
        "prefix",
        "protocol",
        "route",
        "rule",
        "settings",
        "source",
        "verb",
        "what",
    )

    verb: str
    options: dict[str, str]
    direction: str | None
    route: bool
    rule: Rule
    key: RuleKey
    interfaces: tuple[str, ...]
    what: str
    family: int
    destination: Prefix | None
    source: Prefix | None
    protocol: str | None
    intercepts_only: bool
    passthrough_only: bool
    interface: str
    object_file: str
    prefix: Prefix
    settings: list[tuple[str, str, bool]]
    feature: str

    def __init__(self, verb: str, options: dict[str, str]) -> None:
        self.verb = verb
        self.options = options
        self.direction = options.get("z")
        self.route = "r" in options

    def __repr__(self) -> str:
        return f"<Request {self.verb} {self.options}>"


def parse(argv: Iterable[str]) -> Request:
    """Read a command line, without the command's own name.

    Raises:
        ClassicUsage: an option is unknown, ambiguous or lacks its value, or there are words
            that belong to no option.
        ClassicError: a value is bad, or the options do not go together.
    """
    options: dict[str, str] = {}
    names: list[str] = []
    for short, value in _split(argv):
        if short in _AT_ONCE:
            return Request(_AT_ONCE[short], options)
        options[short] = value
        if short == "N":
            names.append(value)
    try:
        return _understand(options, names)
    except UsageError as error:
        raise ClassicError(error.message) from error


def usage_text() -> str:
    """What ``--usage`` prints: every option, in short."""
    lines = ["Usage: zfw OPTION..."]
    for heading, options in GROUPS:
        lines.append(f"{heading}:")
        line = " "
        for short, long, argument, _ in options:
            option = f"-{short}" if short else f"--{long}"
            item = f" [{option} {argument}]" if argument else f" [{option}]"
            if len(line) + len(item) > _WIDTH:
                lines.append(line)
                line = " "
            line += item
        lines.append(line)
    return "\n".join(lines) + "\n"


def help_text() -> str:
    """What ``--help`` prints: every option, explained."""
    lines = [
        "Usage: zfw OPTION...",
        "Interception firewall: hands the packets that its rules name to local listeners.",
        "The classic grammar. The same by words, each with its own --help:",
        "zfw attach|detach|insert|delete|list|flush|status|batch",
    ]
    for heading, options in GROUPS:
        lines += ["", f"{heading}:"]
        for short, long, argument, text in options:
            left = f"  -{short}, --{long} {argument}" if short else f"      --{long} {argument}"
            later = " (not yet)" if short and short in _LATER else ""
            lines.append(f"{left:{_HELP_COLUMN}}{text}{later}")
    return "\n".join(lines) + "\n"


def _split(argv: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (short name, value) for each option, as getopt_long finds them."""
    words = iter(argv)
    extra: list[str] = []
    value: str | None
    for word in words:
        if word[:1] != "-" or word == "-":
            extra.append(word)
        elif word == "--":
            extra.extend(words)
        elif word[1] == "-":
            name, equals, value = word[2:].partition("=")
            short, long, argument, _ = _by_long_name(name)
            if equals and not argument:
                raise ClassicUsage(f"option '--{long}' doesn't allow an argument")
            if argument and not equals:
                value = next(words, None)
                if value is None:
                    raise ClassicUsage(f"option '--{long}' requires an argument")
            yield short, value
        else:
            rest = word[1:]
            while rest:
                short, rest = rest[0], rest[1:]
                if short not in _OPTIONS:
                    raise ClassicUsage(f"invalid option -- {short!r}")
                value = ""
                if _OPTIONS[short][2]:
                    value, rest = rest or next(words, None), ""
                    if value is None:
                        raise ClassicUsage(f"option requires an argument -- {short!r}")
                yield short, value
    if extra:
        raise ClassicUsage("Too many arguments")


def _by_long_name(name: str) -> tuple[str, str, str, str]:
    """Find an option by its long name or an unambiguous beginning of it."""
    found = [option for option in _OPTIONS.values() if option[1].startswith(name)]
    for option in found:
        if option[1] == name:
            return option
    if not found:
        raise ClassicUsage(f"unrecognized option {'--' + name!r}")
    if len(found) > 1:
        possible = " ".join(f"'--{option[1]}'" for option in found)
        raise ClassicUsage(f"option '--{name}' is ambiguous; possibilities: {possible}")
    return found[0]


def _understand(options: dict[str, str], names: list[str]) -> Request:
    """Find out what the options ask for together, and refuse those that do not go together."""
    for short in options:
        if short in _NEEDS and options.keys().isdisjoint(_NEEDS[short]):
            needs = " or ".join(f"-{other}" for other in _NEEDS[short])
            raise ClassicError(f"{_flag(short)}: only together with {needs}")
    if "F" in options and "L" in options:
        raise ClassicError(f"{_flag('L')}: not together with {_flag('F')}")
    if options.get("z", "ingress") not in DIRECTIONS:
        raise ClassicError(f"{_flag('z')}: not ingress or egress: {options['z']!r}")
    for short in options:
        if short in _LATER:
            request = Request("later", options)
            request.feature = _flag(short)
            return request

    # -6 is a setting, but with -L it chooses what to list.
    settings = [s for s in options if s in _SETTINGS and (s != "6" or "L" not in options)]
    asked = [short for short in "IDFL" if short in options][:1]
    asked += [short for short in "XHQ" if short in options]
    asked += settings[:1]
    asked += [short for short in "BJA" if short in options]
    if not asked:
        raise ClassicError(
            "nothing to do: none of -I -D -F -L -X -H -Q -B -J -A and no setting given"
        )
    if len(asked) > 1:
        raise ClassicError(f"{_flag(asked[1])}: not together with {_flag(asked[0])}")

    match asked[0]:
        case "I":
            return _insert(options, names)
        case "D":
            return _delete(options, names)
        case "F":
            return _flush(options)
        case "L":
            return _list(options)
        case "X":
            return _attach_or_detach(options)
        case "H":
            request = Request("init", options)
            request.interface = check_interface_name(options["H"], _flag("H"))
            return request
        case "Q":
            return Request("uninstall", options)
        case "B" | "J" as short:
            request = Request("bind" if short == "B" else "unbind", options)
            request.prefix = _prefix(options, short, "m")
            return request
        case "A":
            return Request("user_rules", options)
    return _set(options, settings)


def _insert(options: dict[str, str], names: list[str]) -> Request:
    _require(options, "clhtp", "I")
    key = _key(options)
    high_port = parse_port(options["h"], _flag("h"))
    if high_port < key.low_port:
        raise ClassicError(f"{_flag('h')}: {high_port} is below the low port {key.low_port}")
    tproxy_port = parse_port(options["t"], _flag("t"))
    if tproxy_port and key.direction == "egress":
        raise ClassicError(f"{_flag('t')}: 0 is the only value that an egress rule takes")
    if tproxy_port and "d" in options:
        raise ClassicError(f"{_flag('t')}: 0 is the only value that a deny rule takes")
    request = Request("insert", options)
    request.rule = Rule(
        key,
        high_port,
        tproxy_port=tproxy_port,
        deny="d" in options,
        service_id=check_service_id(options.get("s", ""), _flag("s")),
        interfaces=_interfaces(names),
    )
    return request


def _delete(options: dict[str, str], names: list[str]) -> Request:
    _require(options, "clp", "D")
    request = Request("delete", options)
    request.key = _key(options)
    request.interfaces = _interfaces(names)
    # No part of the key, but callers repeat the line that they inserted.
    for short in "ht":
        if short in options:
            parse_port(options[short], _flag(short))
    check_service_id(options.get("s", ""), _flag("s"))
    return request


def _flush(options: dict[str, str]) -> Request:
    if "j" not in options:
        return Request("flush", options)
    # It removes no rule, and so nothing that these say.
    for short in "zr":
        if short in options:
            raise ClassicError(f"{_flag(short)}: not together with {_flag('j')}")
    return Request("unbind_all", options)


def _list(options: dict[str, str]) -> Request:
    if options.get("6", "all") != "all":
        raise ClassicError(f"{_flag('6')}: with {_flag('L')} it takes only the value all")
    request = Request("list", options)
    request.what = "diag" if "E" in options else "gc" if "G" in options else "rules"
    request.destination = None
    request.family = 6 if "6" in options else 4
    if "c" in options or "m" in options:
        request.destination = _prefix(options, "c", "m")
        request.family = request.destination.family
    request.source = _source(options, request.family)
    request.protocol = parse_protocol(options["p"], _flag("p")) if "p" in options else None
    # Both together are no restriction.
    request.intercepts_only = "i" in options and "f" not in options
    request.passthrough_only = "f" in options and "i" not in options
    return request


def _attach_or_detach(options: dict[str, str]) -> Request:
    _require(options, "z" if "d" in options else "zO", "X")
    request = Request("detach" if "d" in options else "attach", options)
    request.interface = check_interface_name(options["X"], _flag("X"))
    if request.verb == "attach":
        request.object_file = options["O"]
    return request


def _set(options: dict[str, str], settings: list[str]) -> Request:
    request = Request("set", options)
    request.settings = [
        (
            _SETTINGS[short],
            check_interface_name(options[short], _flag(short)),
            # -x says what it takes away: it turns off, and with -d on.
            ("d" in options) == (short == "x"),
        )
        for short in settings
    ]
    return request


def _flag(short: str) -> str:
    """Name an option in a message."""
    return _FLAGS[short]


def _require(options: dict[str, str], required: str, by: str) -> None:
    for short in required:
        if short not in options:
            raise ClassicError(f"{_flag(short)}: missing, {_flag(by)} needs it")


def _key(options: dict[str, str]) -> RuleKey:
    destination = _prefix(options, "c", "m")
    return RuleKey(
        destination,
        parse_protocol(options["p"], _flag("p")),
        parse_port(options["l"], _flag("l")),
        source=_source(options, destination.family),
        direction=options.get("z", "ingress"),
    )


def _prefix(options: dict[str, str], address: str, length: str) -> Prefix:
    """Read a prefix given as two options, or as ADDR/LEN in the first."""
    _require(options, address, length)
    if "/" not in options[address]:
        _require(options, length, address)
    bits = parse_length(options[length], _flag(length)) if length in options else None
    return Prefix.parse(options[address], bits, _flag(address))


def _source(options: dict[str, str], family: int) -> Prefix | None:
    """Read the source, None if there is none: a lone -n 0 says no more than that."""
    if "o" not in options and parse_length(options.get("n", "0"), _flag("n")) == 0:
        return None
    source = _prefix(options, "o", "n")
    # Routers say any as -o 0.0.0.0 -n 0, whatever the family.
    if source == Prefix.any(4):
        return Prefix.any(family)
    if source.family != family:
        raise ClassicError(f"{_flag('o')}: {source} is not IPv{family} as the rule is")
    return source


def _interfaces(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted({check_interface_name(name, _flag("N")) for name in names}))
