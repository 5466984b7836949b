# SPDX-License-Identifier: GPL-2.0-only
"""zfw classic."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output


def command(
    action: Annotated[
        Literal["install", "remove"],
        typer.Argument(metavar="install|remove", help="What to do."),
    ],
    prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Lay it out below this directory.")
    ] = "/",
) -> None:
    """Lay out what callers of the classic zfw expect, or take away exactly that.

    The command at /opt/openziti/bin/zfw and /usr/sbin/zfw, boot and revert programs,
    object files, samples, systemd units, cron and logrotate entries. Install again
    to bring them up to date. Files of others are never replaced, and those of ours
    that were changed since are left as they are, and told.
    """
    # Help shows this command among the others, and needs none of it.
    from zfw_py.compat import install as classic

    if action == "install":
        outcome = classic.install(prefix)
        output.line(
            f"{output.counted(len(outcome.done), 'file')} laid out,"
            f" {len(outcome.unchanged)} up to date"
        )
    else:
        outcome = classic.remove(prefix)
        output.line(f"{output.counted(len(outcome.done), 'file')} removed")
    for path in outcome.kept:
        output.warning(f"{path} was changed since it was laid out, and stays as it is")
    for text in outcome.warnings:
        output.warning(text)
