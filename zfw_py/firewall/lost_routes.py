# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes that were made local and are so no more, because another program removed them.

A network manager that takes lo down, or flushes it, removes our addresses and local routes too.
Looking for them needs no pyroute2, which ``routes`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import Conflict
from zfw_py.firewall import codec, layout
from zfw_py.kernel.lookups import route_of

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Maps
    from zfw_py.values.prefix import Prefix


def lost(maps: Maps) -> list[Prefix]:
    """The prefixes that we made local, are needed, and are not local. Raises KernelError."""
    found = []
    for key, value in maps.map("routes").items():
        rules, binds, owner = codec.decode_route(value)
        prefix = codec.decode_route_key(key)
        is_needed = owner == layout.OWNER_ZFW and (rules or binds)
        if is_needed and route_of(prefix.family, _within(prefix)).kind != "local":
            found.append(prefix)
    return sorted(found, key=str)


def make_again(prefix: Prefix) -> None:
    """Make it local. Raises Conflict where it would cut off a subnet, KernelError."""
    from zfw_py.firewall.routes import make_local, obstacle_to

    if obstacle := obstacle_to(prefix):
        raise Conflict(f"{prefix} is not made local again: {obstacle}")
    make_local(prefix)


def _within(prefix: Prefix) -> bytes:
    """An address of the prefix; not the first one, as those of 0.0.0.0/0 and ::/0 are special."""
    if prefix.length == 8 * len(prefix.address):
        return prefix.address
    return prefix.address[:-1] + bytes([prefix.address[-1] | 1])
