# SPDX-License-Identifier: GPL-2.0-only
"""zfw explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zfw_py.cli import output, tables
from zfw_py.cli.commands.interfaces import complete
from zfw_py.cli.commands.list import as_object as rule_as_object
from zfw_py.errors import UsageError
from zfw_py.firewall import question
from zfw_py.firewall.model import check_direction, check_interface_name
from zfw_py.firewall.reasons import TEXTS
from zfw_py.firewall.service import Firewall
from zfw_py.kernel import files
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.question import Question
    from zfw_py.firewall.replay import Answer
    from zfw_py.firewall.story import Explanation, Listener, RouteFound
    from zfw_py.firewall.tried import Tried

_ROUTES = {
    "none": "none: the kernel has no way to it",
    "blackhole": "none: a blackhole route",
    "prohibit": "none: a route prohibits it",
    "source": "none: the kernel refuses the source there (rp_filter, or no valid source)",
}
WITH_OPTIONAL_VALUE = ("--icmp",)
# Prefixes that the text shows; --json has all.
_MOST_TRIED = 12


def command(
    protocol: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--protocol",
            metavar="tcp|udp|icmp",
            help="Protocol; icmp alone is a ping.",
            autocompletion=lambda: list(question.PROTOCOLS),
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ADDR[:PORT]",
            help=f"Source; without a port it is {question.ANY_PORT}.",
        ),
    ] = None,
    destination: Annotated[
        str | None, typer.Option("--to", metavar="ADDR[:PORT]", help="Destination.")
    ] = None,
    interface: Annotated[
        str | None,
        typer.Option(
            "-i",
            "--interface",
            metavar="IFACE",
            help="The interface that the packet arrives at, or leaves by; if not given, the one"
            " that the routes say.",
            autocompletion=complete,
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(metavar="ingress|egress", help="Direction of the packet at the interface."),
    ] = "ingress",
    tcp_flags: Annotated[
        str | None,
        typer.Option(
            metavar="FLAG,...",
            help="TCP flags: FIN, SYN, RST, PSH, ACK, URG. If not given, SYN.",
        ),
    ] = None,
    icmp: Annotated[
        str | None,
        typer.Option(
            metavar="[TYPE[/CODE]]",
            help="An ICMP message, a ping if no type is given. An error is about a packet of -p"
            " from --to to --from.",
        ),
    ] = None,
    expect: Annotated[
        Literal["pass", "drop", "intercept"] | None,
        typer.Option(help="Exit with code 11 if the verdict is another one."),
    ] = None,
    pcap: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask about every packet of a capture, pcap or pcapng, - for stdin; a line each."
            " Takes -i, --direction, --expect and --json alone.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object; with --pcap one a line.")
    ] = False,
) -> None:
    """Show what happens to a packet, and why.

    Runs the loaded program on the packet, with the rules, flows and sockets of now,
    and changes nothing. The answer has the rule that decides, the prefixes that were
    tried before and why none of their rules matched, the socket that gets the packet,
    the route, commands that change the decision, and what a test run cannot show.
    """
    if pcap is not None:
        if any(value is not None for value in (protocol, source, destination, tcp_flags, icmp)):
            raise UsageError("--pcap: not together with -p, --from, --to, --tcp-flags and --icmp")
        check_direction(direction, "--direction")
        if interface is not None:
            check_interface_name(interface, "-i, --interface")
        _replay(pcap, interface, direction, expect, as_json=as_json)
        return
    if source is None or destination is None:
        raise UsageError(f"{'--to' if source else '--from'}: missing")
    asked = question.ask(
        *(protocol, source, destination),
        interface=interface,
        direction=direction,
        tcp_flags=tcp_flags,
        icmp=icmp,
    )
    explained = Firewall().story(asked)
    if explained.contradiction is not None:
        output.warning(
            f"a fault of zfw: the program decides by {_rule_or_none(explained.rule)}, the search"
            f" for an explanation finds {explained.contradiction}; what was tried is not shown."
            " Please report it"
        )
    if as_json:
        output.json_object(as_object(explained))
    else:
        _print(asked, explained)
    if expect is not None and explained.verdict != expect:
        output.error(f"expected {expect}, not {explained.verdict}")
        raise typer.Exit(output.REFUSED)


def as_object(explained: Explanation) -> dict[str, object]:
    """An explanation as JSON has it."""
    return {
        "verdict": explained.verdict,
        "reason": explained.reason,
        "rule": None if explained.rule is None else rule_as_object(explained.rule),
        "tried": [each._asdict() for each in explained.tried],
        "listener": None if explained.listener is None else _listener_object(explained.listener),
        "route": None if explained.route is None else explained.route._asdict(),
        "advice": [f"{purpose}: {line}" if line else purpose for purpose, line in explained.advice],
        "unknown": explained.unknown,
    }


def _replay(
    path: str, interface: str | None, direction: str, expect: str | None, *, as_json: bool
) -> None:
    """Print a line for each packet of a capture, and how many there were of each reason."""
    from collections import Counter
    from json import dumps

    from zfw_py.firewall import capture

    counts: Counter[tuple[str, str]] = Counter()
    name = "stdin" if path == "-" else path
    with files.open_to_read(path) as file:
        for answer in Firewall().replay(capture.read(file, name), interface, direction):
            verdict, reason = answer.verdict or "unknown", answer.reason or "too_short"
            counts[verdict, reason] += 1
            if as_json:
                print(dumps(_answer_object(answer), separators=(",", ":")))
            else:
                output.line(f"{answer.packet.number:>6} {verdict:<9} {reason}  {_ends(answer)}")
    if not as_json:
        parts = [f"{verdict} {reason} {count}" for (verdict, reason), count in counts.most_common()]
        output.fields([(output.counted(counts.total(), "packet"), [", ".join(parts) or "none"])])
    others = sum(count for (verdict, _), count in counts.items() if verdict != expect)
    if expect is not None and others:
        output.error(f"expected {expect}, which {output.counted(others, 'packet')} did not have")
        raise typer.Exit(output.REFUSED)


def _ends(answer: Answer) -> str:
    seen = answer.outline
    kind = f"{seen.protocol}{f' {seen.fragment} fragment' if seen.fragment else ''}"
    return f"{kind} {seen.source_text} > {seen.destination_text}" if seen.source else kind


def _answer_object(answer: Answer) -> dict[str, object]:
    seen = answer.outline
    return {
        "number": answer.packet.number,
        "time": answer.packet.time,
        "verdict": answer.verdict,
        "reason": answer.reason,
        "rule": None if answer.rule is None else rule_as_object(answer.rule),
        "protocol": seen.protocol,
        "from": seen.source_text or None,
        "to": seen.destination_text or None,
        "fragment": seen.fragment or None,
        "bytes": answer.packet.length,
        "captured": len(answer.packet.data),
    }


def _listener_object(listener: Listener) -> dict[str, object]:
    return {
        **listener._asdict(),
        "processes": [{"pid": pid, "command": name} for pid, name in listener.processes],
    }


def _print(asked: Question, explained: Explanation) -> None:
    tables.headline(explained.verdict, f"  {explained.reason}")
    output.fields(_rows(asked, explained))


def _rows(asked: Question, explained: Explanation) -> Iterator[tuple[str, list[str]]]:
    yield "why", [TEXTS[explained.reason]]
    yield "packet", [_packet_text(asked, explained.interface)]
    yield "rule", [_rule_text(explained.rule)]
    if explained.tried:
        yield "tried", _tried_lines(explained.tried)
    if explained.listener is not None:
        yield "listener", [_listener_text(explained.listener)]
    elif missing := _no_listener_text(asked, explained):
        yield "listener", [missing]
    if explained.route is not None:
        yield "route", [_route_text(explained.route)]
    if explained.advice:
        yield "advice", [text for each in explained.advice for text in _advice_lines(*each)]
    if explained.unknown:
        yield "unknown", explained.unknown


def _packet_text(asked: Question, interface: str) -> str:
    kind = asked.sent
    if asked.icmp is not None:
        kind = f"{'icmp' if asked.family == 4 else 'icmpv6'} {asked.icmp.type}/{asked.icmp.code}"
    elif kind == "tcp":
        kind = f"tcp {asked.flags_text}"
    where = "arrives at" if asked.direction == "ingress" else "leaves by"
    return f"{kind} {asked.source_text} to {asked.destination_text}, {where} {interface}"


def _rule_text(rule: Rule | None) -> str:
    if rule is None:
        return "none"
    to = f" to port {rule.tproxy_port} of loopback" if rule.tproxy_port else ""
    service = f", service {rule.service_id}" if rule.service_id else ""
    names = f", for {', '.join(rule.interfaces)}" if rule.interfaces else ""
    return f"{rule}{to}{names}{service}; {output.counted(rule.packets, 'packet')} so far"


def _rule_or_none(rule: Rule | None) -> str:
    return "no rule" if rule is None else f"rule {rule}"


def _tried_lines(tried: list[Tried]) -> list[str]:
    shown = [
        each.prefix + (f" from {each.source}" if not _is_any(each.source) else "") + f": {each.why}"
        for each in tried[:_MOST_TRIED]
    ]
    if len(tried) > _MOST_TRIED:
        shown.append(f"{len(tried) - _MOST_TRIED} more, which --json has")
    return shown


def _is_any(source: str) -> bool:
    return source.endswith("/0")


def _listener_text(listener: Listener) -> str:
    kind = {True: ", transparent", False: ", not transparent", None: ""}[listener.is_transparent]
    by = ", ".join(f"{name} ({pid})" for pid, name in listener.processes) or "a process unseen"
    where = Endpoint(listener.address, listener.port)
    return f"{listener.protocol} {where}{kind}, of {listener.user}: {by}"


def _no_listener_text(asked: Question, explained: Explanation) -> str | None:
    if explained.reason == "no_listener":
        return "none"
    is_to_host = explained.route is not None and explained.route.kind == "local"
    if (
        asked.icmp is not None
        or asked.direction == "egress"
        or explained.verdict != "pass"
        or explained.reason in ("established", "flow")
        or not is_to_host
    ):
        return None
    answer = "a RST" if asked.protocol == "tcp" else "ICMP port unreachable"
    return f"none: this host answers with {answer}"


def _route_text(route: RouteFound) -> str:
    if route.kind in _ROUTES:
        return _ROUTES[route.kind]
    by = f" by {route.interface}" if route.interface and route.kind != "local" else ""
    via = f" via {route.gateway}" if route.gateway else ""
    return f"{route.kind}{by}{via}"


def _advice_lines(purpose: str, line: str) -> tuple[str, ...]:
    return (f"{purpose}:", f"  {line}") if line else (purpose,)
