# SPDX-License-Identifier: GPL-2.0-only
"""Whether the kernel delivers an address locally, by RTM_GETROUTE (rtnetlink(7)).

Without pyroute2, which takes 15 MB: the follower asks whenever an address has changed.
"""

from __future__ import annotations

import socket
import struct

from zfw_py.errors import KernelError

# include/uapi/linux/rtnetlink.h and netlink.h
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, ..., type, flags
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_NEWROUTE, _GETROUTE, _REQUEST, _DST, _LOCAL = 24, 26, 1, 1, 2
_TYPE = 7  # index into _ROUTE


def is_local(address: bytes) -> bool:
    """Whether packets to an address, of 4 or 16 bytes, are for this host. Raises KernelError."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _DST) + address
    request = _HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
            asked.send(request)
            answer = asked.recv(4096)
    except OSError as error:
        raise KernelError("look up a route", error.errno or 0) from error
    # Else an error: no route leads there.
    is_route = _HEADER.unpack_from(answer)[1] == _NEWROUTE
    return is_route and bool(_ROUTE.unpack_from(answer, _HEADER.size)[_TYPE] == _LOCAL)
