# SPDX-License-Identifier: GPL-2.0-only
"""For every reason: what explain says of a packet is what then happens to it on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.all_maps import changed_by
from tests.firewall.support.reason_cases import CASES, NEVER, REPEATED
from zfw_py.firewall.layout import REASONS
from zfw_py.firewall.reasons import TEXTS
from zfw_py.firewall.story import VERDICTS

if TYPE_CHECKING:
    from tests.firewall.support.routed import Router

pytestmark = pytest.mark.kernel


def test_every_reason_has_a_case_and_words() -> None:
    assert set(CASES) | NEVER == set(REASONS)
    assert set(TEXTS) >= set(REASONS)


@pytest.mark.parametrize("reason", CASES)
def test_the_wire_does_what_explain_says_and_explain_changes_no_map(
    router: Router, reason: str
) -> None:
    with CASES[reason](router) as wire:
        arguments = (wire.frame, wire.interface, wire.direction, wire.came_by)
        assert changed_by(lambda: router.firewall.explain(*arguments)) == []
        answer = router.firewall.explain(*arguments)
        expected = wire.explained or reason
        assert (VERDICTS[answer.verdict], answer.reason) == (wire.verdict, expected)
        with router.counts(**(wire.counted or {reason: REPEATED.get(reason, 1)})):
            wire.send()
