# SPDX-License-Identifier: GPL-2.0-only
"""Commands that take several interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from zfw_py.cli import output
from zfw_py.errors import NotFound
from zfw_py.firewall.model import check_interface_name

if TYPE_CHECKING:
    from collections.abc import Callable


def complete() -> list[str]:
    """The names of this network namespace's interfaces."""
    from socket import if_nameindex

    return [name for _, name in if_nameindex()]


def name_of(ifindex: int) -> str:
    """The name of an interface; "interface 7" if it was deleted."""
    from socket import if_indextoname

    try:
        return if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"


def check(names: list[str]) -> None:
    """Raise UsageError for a name that no interface can have."""
    for name in names:
        check_interface_name(name, "IFACE")


def each(names: list[str], act: Callable[[str], None]) -> None:
    """Call ``act`` for each; report missing interfaces, and exit with the code of NotFound then."""
    check(names)
    is_complete = True
    for name in names:
        try:
            act(name)
        except NotFound as error:
            output.warning(error.message)
            is_complete = False
    if not is_complete:
        raise typer.Exit(NotFound.exit_code)
