# SPDX-License-Identifier: GPL-2.0-only
"""What ``zfw doctor`` finds about the firewall: a module for each family of findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import NotInstalled
from zfw_py.firewall.findings import attachments, host, pins, rules, tables
from zfw_py.firewall.findings.look import Look
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from zfw_py.values.finding import Finding

# Those about the firewall of the caller's network namespace; ``pins.MACHINE`` needs none there.
REGISTRIES = (rules.REGISTRY, attachments.REGISTRY, host.REGISTRY, tables.REGISTRY)
KINDS = [kind for each in (*REGISTRIES, pins.MACHINE) for kind in each.kinds]


def findings() -> list[Finding]:
    """All that is found. Changes nothing. Raises PermissionDenied, LayoutMismatch, KernelError."""
    found: list[Finding] = []
    try:
        with Maps(is_writer=False) as maps:
            look = Look(maps)
            for registry in REGISTRIES:
                found += registry.find(look)
    except NotInstalled:
        pass  # only this network namespace has none
    return [*found, *pins.MACHINE.find(None)]
