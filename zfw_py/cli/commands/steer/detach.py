# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer detach."""

from __future__ import annotations

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options


def command(netns: options.Netns = None) -> None:
    """End all steering: remove mappings, counters and programs.

    Open connections stay.
    """
    from zfw_py.steer.service import Steering

    count = Steering(netns).detach()
    output.line(f"detached; {output.counted(count, 'mapping')} removed")
