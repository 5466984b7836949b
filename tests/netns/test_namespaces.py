# SPDX-License-Identifier: GPL-2.0-only
"""State of network namespaces: each has its own, and that of one that is gone is removed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.netns import Namespace, Network
from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.kernel.bpffs import published
from zfw_py.kernel.namespaces import live_cookies
from zfw_py.kernel.netns import netns_cookie

pytestmark = pytest.mark.kernel


def test_a_namespace_that_a_thread_a_descriptor_or_a_mount_holds_is_live(
    namespace: Namespace,
) -> None:
    held_by_descriptor = Namespace()
    with held_by_descriptor.entered():
        cookie = netns_cookie()
    live = live_cookies()
    assert live is not None
    assert {netns_cookie(), cookie} <= live
    held_by_descriptor.close()
    assert cookie not in (live_cookies() or ())


def test_state_of_a_namespace_that_is_gone_is_removed_by_the_next_first_attach(
    network: Network,
) -> None:
    gone = Namespace()
    with gone.entered():
        gone.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        Firewall().attach("d0")
        old = netns_cookie()
        rule = Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1))
        Firewall().insert(rule)
    assert old in published()
    gone.close()

    # The kernel takes a namespace apart in its own time.
    deadline = time.monotonic() + 10
    while old in published() and time.monotonic() < deadline:
        Firewall().attach(network.interface)
        if old in published():
            Firewall().detach_all()
    assert published() == [netns_cookie()]


def test_state_of_a_namespace_that_lives_stays(network: Network) -> None:
    with network.client.entered():
        Firewall().attach("eth0")
    Firewall().attach(network.interface)
    assert len(published()) == 2
    with network.client.entered():
        assert Firewall().detach_all()
    assert Path(f"/sys/fs/bpf/zfw/{netns_cookie()}").is_dir()
