# SPDX-License-Identifier: GPL-2.0-only
"""Upgrading the firewall in place to programs of another build, on live traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpf.build import compile_bpf
from tests.firewall.support.attached import (
    ALLOWED,
    INTERFACE,
    STAND_IN,
    Stream,
    allow,
    attached,
    directory,
    frame,
    names_in,
    our_program,
    use_object,
)
from tests.support.netns import Network
from zfw_py import OWN4, Firewall, Insert, KernelError, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_programs_of_another_build_are_exchanged_without_a_gap(
    machine: Network, mode: str, newer_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, "both", mode)
    firewall.set([INTERFACE], "icmp_echo", True)
    old = {direction: our_program(direction) for direction in ("ingress", "egress")}
    with Stream(machine) as stream:
        stream.flows()
        counted = firewall.rules()[0].packets
        with monkeypatch.context() as patched:
            use_object(patched, newer_object)
            made = firewall.attach(INTERFACE, "both", mode)
            stream.flows()
            assert not {one.program_id for one in made} & set(old.values())
            assert attached(INTERFACE) == [
                (direction, mode, our_program(direction)) for direction in ("ingress", "egress")
            ]
            assert firewall.attach(INTERFACE, "both", mode) == made, "once is enough"
    assert (stream.lost, stream.leaked) == ([], [])
    (rule,) = firewall.rules()
    assert rule.packets == stream.sent > counted > 0
    assert firewall.status().interfaces[0].settings["icmp_echo"]
    assert not [name for name in names_in(directory()) if "new" in name]


@pytest.mark.usefixtures("stand_in")
def test_an_upgrade_reaches_every_interface(
    network: Network, newer_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.gateway.add_veth("up0", "up1")
    firewall = Firewall()
    firewall.attach(INTERFACE, "both", "tcx")
    firewall.attach("up0", "both", "clsact")
    old = our_program()
    use_object(monkeypatch, newer_object)
    firewall.attach("up1", "ingress")
    assert our_program() != old
    for interface, mode in ((INTERFACE, "tcx"), ("up0", "clsact")):
        assert attached(interface) == [
            (direction, mode, our_program(direction)) for direction in ("ingress", "egress")
        ]
    assert attached("up1") == [("ingress", "tcx", our_program())]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("kind", ["limited", "own"])
def test_a_rule_that_older_programs_may_not_know_brings_the_new_ones(
    machine: Network,
    newer_object: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    *,
    by_batch: bool,
) -> None:
    """An older program knows no rule limited to its interfaces, and none for own addresses."""
    destination = Prefix.parse("100.72.0.4")

    def insert(rule: Rule) -> None:
        if by_batch:
            firewall.apply([Insert(rule)])
        else:
            firewall.insert(rule)

    firewall = Firewall()
    firewall.attach(INTERFACE, "both")
    old = our_program()
    use_object(monkeypatch, newer_object)
    insert(Rule(RuleKey(destination, "tcp", 80), interfaces=("lo",), limited=False))
    assert our_program() == old
    if kind == "own":
        insert(Rule(RuleKey(OWN4, "tcp", 80)))
    else:
        insert(Rule(RuleKey(destination, "tcp", 81), interfaces=("lo",)))
    assert our_program() != old
    assert attached(INTERFACE) == [
        (direction, "tcx", our_program(direction)) for direction in ("ingress", "egress")
    ]


def test_an_upgrade_that_does_not_load_changes_nothing(
    machine: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bad.bpf.c"
    # Reads beyond the packet: no verifier lets this through.
    source.write_text(
        STAND_IN.replace("(void)skb; return TC_ACT_UNSPEC", "return *(int *)(long)skb->data", 1)
    )
    compile_bpf(source, tmp_path / "bad.bpf.o")
    allow()
    Firewall().attach(INTERFACE, "ingress")
    before = attached(INTERFACE)
    with monkeypatch.context() as patched:
        use_object(patched, tmp_path / "bad.bpf.o")
        with pytest.raises(KernelError, match="ingress"):
            Firewall().attach(INTERFACE, "ingress")
    assert attached(INTERFACE) == before
    assert Firewall().explain(frame(ALLOWED), INTERFACE).reason == "rule_pass"
