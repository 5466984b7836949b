# SPDX-License-Identifier: GPL-2.0-only
"""zfw insert."""

from __future__ import annotations

from typing import Any

from zfw_py.cli import output
from zfw_py.cli.commands.rule_options import OPTIONS, read_insert
from zfw_py.cli.options import takes
from zfw_py.firewall.service import Firewall


@takes(OPTIONS)
def command(**values: Any) -> None:
    """Add a rule, or change the rule that has the same key.

    The key is direction, destination, source, protocol and low port. The
    interfaces of -N are added to those that the rule has already.

    For example: zfw insert -c 100.72.0.4/32 -p tcp -l 22 -t 43321
    """
    insert = read_insert(values)
    inserted = Firewall().insert(insert.rule, route=insert.route)
    output.line(f"{'replaced' if inserted.is_replaced else 'inserted'} {insert.rule}")
    for warning in inserted.warnings():
        output.warning(warning)
