# SPDX-License-Identifier: GPL-2.0-only
"""Local routes for ``--route``: made once, counted, and removed only if we made them.

An intercepted packet is delivered only where its destination is local; a router
usually sees to that itself.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from zfw_py.abi import layout
from zfw_py.kernel import netlink
from zfw_py.model.prefix import Prefix

if TYPE_CHECKING:
    from zfw_py.firewall.tables import Tables

_key = Struct(layout.ROUTE_KEY)
_route = Struct(layout.ROUTE)
_MAPPED = b"\0" * 10 + b"\xff\xff"


def _key_of(prefix: Prefix) -> bytes:
    return _key.pack(*prefix.mapped)


def _prefix_of(key: bytes) -> Prefix:
    address, length = _key.unpack(key)
    family = 4 if length >= 96 and address.startswith(_MAPPED) else 6
    return Prefix.from_mapped(family, address, length)


def obstacle(destination: Prefix) -> str | None:
    """Why a destination must not be made local, or None.

    The local table is looked at before all others: made local, an interface's
    subnet, or a part of it, would be cut off from its neighbours.
    """
    subnet = netlink.overlapping_subnet(
        destination.family, destination.address_text, destination.length
    )
    return f"{destination} shares addresses with the subnet {subnet}" if subnet else None


def hold(tables: Tables, destination: Prefix) -> None:
    """One more rule needs the destination to be local."""
    routes, key = tables.map("routes"), _key_of(destination)
    old = routes.lookup(key)
    if old is not None:
        references, is_ours = _route.unpack(old)
        routes.update(key, _route.pack(references + 1, is_ours))
        return
    # The record first: a route that nobody would remove must not be left behind.
    routes.update(key, _route.pack(1, 1))
    try:
        is_ours = netlink.add_local(
            destination.family, destination.address_text, destination.length
        )
    except BaseException:
        routes.delete(key)
        raise
    if not is_ours:
        routes.update(key, _route.pack(1, 0))


def release(tables: Tables, destination: Prefix, *, keep: bool = False) -> None:
    """One rule fewer needs it; with ``keep`` the last one leaves the route in place."""
    routes, key = tables.map("routes"), _key_of(destination)
    old = routes.lookup(key)
    if old is None:
        return
    references, is_ours = _route.unpack(old)
    if references > 1 or keep:
        routes.update(key, _route.pack(max(references - 1, 0), is_ours))
        return
    _remove(tables, key, bool(is_ours))


def forget_all(tables: Tables, *, unused_only: bool = False) -> None:
    """Remove every route that we made; or those that no rule needs."""
    for key, value in list(tables.map("routes").items()):
        references, is_ours = _route.unpack(value)
        if references == 0 or not unused_only:
            _remove(tables, key, bool(is_ours))


def reconcile(tables: Tables, needed: dict[Prefix, int]) -> None:
    """Make the routes those that the rules need, after a writer died.

    ``needed`` counts the rules that hold each destination's route.
    """
    for key, value in list(tables.map("routes").items()):
        references, is_ours = _route.unpack(value)
        wanted = needed.pop(_prefix_of(key), 0)
        if wanted:
            if is_ours:
                prefix = _prefix_of(key)
                netlink.add_local(prefix.family, prefix.address_text, prefix.length)
            tables.map("routes").update(key, _route.pack(wanted, is_ours))
        elif references:
            _remove(tables, key, bool(is_ours))
    for destination, count in needed.items():
        for _ in range(count):
            hold(tables, destination)


def _remove(tables: Tables, key: bytes, is_ours: bool) -> None:
    if is_ours:
        prefix = _prefix_of(key)
        netlink.remove_local(prefix.family, prefix.address_text, prefix.length)
    tables.map("routes").delete(key)
