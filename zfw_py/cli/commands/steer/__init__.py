# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer."""

from __future__ import annotations

COMMANDS = ("add", "remove", "list", "apply", "status", "detach", "run")


def command() -> None:
    """Have connections to any address and port land on the daemon you name.

    The daemon listens where nobody else comes, as on a loopback address; what is steered to its
    socket keeps both ends' addresses. A daemon that is started again takes over as it listens.
    Nothing has to be left running, but see zfw steer run.
    """
