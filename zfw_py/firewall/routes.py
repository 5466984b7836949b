# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes made local: for rules with ``--route``, and by ``bind``. Counted.

An intercepted packet is delivered only where its destination is local; a router usually has
such a route already. A service that sends from an address of its own can only bind to one that
is local.

One record a prefix counts both uses, so that neither removes it while the other needs it. The
record is written before the prefix is made local, with its owner pending, and our addresses
and routes carry a mark in the kernel (see kernel/local_delivery.py). So the next writer can
tell, after a writer was killed in between, whether this firewall made a prefix local.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall import codec, layout
from zfw_py.firewall.model import OwnAddresses
from zfw_py.kernel import local_delivery

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Maps
    from zfw_py.values.prefix import Prefix


class _Record(NamedTuple):
    """How many rules need a prefix, how often it was bound, who made it local (OWNER_*)."""

    rules: int
    binds: int
    owner: int


def _words(prefix: Prefix) -> tuple[int, str, int]:
    return prefix.family, prefix.address_text, prefix.length


def _read(maps: Maps, prefix: Prefix) -> _Record | None:
    value = maps.map("routes").lookup(codec.encode_route_key(prefix))
    return None if value is None else _Record(*codec.decode_route(value))


def _write(maps: Maps, prefix: Prefix, record: _Record) -> None:
    maps.map("routes").update(codec.encode_route_key(prefix), codec.encode_route(*record))


def _records(maps: Maps) -> list[tuple[Prefix, _Record]]:
    return [
        (codec.decode_route_key(key), _Record(*codec.decode_route(value)))
        for key, value in maps.map("routes").items()
    ]


def obstacle_to(destination: Prefix) -> str | None:
    """Why a destination must not be made local, or None.

    The kernel looks the local table up before all others: an interface's subnet that is made
    local, whole or in part, could no longer reach its neighbours.
    """
    if isinstance(destination, OwnAddresses):
        return f"{destination} is local already"
    subnet = local_delivery.overlapping_subnet(*_words(destination))
    return f"{destination} shares addresses with the subnet {subnet}" if subnet else None


def make_local(prefix: Prefix) -> None:
    """Make a prefix local that has a record, unless it is. Raises KernelError."""
    local_delivery.add_local(*_words(prefix))


def held(maps: Maps) -> list[Prefix]:
    """The destinations that some rule holds a route for."""
    return [prefix for prefix, record in _records(maps) if record.rules]


def hold(maps: Maps, destination: Prefix) -> None:
    """Count one more rule that needs the destination; make it local if it is not."""
    _need(maps, destination, rules=1, binds=0)


def bind(maps: Maps, prefix: Prefix) -> int:
    """Count one more bind of a prefix, and make it local if it is not; how many there are."""
    return _need(maps, prefix, rules=0, binds=1).binds


def _need(maps: Maps, prefix: Prefix, *, rules: int, binds: int) -> _Record:
    old = _read(maps, prefix)
    if old is not None:
        new = old._replace(rules=old.rules + rules, binds=old.binds + binds)
        _write(maps, prefix, new)
        return new
    is_ours = local_delivery.is_ours(*_words(prefix))
    if is_ours is None:
        # The record first: without one, no writer would ever remove the prefix.
        _write(maps, prefix, _Record(rules, binds, layout.OWNER_PENDING))
        try:
            is_ours = local_delivery.add_local(*_words(prefix))
        except BaseException:
            maps.map("routes").delete(codec.encode_route_key(prefix))
            raise
    new = _Record(rules, binds, layout.OWNER_ZFW if is_ours else layout.OWNER_OTHER)
    _write(maps, prefix, new)
    return new


def release(maps: Maps, destination: Prefix, *, keep: bool = False) -> None:
    """Count one rule fewer; remove a prefix of ours that is not needed, unless ``keep``."""
    old = _read(maps, destination)
    if old is None:
        return
    if old.rules > 1 or old.binds or keep:
        _write(maps, destination, old._replace(rules=max(old.rules - 1, 0)))
    else:
        _remove(maps, destination, old.owner)


def unbind(maps: Maps, prefix: Prefix) -> int | None:
    """Undo one bind; how many are left, None if there was none."""
    old = _read(maps, prefix)
    if old is None or not old.binds:
        return None
    _set_binds(maps, prefix, old, old.binds - 1)
    return old.binds - 1


def unbind_all(maps: Maps) -> int:
    """Undo every bind; how many prefixes had one."""
    found = [(prefix, record) for prefix, record in _records(maps) if record.binds]
    for prefix, record in found:
        _set_binds(maps, prefix, record, 0)
    return len(found)


def _set_binds(maps: Maps, prefix: Prefix, old: _Record, binds: int) -> None:
    if binds or old.rules:
        _write(maps, prefix, old._replace(binds=binds))
    else:
        _remove(maps, prefix, old.owner)


def bound(maps: Maps) -> dict[Prefix, int]:
    """Every bound prefix, and how often it is bound."""
    return {prefix: record.binds for prefix, record in _records(maps) if record.binds}


def forget_all(maps: Maps, *, unused_only: bool = False) -> None:
    """Remove every prefix that we made local; or those without rules and binds."""
    for prefix, record in _records(maps):
        if not unused_only or not (record.rules or record.binds):
            _remove(maps, prefix, record.owner)


def reconcile(maps: Maps, needed: dict[Prefix, int]) -> None:
    """After a writer was killed: make local what rules need and what is bound, and no more.

    ``needed`` has for each destination how many rules hold its route.
    """
    for prefix, record in _records(maps):
        owner = _owner_of(prefix, record.owner)
        rules = needed.pop(prefix, 0)
        if rules or record.binds:
            if owner == layout.OWNER_ZFW:
                make_local(prefix)
            _write(maps, prefix, _Record(rules, record.binds, owner))
        elif record.rules or record.owner == layout.OWNER_PENDING:
            _remove(maps, prefix, owner)
    for destination, count in needed.items():
        for _ in range(count):
            hold(maps, destination)


def _owner_of(prefix: Prefix, owner: int) -> int:
    """The owner of a route; where a writer was killed before it recorded one, ask the kernel."""
    if owner != layout.OWNER_PENDING:
        return owner
    # A route with our mark is ours, and so is one that was not made yet (None).
    is_foreign = local_delivery.is_ours(*_words(prefix)) is False
    return layout.OWNER_OTHER if is_foreign else layout.OWNER_ZFW


def _remove(maps: Maps, prefix: Prefix, owner: int) -> None:
    if _owner_of(prefix, owner) == layout.OWNER_ZFW:
        local_delivery.remove_local(*_words(prefix))
    maps.map("routes").delete(codec.encode_route_key(prefix))
