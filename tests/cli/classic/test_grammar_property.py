# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar: however a rule is spelled, it is the same rule; and nothing crashes it."""

from __future__ import annotations

import string
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfw_py.cli.classic import FLAGS
from zfw_py.cli.classic.grammar import ClassicError, ClassicUsage, Request, parse

LONG_NAMES = {short: flag.long for short, flag in FLAGS.items()}

ports = st.integers(0, 65535)
interface_names = st.text(string.ascii_lowercase + string.digits + "-_.@", min_size=1, max_size=15)
service_ids = st.text(string.ascii_letters + string.digits + ".-", min_size=1, max_size=64)
networks = st.one_of(
    st.builds(
        lambda value, length: IPv4Network((value, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda value, length: IPv6Network((value, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@st.composite
def spelled(draw: st.DrawFn, short: str, value: str | None) -> list[str]:
    """The words that say one option, in one of the ways that argp allows."""
    long = LONG_NAMES[short]
    shortest = next(
        n
        for n in range(1, len(long) + 1)
        if n == len(long) or sum(name.startswith(long[:n]) for name in LONG_NAMES.values()) == 1
    )
    long = long[: draw(st.integers(shortest, len(long)))]
    if value is None:
        return draw(st.sampled_from([[f"-{short}"], [f"--{long}"]]))
    ways = [[f"-{short}", value], [f"--{long}", value], [f"--{long}={value}"]]
    if value:
        ways.append([f"-{short}{value}"])
    return draw(st.sampled_from(ways))


@st.composite
def command_lines(draw: st.DrawFn, options: list[tuple[str, str | None]]) -> list[str]:
    """A command line with these options in any order, flags perhaps in one cluster."""
    options = draw(st.permutations(options))
    flags = [short for short, value in options if value is None]
    if draw(st.booleans()):
        options = [(short, value) for short, value in options if value is not None]
        # Only the last of a cluster can have a value.
        last, value = draw(st.sampled_from(options))
        options.remove((last, value))
        glued = [f"-{''.join(flags)}{last}{value}"]
        parted = [f"-{''.join(flags)}{last}", str(value)]
        words = [draw(st.sampled_from([glued, parted])) if value else parted]
    else:
        words = []
    words += [draw(spelled(short, value)) for short, value in options]
    return [word for spelling in draw(st.permutations(words)) for word in spelling]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, object]:
    """What a rule says, in the words of this test."""
    destination = draw(networks)
    source = draw(networks.filter(lambda network: network.version == destination.version))
    low, high = sorted((draw(ports), draw(ports)))
    is_egress, is_deny = draw(st.booleans()), draw(st.booleans())
    return {
        "destination": destination,
        "source": draw(st.sampled_from([None, source, ip_network("0.0.0.0/0")])),
        "protocol": draw(st.sampled_from(["tcp", "udp"])),
        "low": low,
        "high": high,
        "tproxy": 0 if is_egress or is_deny else draw(ports),
        "deny": is_deny,
        "direction": "egress" if is_egress else draw(st.sampled_from(["ingress", None])),
        "route": draw(st.booleans()),
        "service_id": draw(st.none() | service_ids),
        "interfaces": draw(st.lists(interface_names.filter(lambda n: n not in (".", "..")))),
    }


@st.composite
def options_of(draw: st.DrawFn, rule: dict, verb: str) -> list[tuple[str, str | None]]:
    """The options that say this rule."""
    destination, source = rule["destination"], rule["source"]
    # A random host within the prefix names it as well.
    host = draw(st.integers(0, int(destination.hostmask)))
    address = str(destination.network_address + host)
    length = str(destination.prefixlen)
    options = [(verb, None), ("p", draw(st.sampled_from([str.lower, str.upper]))(rule["protocol"]))]
    options += [("l", str(rule["low"])), ("h", str(rule["high"])), ("t", str(rule["tproxy"]))]
    options += draw(
        st.sampled_from(
            [
                [("c", address), ("m", length)],
                [("c", f"{address}/{length}")],
                [("c", f"{address}/{length}"), ("m", length)],
            ]
        )
    )
    if source is not None:
        options += [("o", str(source.network_address)), ("n", str(source.prefixlen))]
    if rule["direction"]:
        options.append(("z", rule["direction"]))
    if rule["service_id"]:
        options.append(("s", rule["service_id"]))
    options += [("N", name) for name in rule["interfaces"]]
    options += [(flag, None) for flag, name in (("d", "deny"), ("r", "route")) if rule[name]]
    return options


def assert_key_is(request: Request, rule: dict) -> None:
    key = request.rule.key if request.verb == "insert" else request.key
    any_source = ip_network("0.0.0.0/0" if rule["destination"].version == 4 else "::/0")
    source = rule["source"] if rule["source"] and rule["source"].prefixlen else any_source
    assert ip_network(str(key.destination)) == rule["destination"]
    assert ip_network(str(key.source)) == source
    assert key.protocol == rule["protocol"]
    assert key.low_port == rule["low"]
    assert key.direction == (rule["direction"] or "ingress")
    assert request.direction == rule["direction"]
    assert request.route == rule["route"]


@given(st.data(), rules())
def test_an_insert_is_the_same_however_it_is_spelled(data: st.DataObject, rule: dict) -> None:
    argv = data.draw(command_lines(data.draw(options_of(rule, "I"))))
    request = parse(argv)
    assert request.verb == "insert"
    assert_key_is(request, rule)
    assert request.rule.high_port == rule["high"]
    assert request.rule.tproxy_port == rule["tproxy"]
    assert (request.rule.action == "deny") == rule["deny"]
    assert request.rule.service_id == (rule["service_id"] or "")
    assert request.rule.interfaces == tuple(sorted(set(rule["interfaces"])))


@given(st.data(), rules())
def test_a_delete_is_the_same_however_it_is_spelled(data: st.DataObject, rule: dict) -> None:
    argv = data.draw(command_lines(data.draw(options_of(rule, "D"))))
    request = parse(argv)
    assert request.verb == "delete"
    assert_key_is(request, rule)
    assert request.interfaces == tuple(sorted(set(rule["interfaces"])))


valued_words = st.sampled_from(
    ["all", "eth0", "tcp", "10.0.0.1", "10.0.0.0/8", "fd00::1", "0", "22", "33", "ingress", ""]
)
option_words = st.builds(
    lambda dashes, name, rest: dashes + name + rest,
    st.sampled_from(["-", "--"]),
    st.sampled_from([*LONG_NAMES, *LONG_NAMES.values()]) | st.text(max_size=3),
    st.sampled_from(["", "", "=", "=22", "22", "L"]),
)
any_text = st.text(st.characters(codec=None, categories=None), max_size=8)


def outcome(argv: list[str]) -> object:
    try:
        request = parse(argv)
    except (ClassicUsage, ClassicError) as error:
        return error.message
    return request.verb, request.options


@given(st.lists(st.one_of(option_words, valued_words, any_text), max_size=12))
def test_any_command_line_is_understood_or_refused_in_one_line(argv: list[str]) -> None:
    result = outcome(argv)
    if isinstance(result, str):
        assert len(result.splitlines()) == 1


@given(st.sampled_from(sorted(LONG_NAMES.values())), st.data())
def test_the_beginning_of_a_long_name_is_as_good_unless_ambiguous(
    long: str, data: st.DataObject
) -> None:
    beginning = long[: data.draw(st.integers(1, len(long)))]
    fitting = [name for name in LONG_NAMES.values() if name.startswith(beginning)]
    if beginning in fitting:
        fitting = [beginning]
    if len(fitting) == 1:
        assert outcome([f"--{beginning}", "eth0"]) == outcome([f"--{fitting[0]}", "eth0"])
    else:
        with pytest.raises(ClassicUsage, match="is ambiguous; possibilities: ") as caught:
            parse([f"--{beginning}", "eth0"])
        assert all(f"'--{name}'" in caught.value.message for name in fitting)
