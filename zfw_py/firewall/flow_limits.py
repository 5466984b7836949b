# SPDX-License-Identifier: GPL-2.0-only
"""The limits of tracked flows: each is one row of ``LIMITS``."""

from __future__ import annotations

from typing import NamedTuple

from zfw_py.errors import UsageError


class Limit(NamedTuple):
    """A limit: its bounds, and its option of ``zfw set``."""

    least: int
    most: int
    metavar: str
    help: str


# At most a day and a week: flows that are silent for longer are not open any more.
LIMITS = {
    "udp_idle": Limit(
        1, 86_400, "SECONDS", "Forget a UDP flow after so many seconds without a packet."
    ),
    "tcp_idle": Limit(
        1, 7 * 86_400, "SECONDS", "Forget a TCP flow after so many seconds without a packet."
    ),
    "max_flows": Limit(1_024, 16_777_216, "COUNT", "Track at most so many open flows."),
}


class FlowLimits(NamedTuple):
    """When flows are forgotten, in seconds without a packet, and how many are tracked.

    ``udp_idle`` is that of ICMP echo as well. ``max_flows`` limits the open TCP flows, and
    likewise all other flows.
    """

    udp_idle: int = 30
    tcp_idle: int = 3_600
    max_flows: int = 131_072

    def check(self) -> FlowLimits:
        """Return the limits. Raises UsageError for one that is out of bounds."""
        for name, value in self._asdict().items():
            limit = LIMITS[name]
            if not limit.least <= value <= limit.most:
                raise UsageError(
                    f"{name.replace('_', ' ')}: not within {limit.least} to {limit.most}: {value}"
                )
        return self
