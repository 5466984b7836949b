# SPDX-License-Identifier: GPL-2.0-only
"""zfw upgrade."""

from __future__ import annotations

from zfw_py.cli import output
from zfw_py.errors import NotInstalled


def command() -> None:
    """Upgrade the programs that an older version attached.

    Replaces the programs of firewall, steering and redirect in this network
    namespace, and those of every guard of the machine, while they are in use. No
    packet passes unfiltered; rules, mappings, policies and counters stay. If an
    upgrade fails, its programs stay as they were.
    """
    from zfw_py.cli.commands.guard import upgrade as guards
    from zfw_py.docker_dns.service import DnsRedirect
    from zfw_py.firewall.service import Firewall
    from zfw_py.steer.service import Steering

    for name, upgrade in (
        ("firewall", Firewall().upgrade),
        ("steering", Steering().upgrade),
        ("redirect", DnsRedirect().upgrade),
    ):
        try:
            is_done = upgrade()
        except NotInstalled:
            continue
        output.line(f"{name}: {'upgraded' if is_done else 'up to date'}")
    guards.command(None)
