# SPDX-License-Identifier: GPL-2.0-only
"""Findings about the firewall's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.firewall.flow_limits import LIMITS
from zfw_py.firewall.flows import read_flows, read_limits
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.findings.look import Look

REGISTRY: Registry[Look] = Registry()

_FULL = 0.9


@REGISTRY.kind(
    "flows-nearly-full",
    "warning",
    "When the table is full, the kernel forgets the flow that was silent for the longest time."
    " The firewall then drops the answers of that flow.",
)
def flows_nearly_full(look: Look) -> Iterator[tuple[str, str]]:
    """A table of flows that is nearly full."""
    most = read_limits(look.maps).max_flows
    counts = {"TCP": 0, "other": 0}
    for flow in read_flows(look.maps):
        counts["TCP" if flow.protocol == "tcp" else "other"] += 1
    for kind, count in counts.items():
        if count >= _FULL * most:
            more = min(2 * most, LIMITS["max_flows"].most)
            yield f"{count} of {most} {kind} flows are tracked", f"zfw set --max-flows {more}"
