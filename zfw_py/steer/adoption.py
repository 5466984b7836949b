# SPDX-License-Identifier: GPL-2.0-only
"""Sockets that listen already are made their target's; the newest is the one that counts."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError
from zfw_py.kernel.process import start_time
from zfw_py.steer import layout
from zfw_py.steer.sockets import chosen

if TYPE_CHECKING:
    from socket import socket

    from zfw_py.steer.maps import Tables
    from zfw_py.steer.sockets import Listener, Surroundings
    from zfw_py.steer.state import Place

_FAMILIES = (4, 6)


class Adopted(NamedTuple):
    """A socket that is a target's from now on."""

    listener: Listener
    pids: list[int]


def wanted(place: Place, around: Surroundings) -> list[Listener]:
    """The sockets that a target should have, in no order. Raises Conflict, ZfwError."""
    found = around.of_target(place.protocol, place.target, place.port)
    both = (each for family in _FAMILIES for each in chosen(found, place.target, family))
    return list({each.cookie: each for each in both}.values())


def adopt(tables: Tables, place: Place, number: int, around: Surroundings) -> list[Adopted]:
    """Give a target the sockets that it should have and has not.

    One whose process ends meanwhile is left out. Raises Conflict, ZfwError.
    """
    listeners = wanted(place, around)
    present = set(tables.sockets_of(number))
    if all(each.cookie in present for each in listeners):
        return []

    def age(listener: Listener) -> tuple[int, int]:
        pids = around.holders_of(listener)
        return (start_time(pids[0]) or 0) if pids else 0, listener.inode

    # From the first that is missing on all are put in, so that the youngest comes last.
    in_order = sorted(listeners, key=age)[-layout.TARGET_SOCKETS :]
    while in_order and in_order[0].cookie in present:
        del in_order[0]
    adopted = []
    for listener in in_order:
        held = around.take(listener)
        if held is None:
            continue
        with held:
            if put(tables, number, held):
                adopted.append(Adopted(listener, around.holders_of(listener)))
    return adopted


def put(tables: Tables, number: int, held: socket) -> bool:
    """Make a socket its target's newest; False if it listens no more. Raises KernelError."""
    try:
        tables.put_socket(number, tables.take_slot(number), held)
    except OSError as error:
        # EOPNOTSUPP: it is closed, or no listener any more; EINVAL: unhashed.
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise KernelError("put a socket into the map", error.errno or 0) from error
    return True
