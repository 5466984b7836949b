# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer."""

from __future__ import annotations

COMMANDS = ("add", "remove", "list", "apply", "status", "detach", "run")


def command() -> None:
    """Steer connections for any address and port to a daemon.

    The daemon listens on an address of its own, such as a loopback address.
    Connections that are steered to its socket keep the addresses of both ends. When
    the daemon starts again, its new socket takes over as soon as it listens. Most
    mappings need no process of zfw; see zfw steer run for the others.
    """
