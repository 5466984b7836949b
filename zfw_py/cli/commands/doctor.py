# SPDX-License-Identifier: GPL-2.0-only
"""zfw doctor."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.errors import LayoutMismatch
from zfw_py.values.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

SYSTEMS = ("firewall", "guard", "docker_dns", "steer")
# The exit code of a doctor that found notes at most; those of the severities above follow.
NOTES = 20
# Of one kind; --json has all.
_MOST_SHOWN = 5
_OTHER_VERSION = "The pinned maps were made by another version of zfw: nothing else is looked at."


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print an array of objects.")] = False,
) -> None:
    """Find faults, and print the command that mends each.

    Looks at the firewall and the steering of this network namespace, and at all
    guards and redirects of the machine. Changes nothing. Each finding says what is
    wrong, why it matters and what to type. The exit code is 20 if there are notes,
    21 with warnings, 22 with errors, and 0 if nothing is found.
    """
    found = findings()
    if as_json:
        output.json_array(each._asdict() for each in found)
    elif found:
        _print(found)
    else:
        output.line("nothing found")
    if found:
        raise typer.Exit(NOTES + max(SEVERITIES.index(each.severity) for each in found))


def findings() -> list[Finding]:
    """What every system finds, the worst first. Raises PermissionDenied, KernelError, Busy."""
    found: list[Finding] = []
    for system in SYSTEMS:
        try:
            found += import_module(f"zfw_py.{system}.findings").findings()
        except LayoutMismatch as error:
            found.append(Finding("other-version", "error", error.message, _OTHER_VERSION, ""))
    return sorted(found, key=lambda each: -SEVERITIES.index(each.severity))


def _print(found: Iterable[Finding]) -> None:
    by_kind: dict[str, list[Finding]] = {}
    for each in found:
        by_kind.setdefault(each.id, []).append(each)
    for number, (kind, some) in enumerate(by_kind.items()):
        if number:
            output.line("")
        output.line(f"{some[0].severity}: {kind}: {some[0].why}")
        for each in some[:_MOST_SHOWN]:
            output.line(f"  {each.what}")
            if each.command:
                output.line(f"    {each.command}")
        if more := some[_MOST_SHOWN:]:
            output.line(f"  {len(more)} more like these: zfw doctor --json lists them")
