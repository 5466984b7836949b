# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard."""

from __future__ import annotations

COMMANDS = ("run", "attach", "redirect", "list", "upgrade", "detach")


def command() -> None:
    """Limit the network access of a program, and control its DNS.

    A guard belongs to a cgroup and covers every socket that is created in it. The
    guard's DNS proxy answers the program's queries: an allowed name allows the
    addresses in its answers. Every other packet is evaluated against the policy.
    """
