# SPDX-License-Identifier: GPL-2.0-only
"""zfw systemd."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.systemd.install import SERVICES, install, remove


def command(
    action: Annotated[Literal["install", "remove"], typer.Argument(metavar="install|remove")],
    system: Annotated[
        Literal["firewall", "steer"],
        typer.Argument(metavar="[firewall|steer]", help="The system that the service restores."),
    ] = "firewall",
    prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Root of the file system to install into.")
    ] = "/",
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The file that the service applies at boot. Without this option:"
            f" {SERVICES['firewall'].file} or {SERVICES['steer'].file}.",
        ),
    ] = None,
) -> None:
    """Install or remove a service that restores zfw at boot.

    For the firewall, install writes and enables zfw-restore.service, which runs
    zfw restore FILE before the network is up, if FILE exists, and
    zfw-follow.service, which runs zfw follow from then on. For steer it is
    zfw-steer.service, which runs zfw steer apply FILE and then zfw steer run.
    Install again to update a unit. Remove disables the service and deletes its
    units; FILE and the attached programs stay.
    """
    service = SERVICES[system]
    if action == "install":
        wanted = file or service.file
        first, *others = install(service, prefix, wanted)
        output.line(f"installed {first}, enabled for {wanted}")
        for path in others:
            output.line(f"installed {path}, enabled")
    else:
        for path in remove(service, prefix):
            output.line(f"removed {path}")
    output.line("run systemctl daemon-reload to make systemd read the change")
