# SPDX-License-Identifier: GPL-2.0-only
"""zfw upgrade."""

from __future__ import annotations

from zfw_py.cli import output
from zfw_py.errors import NotInstalled


def command() -> None:
    """Take over what an older version attached.

    Exchanges the programs of the firewall, the steering and the redirect of this network namespace
    and of every guard of the machine. No packet passes unfiltered, and rules, mappings, policies
    and counters stay. An upgrade that fails leaves the programs as they were.
    """
    from zfw_py.cli.commands.guard import upgrade as guards
    from zfw_py.docker_dns import service as redirects
    from zfw_py.firewall.service import Firewall
    from zfw_py.steer.service import Steering

    for name, upgrade in (
        ("firewall", Firewall().upgrade),
        ("steering", Steering().upgrade),
        ("redirect", redirects.upgrade),
    ):
        try:
            is_done = upgrade()
        except NotInstalled:
            continue
        output.line(f"{name}: {'upgraded' if is_done else 'up to date'}")
    guards.command(None)
