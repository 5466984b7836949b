# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns."""

from __future__ import annotations

COMMANDS = ("redirect", "list", "remove", "watch")


def command() -> None:
    """Answer a container's DNS queries from a server of your choice.

    Packets to the built-in resolver, 127.0.0.11:53, are sent to the server through
    the container's interface; the container sees answers from 127.0.0.11:53. zfw
    changes no rule and no setting in the container, and leaves no process behind.
    It works for any network namespace.
    """
