# SPDX-License-Identifier: GPL-2.0-only
"""What a service says to systemd: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket


def notify_ready() -> None:
    """Say that the service does its work from now on; nothing where systemd does not ask for it.

    Raises OSError.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        # "@" stands for the NUL of an abstract address (unix(7)).
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(b"READY=1")
