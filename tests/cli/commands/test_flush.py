# SPDX-License-Identifier: GPL-2.0-only
"""zfw flush: what it deletes, and whom it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Zfw

pytestmark = pytest.mark.kernel


@pytest.fixture
def rules(firewall: Firewall) -> Firewall:
    for direction in ("ingress", "egress"):
        firewall.insert(Rule(RuleKey(Prefix.parse("10.0.0.0/8"), "tcp", 1, direction=direction)))
    return firewall


def test_without_a_terminal_it_needs_yes(zfw: Zfw, rules: Firewall) -> None:
    assert zfw("flush") == (
        2,
        "",
        "zfw: no terminal to ask on\nhint: zfw flush --yes does not ask\n",
    )
    assert len(rules.rules()) == 2
    assert zfw("flush", "--yes", "-z", "egress") == (0, "deleted 1 rule\n", "")
    assert [rule.key.direction for rule in rules.rules()] == ["ingress"]
    assert zfw("flush", "--yes") == (0, "deleted 1 rule\n", "")


def test_nothing_to_delete_is_nothing_to_ask(zfw: Zfw, firewall: Firewall) -> None:
    assert zfw("flush") == (0, "deleted 0 rules\n", "")


@pytest.mark.parametrize(
    ("answer", "code", "out", "left"),
    [("y\n", 0, "deleted 2 rules\n", 0), ("", 1, "nothing deleted\n", 2)],
)
def test_on_a_terminal_it_asks(
    zfw: Zfw,
    rules: Firewall,
    stdin: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    out: str,
    left: int,
) -> None:
    monkeypatch.setattr(output, "is_interactive", lambda: True)
    stdin(answer)
    assert zfw("flush") == (code, out, "Delete 2 rules? [y/N] ")
    assert len(rules.rules()) == left
