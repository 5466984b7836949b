# SPDX-License-Identifier: GPL-2.0-only
"""The classic listings: columns, headings and filters."""

from __future__ import annotations

import pytest

from zfw_py import Attachment, InterfaceStatus, Prefix, Rule, RuleKey
from zfw_py.cli.classic.grammar import parse
from zfw_py.cli.classic.listing import rules_text, settings_text


def rule(
    destination: str, protocol: str, low: int, source: str | None = None, **details: object
) -> Rule:
    direction = str(details.pop("direction", "ingress"))
    high = details.pop("high", low)
    key = RuleKey(
        Prefix.parse(destination),
        protocol,
        low,
        source=Prefix.parse(source) if source else None,
        direction=direction,
    )
    return Rule(key, high, **details)  # type: ignore[arg-type]


RULES = [
    rule(
        "10.1.2.5",
        "tcp",
        1,
        high=31,
        tproxy_port=5022,
        service_id="5XzC8mf1RrFO2vmfHGG5GL",
        interfaces=["pzr0", "lo"],
    ),
    rule("10.1.2.5", "tcp", 80),
    rule("10.1.2.7", "udp", 5, "192.168.0.0/16", high=6, deny=True),
    rule("fd00::/8", "tcp", 443, tproxy_port=5000),
    rule("10.0.0.0/8", "tcp", 0, high=65535, direction="egress"),
]

HEADINGS = (
    "type   service id            \tproto\torigin              \tdestination"
    "                     mapping:                \t\t\t\tinterface list                 \n"
    "------ ----------------------\t-----\t-----------------\t------------------\t\t"
    "-------------------------------------------------------\t-----------------\n"
)


def listing(*options: str) -> str:
    return rules_text(RULES, parse(["-L", *options]))


def test_ipv4() -> None:
    assert listing() == (
        "INGRESS FILTERS:\n" + HEADINGS + "accept 5XzC8mf1RrFO2vmfHGG5GL\ttcp\t0.0.0.0/0           "
        "\t10.1.2.5/32                     dpts=1:31        "
        "\tTPROXY redirect 127.0.0.1:5022  [lo,pzr0]\n"
        "accept 0000000000000000000000\ttcp\t0.0.0.0/0           "
        "\t10.1.2.5/32                     dpts=80:80       "
        "\tPASSTHRU to 10.1.2.5/32         []\n"
        "deny   0000000000000000000000\tudp\t192.168.0.0/16      "
        "\t10.1.2.7/32                     dpts=5:6         "
        "\tPASSTHRU to 10.1.2.7/32         []\n"
        "Rule Count: 3 / 2097152\n"
        "prefix_tuple_count: 2 / 2097152\n"
    )


def test_ipv6() -> None:
    assert listing("-6", "all").splitlines()[3] == (
        "accept 0000000000000000000000\ttcp\t::/0                "
        "\tfd00::/8                        dpts=443:443     "
        "\tTPROXY redirect [::1]:5000      []"
    )


@pytest.mark.parametrize(
    ("options", "ports"),
    [
        ("", [1, 80, 5]),
        ("-i", [1]),
        ("-f", [80, 5]),
        ("-if", [1, 80, 5]),
        ("-z egress", [0]),
        ("-c 10.1.2.5 -m 32", [1, 80]),
        ("-c fd00:: -m 8", [443]),
        ("-c 10.1.2.7 -m 32 -o 192.168.0.0 -n 16", [5]),
        ("-p tcp", [1, 80]),
        ("-o 0.0.0.0 -n 0", [1, 80]),
    ],
)
def test_filters(options: str, ports: list[int]) -> None:
    lines = listing(*options.split()).splitlines()[3:-2]
    assert [int(line.split("dpts=")[1].split(":")[0]) for line in lines] == ports


def test_settings() -> None:
    settings = {
        "icmp_echo": True,
        "ssh": False,
        "ipv6": False,
        "per_interface_rules": False,
        "pass_non_tuple": False,
        "verbose": False,
        "outbound_filter": True,
        "vrrp": True,
        "eapol": False,
    }
    attachments = {"ingress": Attachment(2, "ingress", "tcx", 5)}
    assert settings_text([InterfaceStatus("eth0", 2, attachments, settings, [])]) == (
        "eth0: 2\n"
        "--------------------------\n"
        "icmp echo               :1\n"
        "pass non tuple          :0\n"
        "ipv6 enable             :0\n"
        "verbose                 :0\n"
        "ssh disable             :1\n"
        "outbound filter         :1\n"
        "per interface           :0\n"
        "tc ingress filter       :1\n"
        "tc egress filter        :0\n"
        "tun mode intercept      :0\n"
        "vrrp enable             :1\n"
        "eapol enable            :0\n"
        "ddos filtering          :0\n"
        "masquerade              :0\n"
        "--------------------------\n"
        "\n"
    )
