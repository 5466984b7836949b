# SPDX-License-Identifier: GPL-2.0-only
"""The cookie of the network namespace that the calling thread is in, by SO_NETNS_COOKIE. Hot.

namespaces.py finds and enters other ones.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_DGRAM, SOL_SOCKET, socket

# Since 5.14 (e8b9eab99232). The kernel never reuses a cookie while the machine runs. It
# reuses the inode number of a namespace within seconds.
_SO_NETNS_COOKIE = 71


def netns_cookie() -> int:
    """The cookie of the caller's network namespace."""
    probe = socket(AF_UNIX, SOCK_DGRAM)
    try:
        from sys import byteorder

        return int.from_bytes(probe.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8), byteorder)
    finally:
        probe.close()
