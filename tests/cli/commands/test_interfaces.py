# SPDX-License-Identifier: GPL-2.0-only
"""zfw attach, detach, set and status."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import pytest

from zfw_py import Firewall, Prefix, Rule, RuleKey, __version__

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel


def test_attach_and_detach(zfw: Zfw, network: Network) -> None:
    result = zfw("attach", "gw0", "--mode", "clsact")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(
        r"attached gw0 egress by clsact \(program \d+\)\n"
        r"attached gw0 ingress by clsact \(program \d+\)\n",
        "".join(sorted(result.out.splitlines(keepends=True))),
    )
    assert sorted(zfw("detach", "gw0").out.splitlines()) == [
        "detached gw0 egress (clsact)",
        "detached gw0 ingress (clsact)",
    ]
    assert zfw("detach", "gw0") == (5, "", "zfw: warning: nothing is attached to gw0\n")
    assert zfw("detach", "--all") == (0, "removed all rules and settings\n", "")
    assert zfw("detach", "--all").code == 3


def test_attach_of_one_direction(zfw: Zfw, network: Network) -> None:
    for direction in ("ingress", "egress"):
        assert zfw("attach", "gw0", "--direction", direction).out.startswith(
            f"attached gw0 {direction} by "
        )
        assert len(zfw("detach", "gw0").out.splitlines()) == 1


def test_a_missing_interface_does_not_stop_the_others(zfw: Zfw, network: Network) -> None:
    result = zfw("attach", "nosuch", "gw0")
    assert (result.code, result.err) == (5, "zfw: warning: Interface not found: nosuch\n")
    assert result.out.startswith("attached gw0 ingress by ")
    assert "gw0" in [interface.name for interface in Firewall().status().interfaces]


def test_a_bridge_port_is_attached_with_a_warning(zfw: Zfw, network: Network) -> None:
    network.gateway.add_bridge("br0", "gw0")
    try:
        found = zfw("attach", "gw0")
        assert (found.code, found.out.count("attached gw0")) == (0, 2)
        assert found.err == (
            "zfw: warning: gw0 is a port of br0: a rule is needed also for frames that br0"
            " sends on to another port, unless you attach to br0 instead\n"
        )
        assert zfw("attach", "gw0", "--direction", "egress").err == zfw("attach", "br0").err == ""
    finally:
        network.gateway.run("ip", "link", "del", "br0")


def test_set(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("set", "gw0", "--ssh", "off", "--per-interface-rules", "on") == (
        0,
        "gw0: ssh off\ngw0: per-interface-rules on\n",
        "",
    )
    (gateway,) = firewall.status().interfaces
    assert not gateway.settings["ssh"]
    assert gateway.settings["per_interface_rules"]
    assert zfw("set", "all", "--icmp-echo", "on") == (0, "gw0: icmp-echo on\n", "")
    assert zfw("set", "nosuch", "--ssh", "on") == (5, "", "zfw: Interface not found: nosuch\n")


def test_status(zfw: Zfw, firewall: Firewall, network: Network) -> None:
    firewall.insert(Rule(RuleKey(Prefix.parse("10.0.0.0/8"), "tcp", 1)))
    with network.client.entered(), pytest.raises(TimeoutError):
        socket.create_connection((network.gateway_ipv4, 23), timeout=0.2)
    result = zfw("status")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:3] == [
        f"zfw {__version__}",
        "rules: 1 ingress IPv4, 0 ingress IPv6, 0 egress IPv4, 0 egress IPv6",
        "",
    ]
    assert lines[3].split() == [
        "INTERFACE",
        "IFINDEX",
        "INGRESS",
        "EGRESS",
        "SETTINGS",
        "ADDRESSES",
    ]
    name, _, ingress, egress, settings, addresses = lines[4].split()
    assert (name, egress, settings) == ("gw0", "-", "ssh,ipv6")
    assert ingress in ("tcx", "clsact")
    assert "10.9.0.1" in addresses.split(",")
    assert lines[6].split() == ["REASON", "PACKETS", "BYTES"]
    assert any(line.split()[:2] == ["no_rule", "1"] for line in lines[7:])


def test_status_json(zfw: Zfw, firewall: Firewall) -> None:
    firewall.insert(Rule(RuleKey(Prefix.parse("fd00::/8"), "tcp", 1)))
    result = zfw("status", "--json")
    assert (result.code, result.err) == (0, "")
    status = json.loads(result.out)
    assert list(status) == [
        "version",
        "interfaces",
        "rules",
        "reasons",
        "differences",
        "absent",
        "followed",
    ]
    assert status["version"] == __version__
    assert status["differences"] == []
    assert status["rules"] == {
        "ingress": {"ipv4": 0, "ipv6": 1},
        "egress": {"ipv4": 0, "ipv6": 0},
    }
    (interface,) = status["interfaces"]
    assert list(interface) == ["name", "ifindex", "ingress", "egress", "settings", "addresses"]
    assert interface["egress"] is None
    assert list(interface["ingress"]) == ["mode", "program_id"]
    assert interface["settings"]["ipv6"] is True
    assert {"10.9.0.1", "fd09::1"} <= set(interface["addresses"])
    assert status["reasons"]["no_rule"].keys() == {"packets", "bytes"}
    assert len(status["reasons"]) == len(firewall.status().reasons)
