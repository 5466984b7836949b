# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns."""

from __future__ import annotations

COMMANDS = ("redirect", "list", "remove", "watch")


def command() -> None:
    """Have a container's queries to its built-in resolver answered by a server of yours.

    Packets to 127.0.0.11:53 leave by the container's interface for the server, and its answers come
    back from 127.0.0.11:53. Nothing is left running, and no rule and no setting in the container is
    changed. It works on any network namespace.
    """
