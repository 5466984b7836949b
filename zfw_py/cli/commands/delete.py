# SPDX-License-Identifier: GPL-2.0-only
"""zfw delete."""

from __future__ import annotations

from typing import Any

from zfw_py.cli import output
from zfw_py.cli.commands.rule_options import OPTIONS, inverse, read_insert
from zfw_py.cli.options import takes
from zfw_py.firewall.service import Firewall


@takes(OPTIONS)
def command(**values: Any) -> None:
    """Delete a rule, or with -N only remove interfaces from it.

    It takes the same options as insert, so that the options of an insert delete
    the rule that it added. Only direction, destination, source, protocol and low
    port choose the rule. The last rule that needs a local route of --route
    removes the route as well.

    For example: zfw delete -c 100.72.0.4/32 -p tcp -l 22
    """
    delete = inverse(read_insert(values))
    deleted = Firewall().delete(delete.key, delete.interfaces)
    if deleted.is_gone:
        output.line(f"deleted {delete.key}")
    else:
        output.line(f"removed {', '.join(delete.interfaces)} from {delete.key}")
