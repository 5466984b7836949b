# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard."""

from __future__ import annotations

COMMANDS = ("run", "attach", "redirect", "list", "upgrade", "detach")


def command() -> None:
    """Guard one program: its DNS goes where you say, and it reaches nothing but what it may.

    What is guarded is a cgroup: all sockets made in it, of whatever kind. Names are allowed by
    their DNS answers, which a proxy gives; everything else is judged packet by packet.
    """
