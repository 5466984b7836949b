# SPDX-License-Identifier: GPL-2.0-only
"""Several interfaces in one command."""

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


def check(names: list[str]) -> None:
    """Refuse what cannot be a name, before anything is done."""
    for name in names:
        check_interface_name(name, "IFACE")


def each(names: list[str], act: Callable[[str], None]) -> None:
    """Do it with each; one that is missing is told, and the others are done all the same."""
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
