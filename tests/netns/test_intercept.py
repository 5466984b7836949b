# SPDX-License-Identifier: GPL-2.0-only
"""The main job, on real traffic: intercept, drop, pass."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.listeners import tcp_listener
from zfw_py import Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from tests.support.netns import Network
    from zfw_py import Firewall

pytestmark = pytest.mark.kernel

SERVICES = {4: "100.72.0.4", 6: "fd72::4"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_reaches_the_listener_with_its_original_destination(
    firewall: Firewall, network: Network, family: int
) -> None:
    address = SERVICES[family]
    with tcp_listener(family) as listener:
        key = RuleKey(Prefix.parse(address), "tcp", 22)
        firewall.insert(Rule(key, tproxy_port=listener.port), route=True)
        with network.client.entered():
            client = socket.create_connection((address, 22), timeout=5)
        client.sendall(b"hello")
        connection = listener.accept()
        assert connection.getsockname()[:2] == (address, 22)
        assert connection.recv(5) == b"hello"
        connection.sendall(b"there")
        assert client.recv(5) == b"there"
        connection.close()
        client.close()
    reasons = firewall.status().reasons
    assert reasons["rule_intercept"][0] == 1
    assert reasons["established"][0] >= 2
    assert firewall.rules()[0].packets == 1
