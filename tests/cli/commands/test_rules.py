# SPDX-License-Identifier: GPL-2.0-only
"""zfw insert, delete and list."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Zfw

pytestmark = pytest.mark.kernel

SSH = ("-c", "100.72.0.4", "-m", "32", "-p", "tcp", "-l", "22")


def test_insert_replace_list_delete(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("insert", *SSH, "-h", "30", "-t", "43321", "-s", "ssh") == (
        0,
        "inserted ingress tcp 100.72.0.4/32 port 22-30 intercept\n",
        "",
    )
    assert zfw("insert", *SSH, "-t", "0") == (
        0,
        "replaced ingress tcp 100.72.0.4/32 port 22 pass\n",
        "",
    )
    assert zfw("insert", "-c", "fd72::/64", "-o", "fd00::/8", "-pUDP", "-l53", "-t5353") == (
        0,
        "inserted ingress udp fd72::/64 from fd00::/8 port 53 intercept\n",
        "",
    )
    assert zfw("list") == (
        0,
        "DIRECTION  PROTOCOL  DESTINATION    SOURCE     PORTS  ACTION     TPROXY  SERVICE"
        "  INTERFACES  PACKETS  BYTES\n"
        "ingress    tcp       100.72.0.4/32  0.0.0.0/0  22     pass       -       -      "
        "  -                 0      0\n"
        "ingress    udp       fd72::/64      fd00::/8   53     intercept  5353    -      "
        "  -                 0      0\n",
        "",
    )
    assert zfw("delete", *SSH) == (0, "deleted ingress tcp 100.72.0.4/32 port 22\n", "")
    assert zfw("delete", *SSH) == (
        5,
        "",
        "zfw: no rule ingress tcp 100.72.0.4/32 port 22: the prefix has none\n",
    )


def test_the_line_of_an_insert_deletes_it(zfw: Zfw, firewall: Firewall) -> None:
    line = (*SSH, "-h", "80", "-t", "43321", "-s", "ssh", "-N", "gw0")
    assert zfw("insert", *line).code == 0
    assert zfw("delete", *line).code == 0
    assert zfw("list") == (0, "no rules\n", "")


def test_interfaces_join_and_leave_one_by_one(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("insert", *SSH, "-N", "gw0").code == 0
    assert zfw("insert", *SSH, "--interface=lo").code == 0
    assert firewall.rules()[0].interfaces == ("gw0", "lo")
    assert zfw("delete", *SSH, "-N", "gw0").out == (
        "removed gw0 from ingress tcp 100.72.0.4/32 port 22\n"
    )
    assert firewall.rules()[0].interfaces == ("lo",)
    assert zfw("delete", *SSH, "-N", "lo").out == "deleted ingress tcp 100.72.0.4/32 port 22\n"
    assert firewall.rules() == []


def test_the_list_shows_which_rules_count_elsewhere_too(
    zfw: Zfw, firewall: Firewall, stdin: Callable[[str], object]
) -> None:
    """Those of the classic grammar, and no others."""
    stdin(" ".join(("-I", *SSH, "-h", "22", "-t", "0", "-N", "lo")))
    assert zfw("batch").err == (
        "zfw: warning: stdin:1: rule ingress tcp 100.72.0.4/32 port 22 pass counts on gw0 too,"
        " which does not look at the interfaces of rules: zfw set gw0 --per-interface-rules on\n"
    )
    assert zfw("insert", *SSH, "-m", "31", "-N", "lo").err == ""
    assert zfw("insert", *SSH, "-m", "30").err == ""
    cells = [line.split()[8] for line in zfw("list").out.splitlines()]
    assert cells == ["INTERFACES", "-", "lo", "lo,*"]
    listed = json.loads(zfw("list", "--json").out)
    assert [(rule["interfaces"], rule["limited"]) for rule in listed] == [
        ([], False),
        (["lo"], True),
        (["lo"], False),
    ]


def test_rules_for_own_addresses(
    zfw: Zfw, firewall: Firewall, stdin: Callable[[str], object]
) -> None:
    own = ("-c", "own4", "-p", "udp", "-l", "53")
    assert zfw("insert", *own) == (0, "inserted ingress udp own4 port 53 pass\n", "")
    assert zfw("insert", *own, "--deny").out == "replaced ingress udp own4 port 53 deny\n"
    stdin("insert -c own6 -p tcp -l 80 -t 43321\ninsert -cown6 -o fd00::/8 -ptcp -l80\n")
    assert zfw("batch").out == "2 inserted, 0 replaced, 0 deleted\n"
    listed = json.loads(zfw("list", "--json").out)
    assert [(rule["family"], rule["destination"], rule["action"]) for rule in listed] == [
        (4, "own4", "deny"),
        (6, "own6", "intercept"),
        (6, "own6", "pass"),
    ]
    assert len(json.loads(zfw("list", "--json", "-c", "own6").out)) == 2
    assert zfw("insert", *own, "-z", "egress") == (
        2,
        "",
        "zfw: -c, --destination: nothing leaves for own4: a rule for it is one of ingress\n",
    )
    assert zfw("delete", *own) == (0, "deleted ingress udp own4 port 53\n", "")


def test_the_grammar_of_a_line_says_whether_its_rule_is_limited(
    zfw: Zfw, firewall: Firewall, stdin: Callable[[str], object]
) -> None:
    stdin(
        "insert -c 10.0.0.1 -p tcp -l 1 -N lo\n"
        "-I -c 10.0.0.2 -m 32 -p tcp -l 1 -h 1 -t 0 -N lo\n"
        "insert -c 10.0.0.3 -p tcp -l 1\n"
    )
    assert zfw("batch").code == 0
    assert [rule.is_limited for rule in firewall.rules()] == [True, False, False]


def test_a_rule_that_cannot_match_is_a_warning(zfw: Zfw, firewall: Firewall) -> None:
    zfw("insert", "-c", "10.0.0.0/8", "-p", "tcp", "-l", "0", "-h", "65535")
    assert zfw("insert", "-c", "10.0.0.0/8", "-p", "tcp", "-l", "22", "--deny") == (
        0,
        "inserted ingress tcp 10.0.0.0/8 port 22 deny\n",
        "zfw: warning: rule ingress tcp 10.0.0.0/8 port 22 deny can never match:"
        " earlier rules of its prefix cover it\n",
    )


def test_a_missing_interface(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("insert", *SSH, "-N", "nosuch") == (5, "", "zfw: Interface not found: nosuch\n")
    assert firewall.rules() == []


def test_ipv6_takes_any_ipv4_source(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("insert", "-c", "fd00::1", "-p", "tcp", "-l", "1", "-o", "0.0.0.0", "-n", "0") == (
        0,
        "inserted ingress tcp fd00::1/128 port 1 pass\n",
        "",
    )


def test_list_filters(zfw: Zfw, firewall: Firewall) -> None:
    zfw("insert", "-c", "10.0.0.0/8", "-p", "tcp", "-l", "1", "-t", "5000")
    zfw("insert", "-c", "10.0.0.0/16", "-p", "tcp", "-l", "2")
    zfw("insert", "-c", "10.0.0.0/16", "-p", "tcp", "-l", "3", "--deny", "-z", "egress")

    def listed(*options: str) -> list[int]:
        return [rule["low_port"] for rule in json.loads(zfw("list", "--json", *options).out)]

    assert listed() == [1, 2, 3]
    assert listed("-z", "egress") == [3]
    assert listed("-c", "10.1.2.3/8") == [1]
    assert listed("--intercepts") == [1]
    assert listed("--passthrough") == [2]
    assert zfw("list", "--intercepts", "--passthrough") == (
        2,
        "",
        "zfw: --intercepts: not together with --passthrough\n",
    )
    assert zfw("list", "-c", "10/8") == (
        2,
        "",
        "zfw: -c, --destination: not an IPv4 or IPv6 address: '10'\n",
    )


def test_json(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("list", "--json") == (0, "[]\n", "")
    hostile = '"},{\u202e[red]\udcff'
    key = RuleKey(Prefix.parse("fd72::4"), "udp", 22)
    firewall.insert(Rule(key, 30, tproxy_port=43321, service_id=hostile, interfaces=["gw0", "lo"]))
    zfw("insert", *SSH)
    result = zfw("list", "--json")
    assert result.out.isascii()
    assert json.loads(result.out)[1] == {
        "direction": "ingress",
        "family": 6,
        "protocol": "udp",
        "destination": "fd72::4/128",
        "source": "::/0",
        "low_port": 22,
        "high_port": 30,
        "action": "intercept",
        "tproxy_port": 43321,
        "service_id": hostile,
        "interfaces": ["gw0", "lo"],
        "limited": True,
        "packets": 0,
        "bytes": 0,
    }
    assert len(result.out.splitlines()) == 4


def test_text_holds_nothing_that_a_terminal_obeys(zfw: Zfw, firewall: Firewall) -> None:
    key = RuleKey(Prefix.parse("fd72::4"), "udp", 22)
    firewall.insert(Rule(key, service_id="\u009b31m\u202e[red]\udcff"))
    row = zfw("list").out.splitlines()[1]
    assert r"\x9b31m\u202e[red]\udcff" in row
    assert row.isprintable()


def test_without_a_firewall(zfw: Zfw, namespace: object) -> None:
    for words in (("list",), ("insert", *SSH), ("delete", *SSH), ("status",), ("flush",)):
        assert zfw(*words) == (
            3,
            "",
            "zfw: no firewall in this network namespace\nhint: zfw attach IFACE starts one\n",
        )
