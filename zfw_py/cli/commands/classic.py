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
        str, typer.Option(metavar="DIR", help="Root of the file system to install into.")
    ] = "/",
) -> None:
    """Install or remove files for callers of the classic zfw.

    The files are the commands /opt/openziti/bin/zfw and /usr/sbin/zfw, boot and
    revert programs, object files, samples, systemd units, and entries of cron and
    logrotate. Install again to update them. A file that zfw did not install is
    never replaced. An installed file that was changed since is left unchanged, with
    a warning.
    """
    # The help of all commands does not need it.
    from zfw_py.compat import install as classic

    if action == "install":
        outcome = classic.install(prefix)
        output.line(
            f"{output.counted(len(outcome.done), 'file')} installed,"
            f" {len(outcome.unchanged)} up to date"
        )
    else:
        outcome = classic.remove(prefix)
        output.line(f"{output.counted(len(outcome.done), 'file')} removed")
    for path in outcome.kept:
        output.warning(f"{path} was changed after it was installed; left unchanged")
    for text in outcome.warnings:
        output.warning(text)
