# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures: a private bpffs, network namespaces, a firewall in one of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.netns import Namespace, Network, use_private_bpffs
from zfw_py import Firewall, NotInstalled

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def _private_bpffs() -> None:
    """Before the first test that enters the kernel: nothing of the machine's is touched."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    use_private_bpffs()


@pytest.fixture
def namespace(_private_bpffs: None) -> Iterator[Namespace]:
    """The test is inside a network namespace of its own, with nothing but lo."""
    made = Namespace()
    try:
        with made.entered():
            yield made
            remove_firewall()
    finally:
        made.close()


@pytest.fixture
def network(_private_bpffs: None) -> Iterator[Network]:
    """The test is inside the gateway of a client and a gateway."""
    made = Network()
    try:
        with made.gateway.entered():
            yield made
            remove_firewall()
    finally:
        made.close()


@pytest.fixture
def firewall(network: Network) -> Firewall:
    """A firewall on the gateway's interface, IPv6 on, without a rule."""
    made = Firewall()
    made.attach(network.interface)
    made.set([network.interface], "ipv6", True)
    return made


def remove_firewall() -> None:
    """Take off whatever a test left in this namespace."""
    try:
        Firewall().detach_all()
    except NotInstalled:
        pass
