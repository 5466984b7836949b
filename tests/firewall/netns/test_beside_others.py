# SPDX-License-Identifier: GPL-2.0-only
"""Attaching beside the TCX programs and filters of other owners."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.attached import (
    INTERFACE,
    attached,
    clsact_programs,
    filters,
    our_program,
)
from tests.support.netns import Network
from tests.support.tcx import tcx_programs
from tests.support.waiting import wait_until
from zfw_py import Conflict, Firewall
from zfw_py.kernel import bpf_links, bpf_maps
from zfw_py.kernel.libbpf import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.kernel


@contextmanager
def foreign_link(stand_in_object: Path, interface: str, direction: str) -> Iterator[int]:
    """A program of another owner on TCX; its id."""
    attach_type = {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}[direction]
    with BpfObject(stand_in_object) as loaded:
        loaded.load()
        program = loaded.programs()[direction]
        link = bpf_links.create_link(program, socket.if_nametoindex(interface), attach_type)
        try:
            yield bpf_maps.object_id(program)
        finally:
            os.close(link)


def tc(machine: Network, *words: str) -> None:
    machine.gateway.run("tc", *words)


FOREIGN_BPF = ("protocol", "all", "bpf", "bytecode", "1,6 0 0 4294967295,")  # unspec: go on
FOREIGN_U32 = ("protocol", "ip", "u32", "match", "u32", "0", "0")


@pytest.mark.parametrize("detach_everything", [False, True])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.usefixtures("stand_in")
def test_others_tcx_programs_stay(
    network: Network,
    stand_in_object: Path,
    direction: str,
    detach_everything: bool,
) -> None:
    with foreign_link(stand_in_object, INTERFACE, direction) as foreign:
        Firewall().attach(INTERFACE, direction, "tcx")
        # A program in front could end the chain: ours never saw the packet.
        assert tcx_programs(INTERFACE, direction) == [our_program(direction), foreign]
        if detach_everything:
            Firewall().detach_all()
        else:
            Firewall().detach(INTERFACE)
        assert wait_until(lambda: tcx_programs(INTERFACE, direction) == [foreign])


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_the_status_says_which_program_runs_before_ours(
    machine: Network, stand_in_object: Path, direction: str, mode: str
) -> None:
    Firewall().attach(INTERFACE, direction, mode)
    assert Firewall().status().differences == []
    attach_type = {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}[direction]
    with BpfObject(stand_in_object) as loaded:
        loaded.load()
        program = loaded.programs()[direction]
        index = socket.if_nametoindex(INTERFACE)
        link = bpf_links.create_link(program, index, attach_type, is_first=True)
        number = bpf_maps.object_id(program)
        (found,) = Firewall().status().differences
        os.close(link)
    assert (found.interface, found.what) == (
        INTERFACE,
        f"{direction}: TCX program {number} runs before the firewall's, and may pass packets"
        " past it",
    )
    assert found.command == (
        f"zfw detach {INTERFACE} && zfw attach {INTERFACE} --direction {direction}"
        if mode == "tcx"
        else f"zfw attach {INTERFACE} --direction {direction} --mode tcx"
    )
    assert wait_until(lambda: Firewall().status().differences == [])


@pytest.mark.parametrize("detach_everything", [False, True])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.usefixtures("stand_in")
def test_others_filters_stay(network: Network, direction: str, detach_everything: bool) -> None:
    on = ("filter", "add", "dev", INTERFACE, direction)
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    # At our preference beside ours, and behind it, of our kind and of another.
    tc(network, *on, "pref", "1", "handle", "5", *FOREIGN_BPF)
    tc(network, *on, "pref", "2", "handle", "0x7a66", *FOREIGN_BPF)
    tc(network, *on, "pref", "3", *FOREIGN_U32)
    before = filters(INTERFACE, direction)
    Firewall().attach(INTERFACE, direction, "clsact")
    assert clsact_programs(INTERFACE, direction).count(our_program(direction)) == 1
    assert len(filters(INTERFACE, direction)) == len(before) + 1
    if detach_everything:
        Firewall().detach_all()
    else:
        Firewall().detach(INTERFACE)
    assert filters(INTERFACE, direction) == before


@pytest.mark.usefixtures("stand_in")
def test_a_clsact_that_others_use_on_the_other_side_stays(
    network: Network,
) -> None:
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(network, "filter", "add", "dev", INTERFACE, "egress", "pref", "7", *FOREIGN_U32)
    before = filters(INTERFACE, "egress")
    Firewall().attach(INTERFACE, "ingress", "clsact")
    Firewall().detach_all()
    assert filters(INTERFACE, "egress") == before


@pytest.mark.parametrize("direction", ["ingress", "egress", "both"])
def test_a_filter_of_another_kind_at_our_preference_is_a_conflict(
    machine: Network, direction: str
) -> None:
    """On egress: with "both", ingress must not be left behind."""
    foreign_on = "ingress" if direction == "ingress" else "egress"
    tc(machine, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(machine, "filter", "add", "dev", INTERFACE, foreign_on, "pref", "1", *FOREIGN_U32)
    before = filters(INTERFACE, foreign_on)
    with pytest.raises(Conflict, match="preference 1"):
        Firewall().attach(INTERFACE, direction, "clsact")
    assert filters(INTERFACE, foreign_on) == before
    assert attached(INTERFACE) == []


@pytest.mark.usefixtures("stand_in")
def test_a_first_attach_that_fails_leaves_no_firewall_behind(
    network: Network,
) -> None:
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(network, "filter", "add", "dev", INTERFACE, "ingress", "pref", "1", *FOREIGN_U32)
    with pytest.raises(Conflict):
        Firewall().attach(INTERFACE, "ingress", "clsact")
    assert not Firewall().is_installed()


def test_a_conflict_when_the_mode_is_changed_leaves_the_old_mode(machine: Network) -> None:
    Firewall().attach(INTERFACE, "ingress", "tcx")
    tc(machine, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(machine, "filter", "add", "dev", INTERFACE, "ingress", "pref", "1", *FOREIGN_U32)
    with pytest.raises(Conflict):
        Firewall().attach(INTERFACE, "ingress", "clsact")
    assert attached(INTERFACE) == [("ingress", "tcx", our_program())]


def test_an_old_ingress_qdisc_serves_ingress_and_is_a_conflict_for_egress(
    machine: Network,
) -> None:
    """It has no egress: a filter meant for there would meet what comes in."""
    tc(machine, "qdisc", "add", "dev", INTERFACE, "ingress")
    try:
        Firewall().attach(INTERFACE, "ingress", "clsact")
        assert clsact_programs(INTERFACE, "ingress") == [our_program()]
        with pytest.raises(Conflict):
            Firewall().attach(INTERFACE, "egress", "clsact")
        assert clsact_programs(INTERFACE, "ingress") == [our_program()]
    finally:
        tc(machine, "qdisc", "del", "dev", INTERFACE, "ingress")
