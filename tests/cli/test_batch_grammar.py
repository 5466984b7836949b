# SPDX-License-Identifier: GPL-2.0-only
"""However a rule is spelled, a batch's line and the command agree on what it says."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from zfw_py import Delete, Firewall, Insert, Rule, RuleKey, UsageError
from zfw_py.cli import batch
from zfw_py.cli.app import main
from zfw_py.cli.commands.rule_options import OPTIONS

# Good and bad ones alike.
TEXTS = {
    "destination": ["10.1.2.3", "10.1.2.3/8", "fd00::1", "fd00::/8", "0.0.0.0/0", "host", ""],
    "prefix_length": ["0", "8", "32", "128", "129", "x", ""],
    "source": ["0.0.0.0", "10.0.0.0/8", "fd00::/16", "-1"],
    "source_length": ["0", "8", "16", "-8"],
    "protocol": ["tcp", "UDP", "sctp"],
    "low_port": ["0", "22", "65535", "65536", ""],
    "high_port": ["0", "22", "443", "65535", "-h"],
    "tproxy_port": ["0", "43321", "=5"],
    "interfaces": ["eth0", "lo", "a/b", "--deny"],
    "service_id": ["5XzC8mf1RrFO2vmfHGG5GL", "-foo", "a=b", "x" * 65, ""],
    "direction": ["ingress", "egress", "both"],
}
FLAGS = ("deny", "route")
REQUIRED = ("destination", "protocol", "low_port")


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """The words of a rule, its options in any order and spelling."""
    names = [*REQUIRED, *draw(st.lists(st.sampled_from([*OPTIONS]), max_size=6))]
    words = []
    for name in draw(st.permutations(names)):
        if name in FLAGS:
            words += OPTIONS[name].spellings
            continue
        short, long = OPTIONS[name].spellings
        # Mostly good values, so that whole rules come together.
        value = draw(st.sampled_from(TEXTS[name][:2]) | st.sampled_from(TEXTS[name]))
        ways = [[short, value], [long, value], [f"{long}={value}"]]
        if value:
            ways.append([f"{short}{value}"])
        words += draw(st.sampled_from(ways))
    return words


def fields(edit: Insert | Delete) -> tuple[Any, ...]:
    if isinstance(edit, Delete):
        return edit.key, edit.interfaces, edit.route
    rule = edit.rule
    return (
        rule.key,
        rule.high_port,
        rule.action,
        rule.tproxy_port,
        rule.service_id,
        rule.interfaces,
        edit.route,
    )


def by_command(verb: str, words: list[str]) -> tuple[Any, ...] | None:
    """What the command would hand to the firewall, None if it refuses."""
    asked = []

    def insert(self: Firewall, rule: Rule, *, route: bool = False) -> Any:
        asked.append(Insert(rule, route=route))
        raise UsageError("that is all that this test wants to know")

    def delete(
        self: Firewall, key: RuleKey, interfaces: tuple[str, ...] = (), *, route: bool = True
    ) -> Any:
        asked.append(Delete(key, interfaces, route=route))
        raise UsageError("that is all that this test wants to know")

    with patch.object(Firewall, "insert", insert), patch.object(Firewall, "delete", delete):
        assert main([verb, *words]) == 2
    return fields(asked[0]) if asked else None


def by_batch(verb: str, words: list[str]) -> tuple[Any, ...] | None:
    try:
        return fields(batch.parse([verb, *words]))
    except UsageError:
        return None


@settings(deadline=None)
@given(st.sampled_from(["insert", "delete"]), lines())
def test_the_batch_and_the_command_agree(verb: str, words: list[str]) -> None:
    assert by_batch(verb, words) == by_command(verb, words)
