# SPDX-License-Identifier: GPL-2.0-only
"""Ways round a guard that do not lead out. What counts is what arrives outside."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.guarded import UNNAMED

if TYPE_CHECKING:
    from tests.support.guarded import World

pytestmark = pytest.mark.kernel


def program(text: str) -> list[str]:
    """A Python program, with the names that most of them need."""
    return [sys.executable, "-c", f"import socket\nfrom socket import *\n{text}"]


def test_an_ipv4_mapped_connection_is_judged_as_ipv4(world: World) -> None:
    attempt = program(
        f"s = socket(AF_INET6, SOCK_STREAM)\n"
        f"try: s.connect(('::ffff:{UNNAMED[0]}', 80))\n"
        f"except PermissionError: print('refused')"
    )
    with world.capture() as arrived:
        done = world.guarded(["--allow", "both.example"], *attempt)
    assert done.stdout == "refused\n"
    assert [one for one in arrived if one.destination == UNNAMED[0]] == []
    with world.capture() as arrived:
        done = world.guarded(["--allow", UNNAMED[0]], *attempt)
    assert (done.returncode, done.stdout) == (0, "")
    assert any(one.destination == UNNAMED[0] for one in arrived)
