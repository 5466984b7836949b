# SPDX-License-Identifier: GPL-2.0-only
"""zfw follow."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.errors import ZfwError

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(
    once: Annotated[
        bool, typer.Option("--once", help="Do so once, for the state as it is now.")
    ] = False,
) -> None:
    """Keep the firewall right while interfaces and addresses change.

    Attaches the firewall again to an interface that was made anew, renamed or moved
    back, and brings the addresses up to date by which SSH and DHCP pass. Prefixes
    of --route that another program removed are made local again. It runs in
    the foreground, for the network namespace that it was started in, and may be
    started before the firewall and before the interfaces. zfw systemd install starts
    it at boot.
    """
    from zfw_py.firewall.service import Firewall

    if once:
        done = Firewall().follow()
        for name, direction, mode in done.attached:
            output.line(f"attached {name} {direction} by {mode}")
        for prefix in done.made_local:
            output.line(f"made {prefix} local again")
        output.warnings(done.errors)
        if done.errors:
            raise typer.Exit(ZfwError.exit_code)
        return
    from zfw_py.firewall.follower import follow
    from zfw_py.kernel.service_manager import notify_ready

    # Other commands end before there is anything to collect.
    gc.enable()
    if follow(_ENDS, output.Events(sys.stdout).write, notify_ready):
        # The files of this version may be those of another one by now.
        os.execv(sys.executable, sys.orig_argv)
