# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar: a command line of options, as argp reads them, becomes a Request.

Hot: imported for every rule that a router inserts. Pure: it neither enters the kernel nor
looks up interfaces nor prints; ``run`` carries the Request out.
"""

from __future__ import annotations

from zfw_py.cli.classic import (
    BIND,
    DISABLE,
    FIELD_NAMES,
    FLAGS,
    FLUSH,
    GROUPS,
    IPV6,
    LIST,
    ROUTE,
    RULE_VERBS,
    UNBIND,
    Flag,
    Setting,
)
from zfw_py.errors import UsageError, ZfwError
from zfw_py.firewall.model import (
    Rule,
    RuleKey,
    RuleText,
    check_direction,
    check_interface_name,
    sorted_interfaces,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zfw_py.values.prefix import Prefix

_WIDTH = 100
_HELP_COLUMN = 36
_ORDER = {short: index for index, short in enumerate(FLAGS)}


class ClassicUsage(UsageError):
    """The command line does not follow the grammar."""

    exit_code = 64


class ClassicError(ZfwError):
    """The command line follows the grammar, but a value is bad or options contradict."""


class Request:
    """A verb and its values. Of those after ``route``, only the ones of the verb are set.

    Attributes:
        verb: insert, delete, flush, list, attach, detach, init, uninstall, set, bind, unbind,
            unbind_all, user_rules, later, version, help or usage.
        options: each option's last value as it was given, by short name.
        direction: ingress, egress or None.
        route: whether -r was given.
        rule: insert: the rule.
        key: delete: the rule's key.
        interfaces: delete: the names to remove from the rule; none deletes the rule.
        what: list: rules, diag or gc.
        family: list: 4 or 6.
        destination: list: only rules with this destination.
        source: list: only rules with this source.
        protocol: list: only rules of this protocol.
        intercepts_only: list: only rules that intercept.
        passthrough_only: list: only rules that pass.
        interface: attach, detach, init: a name, or all.
        object_file: attach: the path of the program.
        prefix: bind, unbind: the addresses to make local, or no longer.
        settings: set: (setting, interface or all, whether on) for each.
        feature: later: the option that this version does not have.
    """

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
        self.route = ROUTE in options

    def __repr__(self) -> str:
        return f"<Request {self.verb} {self.options}>"


def parse(argv: Iterable[str]) -> Request:
    """Read a command line, without the command's own name.

    Raises:
        ClassicUsage: an option is unknown, ambiguous or lacks its value, or there are words
            that belong to no option.
        ClassicError: a value is bad, or options contradict each other.
    """
    options: dict[str, str] = {}
    names: list[str] = []
    for flag, value in _split(argv):
        if flag.at_once:
            return Request(flag.verb, options)
        options[flag.short] = value
        if flag.short == "N":
            names.append(value)
    try:
        return _understand(options, names)
    except UsageError as error:
        raise ClassicError(error.message) from error


def usage_text() -> str:
    """The text of ``--usage``: every option, in short."""
    lines = ["Usage: zfw OPTION..."]
    for heading, flags in GROUPS.items():
        lines.append(f"{heading}:")
        line = " "
        for flag in flags:
            option = f"-{flag.short}" if flag.short else f"--{flag.long}"
            item = f" [{option} {flag.argument}]" if flag.argument else f" [{option}]"
            if len(line) + len(item) > _WIDTH:
                lines.append(line)
                line = " "
            line += item
        lines.append(line)
    return "\n".join(lines) + "\n"


def help_text() -> str:
    """The text of ``--help``: every option, explained."""
    lines = [
        "Usage: zfw OPTION...",
        "Interception firewall: rules hand packets to local listeners, pass or drop them.",
        "This is the classic grammar. The same as commands, each with its own --help:",
        "zfw attach|detach|insert|delete|list|flush|status|batch",
    ]
    for heading, flags in GROUPS.items():
        lines += ["", f"{heading}:"]
        for flag in flags:
            names = f"-{flag.short}, " if flag.short else "    "
            left = f"  {names}--{flag.long} {flag.argument}"
            missing = " (not yet)" if flag.later else ""
            lines.append(f"{left:{_HELP_COLUMN}}{flag.help}{missing}")
    return "\n".join(lines) + "\n"


def _split(argv: Iterable[str]) -> Iterator[tuple[Flag, str]]:
    """Yield (option, value) for each option, as getopt_long finds them; "" for no value."""
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
            flag = _by_long_name(name)
            if equals and not flag.argument:
                raise ClassicUsage(f"option '--{flag.long}' doesn't allow an argument")
            if flag.argument and not equals:
                value = next(words, None)
                if value is None:
                    raise ClassicUsage(f"option '--{flag.long}' requires an argument")
            yield flag, value
        else:
            rest = word[1:]
            while rest:
                short, rest = rest[0], rest[1:]
                if short not in FLAGS:
                    raise ClassicUsage(f"invalid option -- {short!r}")
                flag, value = FLAGS[short], ""
                if flag.argument:
                    value, rest = rest or next(words, None), ""
                    if value is None:
                        raise ClassicUsage(f"option requires an argument -- {short!r}")
                yield flag, value
    if extra:
        raise ClassicUsage("Too many arguments")


def _by_long_name(name: str) -> Flag:
    """Find an option by its long name or an unambiguous beginning of it."""
    found = [flag for flag in FLAGS.values() if flag.long.startswith(name)]
    for flag in found:
        if flag.long == name:
            return flag
    if not found:
        raise ClassicUsage(f"unrecognized option {'--' + name!r}")
    if len(found) > 1:
        possible = " ".join(f"'--{flag.long}'" for flag in found)
        raise ClassicUsage(f"option '--{name}' is ambiguous; possibilities: {possible}")
    return found[0]


def _understand(options: dict[str, str], names: list[str]) -> Request:
    """Make the Request, and refuse options that contradict each other."""
    given = [FLAGS[short] for short in options]
    for flag in given:
        if flag.with_ and options.keys().isdisjoint(flag.with_):
            needed = " or ".join(f"-{other}" for other in flag.with_)
            raise ClassicError(f"{flag.name}: only together with {needed}")
    _check_refused(options, FLUSH)
    if "z" in options:
        check_direction(options["z"], FLAGS["z"].name)
    for flag in given:
        if flag.later:
            request = Request("later", options)
            request.feature = flag.name
            return request
    first = _first_verb(given, options)
    for short in first.needs:
        _require(options, short, first.short)
    for flag in given:
        # One of two options, or ADDR/LEN in the first.
        if flag.length and "/" not in options[flag.short]:
            _require(options, flag.length, flag.short)
    request = Request(first.verb, options)
    if first.verb in _READERS:
        _READERS[first.verb](request, names)
    elif first.argument:
        request.interface = check_interface_name(options[first.short], first.name)
    return request


def _first_verb(given: list[Flag], options: dict[str, str]) -> Flag:
    """The option that says what to do: the only one, or the first of -I -D -F -L."""
    # -6 is a setting, but with -L it chooses what to list.
    acting = [f for f in given if f.verb and not (f.short == IPV6 and LIST in options)]
    if not acting:
        raise ClassicError(
            "nothing to do: none of -I -D -F -L -X -H -Q -B -J -A and no setting given"
        )
    acting.sort(key=lambda flag: _ORDER[flag.short])
    first = acting[0]
    for flag in acting:
        if flag.verb != first.verb and not (first.short in RULE_VERBS and flag.short in RULE_VERBS):
            raise ClassicError(f"{flag.name}: not together with {first.name}")
    return first


def _insert(request: Request, names: list[str]) -> None:
    request.rule = _texts(request.options).rule(
        names, limited=False, deny=DISABLE in request.options
    )


def _delete(request: Request, names: list[str]) -> None:
    texts = _texts(request.options)
    request.key = texts.key()
    request.interfaces = sorted_interfaces(names, FIELD_NAMES["interfaces"])
    # Callers repeat the options of the insert.
    texts.check_the_rest()


def _flush(request: Request, names: list[str]) -> None:
    if "j" in request.options:
        # It removes no rule, and so nothing that these say.
        _check_refused(request.options, "j")
        request.verb = "unbind_all"


def _list(request: Request, names: list[str]) -> None:
    options, texts = request.options, _texts(request.options)
    if options.get(IPV6, "all") != "all":
        raise ClassicError(
            f"{FLAGS[IPV6].name}: with {FLAGS[LIST].name} it takes only the value all"
        )
    request.what = "diag" if "E" in options else "gc" if "G" in options else "rules"
    request.destination = None
    request.family = 6 if IPV6 in options else 4
    if "c" in options or "m" in options:
        request.destination = texts.destination()
        request.family = request.destination.family
    request.source = texts.source(request.family)
    request.protocol = texts.protocol() if "p" in options else None
    # Both together are no restriction.
    request.intercepts_only = "i" in options and "f" not in options
    request.passthrough_only = "f" in options and "i" not in options


def _attach(request: Request, names: list[str]) -> None:
    options = request.options
    if DISABLE in options:
        request.verb = "detach"
    else:
        _require(options, "O", "X")
        request.object_file = options["O"]
    request.interface = check_interface_name(options["X"], FLAGS["X"].name)


def _set(request: Request, names: list[str]) -> None:
    request.settings = [
        (
            flag.setting,
            check_interface_name(name, flag.name),
            flag.turns_off == (DISABLE in request.options),
        )
        for short, name in request.options.items()
        if isinstance(flag := FLAGS[short], Setting)
    ]


def _bind(request: Request, names: list[str]) -> None:
    short = BIND if request.verb == "bind" else UNBIND
    texts = {"destination": request.options[short]}
    if "m" in request.options:
        texts["prefix_length"] = request.options["m"]
    names_here = {**FIELD_NAMES, "destination": FLAGS[short].name}
    request.prefix = RuleText(texts, names_here).destination()


_READERS = {
    "insert": _insert,
    "delete": _delete,
    "flush": _flush,
    "list": _list,
    "attach": _attach,
    "set": _set,
    "bind": _bind,
    "unbind": _bind,
}


def _texts(options: dict[str, str]) -> RuleText:
    fields = {FLAGS[short].field: value for short, value in options.items()}
    return RuleText(fields, FIELD_NAMES)


def _check_refused(options: dict[str, str], short: str) -> None:
    if short in options:
        for other in FLAGS[short].refuses:
            if other in options:
                raise ClassicError(f"{FLAGS[other].name}: not together with {FLAGS[short].name}")


def _require(options: dict[str, str], required: str, by: str) -> None:
    if required not in options:
        raise ClassicError(f"{FLAGS[required].name}: missing, {FLAGS[by].name} needs it")
