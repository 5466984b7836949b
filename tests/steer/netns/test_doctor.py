# SPDX-License-Identifier: GPL-2.0-only
"""Each finding about steering: provoked, found, mended by its own command, gone."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.gateway import mapping
from tests.support import doctor
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py import Firewall
from zfw_py.kernel import bpf_links, bpf_maps
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.steer import programs
from zfw_py.steer.maps import STORE
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from zfw_py.kernel.libbpf import BpfObject as Object

pytestmark = pytest.mark.kernel

MAPPING = mapping("tcp", "any", "5555", "127.0.0.1:2222")


def test_a_program_that_another_process_detached(steering: Steering) -> None:
    steering.add([MAPPING])
    assert doctor.findings() == []
    link = bpf_maps.open_pin(f"{STORE.directory(steering.cookie)}/link_lookup")
    bpf_links.detach_link(link)
    os.close(link)
    doctor.mend("steer-detached")
    assert [each.mapping for each in steering.mappings()] == [MAPPING]
    assert not steering.status().is_detached


def attached_lookup(loaded: Object, steering: Steering) -> int:
    """The link of a program that lets all pass; its name in the kernel is ``lookup``."""
    loaded.load()
    program = loaded.programs()["lookup"]
    return bpf_links.create_link(program, steering._fd, bpf_links.SK_LOOKUP)


def test_a_program_in_front(steering: Steering, stack: ExitStack) -> None:
    loaded = stack.enter_context(BpfObject(programs.SYSTEM.object))
    stack.callback(os.close, attached_lookup(loaded, steering))
    steering.add([MAPPING])
    number = steering.status().order[0]
    assert doctor.mend("steer-program-ahead") == [
        f"sk_lookup program {number} runs before the one that steers"
    ]


def test_a_program_behind_and_the_firewall_s_are_none(
    network: Network, steering: Steering, stack: ExitStack
) -> None:
    Firewall().attach(network.interface)
    steering.add([MAPPING])
    loaded = stack.enter_context(BpfObject(programs.SYSTEM.object))
    stack.callback(os.close, attached_lookup(loaded, steering))
    assert len(steering.status().order) == 3
    assert doctor.findings() == []


def test_pins_that_nothing_uses(steering: Steering) -> None:
    steering.add([MAPPING])
    with Network() as gone, gone.gateway.entered():
        other = Steering()
        other.add([MAPPING])
        cookie = other.cookie
        del other
    Path(f"{STORE.root}/new_1").mkdir()
    assert wait_until(lambda: len(doctor.findings()) == 2)
    assert doctor.mend("steer-stale-pins") == [
        f"{STORE.root}/new_1 was left by a process that was killed",
        f"{STORE.root}/{cookie} is of a network namespace that is gone",
    ]
