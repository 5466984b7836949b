# SPDX-License-Identifier: GPL-2.0-only
"""Inserts sockets that listen already into their destinations, the newest last."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError
from zfw_py.kernel.process import start_time
from zfw_py.steer import layout
from zfw_py.steer.sockets import chosen

if TYPE_CHECKING:
    from socket import socket

    from zfw_py.steer.maps import Maps
    from zfw_py.steer.sockets import Listener, SocketSnapshot
    from zfw_py.steer.state import Destination

_FAMILIES = (4, 6)


class Adopted(NamedTuple):
    """A socket that was inserted, and the ids of its processes."""

    listener: Listener
    pids: list[int]


def wanted(destination: Destination, snapshot: SocketSnapshot) -> list[Listener]:
    """The sockets that belong to a destination, in no order. Raises Conflict, ZfwError."""
    found = snapshot.of_target(destination.protocol, destination.target, destination.port)
    both = (each for family in _FAMILIES for each in chosen(found, destination.target, family))
    return list({each.cookie: each for each in both}.values())


def adopt(
    maps: Maps, destination: Destination, number: int, snapshot: SocketSnapshot
) -> list[Adopted]:
    """Insert the sockets that belong to a destination and are missing there; these sockets.

    A socket whose process ends meanwhile is left out. Raises Conflict, ZfwError.
    """
    listeners = wanted(destination, snapshot)
    present = set(maps.sockets_of(number))
    if all(each.cookie in present for each in listeners):
        return []

    def age(listener: Listener) -> tuple[int, int]:
        pids = snapshot.holders_of(listener)
        return (start_time(pids[0]) or 0) if pids else 0, listener.inode

    # A slot is newer than all before it, so all after the first missing one are inserted again.
    in_order = sorted(listeners, key=age)[-layout.TARGET_SOCKETS :]
    while in_order and in_order[0].cookie in present:
        del in_order[0]
    adopted = []
    for listener in in_order:
        held = snapshot.duplicate(listener)
        if held is None:
            continue
        with held:
            if insert(maps, number, held):
                adopted.append(Adopted(listener, snapshot.holders_of(listener)))
    return adopted


def insert(maps: Maps, number: int, held: socket) -> bool:
    """Insert a destination's newest socket; False if it does not listen. Raises KernelError."""
    try:
        maps.store_socket(number, maps.take_slot(number), held)
    except OSError as error:
        # EOPNOTSUPP: closed, or no listener any more; EINVAL: unhashed.
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise KernelError("insert a socket into the map sockets", error.errno or 0) from error
    return True
