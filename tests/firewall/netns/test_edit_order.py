# SPDX-License-Identifier: GPL-2.0-only
"""Edits of nested prefixes: between any two writes, each packet is decided as before or after.

A write is the last one of a killed process, and the program is asked what it would do with
packets. Then the next writer comes, and they are asked again.
"""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from ipaddress import ip_address
from socket import if_nametoindex
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.contents import INTERFACE, Contents, fill, listing
from tests.firewall.support.faults import fail_at, is_killed_at, watch_each_write
from tests.firewall.support.packets import ethernet, ipv4, udp
from tests.firewall.support.reference import ETHERTYPE_IPV4
from zfw_py import Delete, Firewall, Insert, Prefix, Rule, RuleKey
from zfw_py.firewall.document import Document, RuleEntry, Settings
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.firewall.support.frames import Gateway
    from zfw_py.firewall.explain import Decision

pytestmark = pytest.mark.kernel

TARGET = "100.72.0.4"
# Of each, the packets of the test meet all: the most specific first.
DESTINATIONS = [Prefix.parse(text) for text in ("100.72.0.4", "100.72.0.0/24", "100.64.0.0/10")]
SOURCES = [Prefix.parse(text) for text in (frames.CLIENT[4], "0.0.0.0/0")]
PORTS = range(1, 8)
FRAMES = {
    port: ethernet(
        ipv4(ip_address(frames.CLIENT[4]), ip_address(TARGET), 17, udp(40000, port)),
        ETHERTYPE_IPV4,
    )
    for port in PORTS
}
Verdicts = dict[int, tuple[str, int | None]]


def verdicts() -> Verdicts:
    """For each port: the verdict, and the port of the listener that a rule intercepts for."""
    ifindex = if_nametoindex(INTERFACE)
    with Maps(is_writer=False) as maps:
        found = {port: explain(maps, frame, ifindex) for port, frame in FRAMES.items()}
    return {port: _what(decision) for port, decision in found.items()}


def _what(decision: Decision) -> tuple[str, int | None]:
    # There are no listeners: an interception is a drop, and yet to be told from others.
    if decision.reason == "no_listener":
        return "intercept", None
    return decision.verdict, None


def check(now: Verdicts, old: Verdicts, new: Verdicts, when: str) -> None:
    for port, verdict in now.items():
        allowed = {old[port][0], new[port][0], "drop"}
        assert verdict[0] in allowed, f"{when}: port {port} {verdict}, {old[port]} -> {new[port]}"


def rule(
    destination: Prefix, source: Prefix, low: int, high: int, action: str, **others: object
) -> Rule:
    key = RuleKey(destination, "udp", low, source=source)
    kind: dict[str, object] = {
        "deny": {"deny": True},
        "pass": {},
        "intercept": {"tproxy_port": 40001},
    }[action]
    return Rule(key, high, **kind, **others)  # type: ignore[arg-type]


def some_rules(rng: random.Random) -> list[Rule]:
    rules = {}
    for _ in range(rng.randrange(9)):
        low = rng.choice(PORTS)
        made = rule(
            rng.choice(DESTINATIONS),
            rng.choice(SOURCES),
            low,
            rng.randrange(low, PORTS.stop),
            rng.choice(("deny", "deny", "pass", "intercept")),
        )
        rules[str(made.key)] = made
    return list(rules.values())


def document(rules: Iterable[Rule], settings: Settings) -> Document:
    present = Firewall().save()
    return Document(
        version=present.version,
        flows=present.flows,
        settings={INTERFACE: settings},
        attachments=present.attachments,
        rules=tuple(RuleEntry.of(each) for each in rules),
    )


def check_each_kill(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], object],
    edit: Callable[[], object],
    *,
    is_whole: bool,
) -> None:
    """Kill the edit before each of its writes. ``is_whole``: the next writer leaves no mixture."""
    prepare()
    old, old_list = verdicts(), listing()
    edit()
    new, new_list = verdicts(), listing()
    for number in range(400):
        prepare()
        is_over = not is_killed_at(monkeypatch, number, edit)
        check(verdicts(), old, new, f"killed before write {number}")
        Firewall().set([INTERFACE], "vrrp", False)
        Firewall().insert(rule(Prefix.parse("203.0.113.1"), SOURCES[1], 1, 1, "deny"))
        Firewall().delete(RuleKey(Prefix.parse("203.0.113.1"), "udp", 1))
        check(verdicts(), old, new, f"repaired after a kill before write {number}")
        if is_whole:
            assert listing() in (old_list, new_list), f"repaired, write {number}"
        Contents().check()
        if is_over:
            return
    raise AssertionError("it never ends")


def from_scratch(rules: list[Rule]) -> None:
    Firewall().flush()
    fill(rules)


@pytest.mark.parametrize("seed", range(16))
def test_a_batch(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    before, after = some_rules(rng), some_rules(rng)
    edits: list[Insert | Delete] = [Delete(each.key) for each in before]
    edits += [Insert(each) for each in after]
    check_each_kill(
        monkeypatch,
        partial(from_scratch, before),
        partial(gateway.firewall.apply, edits),
        is_whole=False,
    )


def test_a_batch_that_inserts_and_deletes_is_all_or_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deny and the pass around it go, others come: no order of single writes would do."""
    inner, outer = DESTINATIONS[0], DESTINATIONS[2]
    before = [rule(inner, SOURCES[1], 1, 1, "deny"), rule(outer, SOURCES[1], 1, 1, "pass")]
    after = [rule(inner, SOURCES[1], 2, 2, "deny"), rule(outer, SOURCES[1], 2, 2, "pass")]
    edits: list[Insert | Delete] = [Delete(each.key) for each in before]
    edits += [Insert(each) for each in after]
    check_each_kill(
        monkeypatch,
        partial(from_scratch, before),
        partial(gateway.firewall.apply, edits),
        is_whole=True,
    )


@pytest.mark.parametrize("direction", [None, "ingress"])
def test_a_flush(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, direction: str | None) -> None:
    before = [rule(to, SOURCES[1], 1, 7, "deny") for to in DESTINATIONS[:2]]
    before.append(rule(DESTINATIONS[2], SOURCES[1], 1, 7, "pass"))
    check_each_kill(
        monkeypatch,
        partial(from_scratch, before),
        partial(gateway.firewall.flush, direction),
        is_whole=True,
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_restore(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Rules and the setting that narrows them: interfaces that rules name count, or do not."""
    rng = random.Random(seed)
    documents = []
    for _ in range(2):
        rules = [
            rule(
                each.key.destination,
                each.key.source,
                each.key.low_port,
                each.high_port,
                each.action,
                interfaces=rng.choice(((), (INTERFACE,), ("lo",))),
                limited=rng.random() < 0.5,
            )
            for each in some_rules(rng)
        ]
        settings = Settings(per_interface_rules=rng.random() < 0.5)
        documents.append(document(rules, settings))
    check_each_kill(
        monkeypatch,
        partial(gateway.firewall.restore, documents[0]),
        partial(gateway.firewall.restore, documents[1]),
        is_whole=False,
    )


def test_a_rule_that_a_setting_narrows(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document has a rule for lo alone: at no time does the packet of another one pass."""
    narrowed = rule(DESTINATIONS[0], SOURCES[1], 1, 7, "pass", interfaces=("lo",), limited=False)
    check_each_kill(
        monkeypatch,
        partial(gateway.firewall.restore, document([], Settings())),
        partial(gateway.firewall.restore, document([narrowed], Settings(per_interface_rules=True))),
        is_whole=True,
    )


@pytest.mark.parametrize("names", [("lo",), (INTERFACE, "lo")])
@pytest.mark.parametrize("action", ["deny", "pass"])
def test_rules_that_become_limited(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, action: str, names: tuple[str, ...]
) -> None:
    """A deny and the pass around it, and the other way round: both are limited in one edit."""
    around = {"deny": "pass", "pass": "deny"}[action]
    before = [
        rule(DESTINATIONS[0], SOURCES[1], 1, 7, action, interfaces=names, limited=False),
        rule(DESTINATIONS[2], SOURCES[1], 1, 7, around),
    ]
    after = [
        rule(DESTINATIONS[0], SOURCES[1], 1, 7, action, interfaces=("lo",)),
        rule(DESTINATIONS[2], SOURCES[1], 1, 7, around, interfaces=(INTERFACE,)),
    ]
    for first, second in ((before, after), (after, before)):
        check_each_kill(
            monkeypatch,
            partial(from_scratch, first),
            partial(gateway.firewall.apply, [Insert(each) for each in second]),
            is_whole=False,
        )


@pytest.mark.parametrize("limited", [False, True])
def test_rules_that_do_not_fit_together_let_nothing_in_meanwhile(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, *, limited: bool
) -> None:
    """Between both passes their prefix drops all, also where rules have to name the interface."""
    gateway.firewall.set([INTERFACE], "per_interface_rules", not limited)
    ours: dict[str, object] = {"interfaces": (INTERFACE,), "limited": limited}
    wide = rule(DESTINATIONS[2], SOURCES[1], 1, 9, "pass", **ours)
    denied = [
        [rule(DESTINATIONS[0], SOURCES[1], low, 7, "deny", **ours)]
        + [
            rule(DESTINATIONS[0], SOURCES[1], port, port, "deny", **ours)
            for port in range(first, first + 1100)
        ]
        for low, first in ((1, 10000), (2, 20000))
    ]
    from_scratch([wide, *denied[0]])
    edits: list[Insert | Delete] = [Delete(each.key) for each in denied[0]]
    edits += [Insert(each) for each in denied[1]]
    edits.append(Insert(rule(DESTINATIONS[1], SOURCES[1], 9, 9, "deny", **ours)))

    def reason() -> str:
        return explain(Maps(is_writer=False), FRAMES[7], if_nametoindex(INTERFACE)).reason

    found = watch_each_write(monkeypatch, reason)
    gateway.firewall.apply(edits)
    assert set(found) <= {"rule_deny", "rules_changing"}
    assert len(found) > 10


@pytest.mark.parametrize("again", range(0, 24, 3))
def test_a_second_interrupt_does_not_cut_off_the_undo(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """Ctrl-C in the middle of an edit, and again while it is undone."""
    inner, outer = DESTINATIONS[0], DESTINATIONS[2]
    before = [rule(inner, SOURCES[1], 1, 1, "deny"), rule(outer, SOURCES[1], 1, 1, "pass")]
    after = [rule(inner, SOURCES[1], 2, 2, "deny"), rule(outer, SOURCES[1], 2, 2, "pass")]
    edits: list[Insert | Delete] = [Delete(each.key) for each in before]
    edits += [Insert(each) for each in after]
    from_scratch(before)
    old = listing()
    interrupted = 0

    def interrupt() -> None:
        raise KeyboardInterrupt

    def interrupt_again() -> None:
        nonlocal interrupted
        interrupted += 1
        os.kill(os.getpid(), signal.SIGINT)

    for number in range(1, 30):
        with monkeypatch.context() as patched:
            left = fail_at(patched, number, interrupt)
            fail_at(patched, number + 1 + again, interrupt_again)
            try:
                gateway.firewall.apply(edits)
            except KeyboardInterrupt:
                pass
            if left[0] >= 0:
                break
        assert listing() == old, f"after write {number}"
        Contents().check()
    assert interrupted
