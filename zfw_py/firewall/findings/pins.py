# SPDX-License-Identifier: GPL-2.0-only
"""Findings about pins of firewalls that are of no use any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.firewall.programs import SYSTEM
from zfw_py.lifecycle.stale import abandoned, unfinished
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

# About all network namespaces of the machine.
MACHINE: Registry[None] = Registry()


@MACHINE.kind(
    "stale-pins",
    "note",
    "The pins keep maps and programs in memory that nothing uses. The next firewall that is made"
    " removes them.",
)
def stale_pins(_: None) -> Iterator[tuple[str, str]]:
    """Pins of a firewall whose network namespace is gone, or of a killed process."""
    yield from unfinished(SYSTEM)
    yield from abandoned(SYSTEM)
