# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns remove."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.errors import UsageError


def command(
    identifier: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The redirect's id, as zfw docker-dns list shows it."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All redirects.")] = False,
) -> None:
    """Remove a redirect: the built-in resolver answers again."""
    from zfw_py.docker_dns.service import DnsRedirect

    if every == (identifier is not None):
        raise UsageError("give either an ID or --all")
    if identifier is None:
        gone = DnsRedirect.remove_all()
    else:
        DnsRedirect.remove_id(identifier)
        gone = [identifier]
    for each in gone:
        output.line(f"removed {each}")
