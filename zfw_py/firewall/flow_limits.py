# SPDX-License-Identifier: GPL-2.0-only
"""When tracked flows are forgotten, and how many are kept."""

from __future__ import annotations

from typing import NamedTuple

from zfw_py.errors import UsageError

# The least and the most that each may be: a day and a week are more than flows are
# silent for.
BOUNDS = {
    "udp_idle": (1, 86_400),
    "tcp_idle": (1, 7 * 86_400),
    "max_flows": (1_024, 16_777_216),
}


class FlowLimits(NamedTuple):
    """Seconds without a packet that a flow is forgotten after, and how many are kept.

    ``udp_idle`` goes for ICMP echo as well. ``max_flows`` counts the open ones of TCP, and
    as many of the others.
    """

    udp_idle: int = 30
    tcp_idle: int = 3_600
    max_flows: int = 131_072

    def check(self) -> FlowLimits:
        """Return it, or raise UsageError for a limit out of bounds."""
        for name, value in self._asdict().items():
            least, most = BOUNDS[name]
            if not least <= value <= most:
                raise UsageError(f"{name.replace('_', ' ')}: not within {least} to {most}: {value}")
        return self
