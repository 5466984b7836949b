# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes made local: for rules with ``--route``, and bound. Counted, and only ours removed.

An intercepted packet is delivered only where its destination is local; a router
usually sees to that itself. A service that speaks from an address of its own
can only bind to one that is local.

One record a prefix counts both uses, so that neither takes it from the other.
It is written before anything is made local, with the owner pending; a prefix
of ours is marked in the kernel as well, so that whoever comes after a writer
that died can tell it from one that somebody else made local.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall import layout
from zfw_py.kernel import local_delivery
from zfw_py.values.prefix import IPV4_MAPPED, Prefix

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Tables

_key = Struct(layout.ROUTE_KEY)
_route = Struct(layout.ROUTE)


class _Record(NamedTuple):
    """How many rules need a prefix, how often it was bound, who made it local."""

    rules: int
    binds: int
    owner: int

    def encode(self) -> bytes:
        return _route.pack(*self)


def _decode(value: bytes) -> _Record:
    return _Record(*_route.unpack(value))


def _key_of(prefix: Prefix) -> bytes:
    return _key.pack(*prefix.mapped)


def _prefix_of(key: bytes) -> Prefix:
    address, length = _key.unpack(key)
    family = 4 if length >= 96 and address.startswith(IPV4_MAPPED) else 6
    return Prefix.from_mapped(family, address, length)


def _words(prefix: Prefix) -> tuple[int, str, int]:
    return prefix.family, prefix.address_text, prefix.length


def _read(tables: Tables, prefix: Prefix) -> _Record | None:
    value = tables.map("routes").lookup(_key_of(prefix))
    return None if value is None else _decode(value)


def _write(tables: Tables, prefix: Prefix, record: _Record) -> None:
    tables.map("routes").update(_key_of(prefix), record.encode())


def _records(tables: Tables) -> list[tuple[Prefix, _Record]]:
    return [(_prefix_of(key), _decode(value)) for key, value in tables.map("routes").items()]


def obstacle(destination: Prefix) -> str | None:
    """Why a destination must not be made local, or None.

    The local table is looked at before all others: made local, an interface's
    subnet, or a part of it, would be cut off from its neighbours.
    """
    subnet = local_delivery.overlapping_subnet(*_words(destination))
    return f"{destination} shares addresses with the subnet {subnet}" if subnet else None


def held(tables: Tables) -> list[Prefix]:
    """The destinations that some rule holds a route for."""
    return [
        _prefix_of(key) for key, value in tables.map("routes").items() if _route.unpack(value)[0]
    ]


def hold(tables: Tables, destination: Prefix) -> None:
    """One more rule needs the destination to be local."""
    _need(tables, destination, rules=1, binds=0)


def bind(tables: Tables, prefix: Prefix) -> int:
    """Make it local, or count once more that it was asked for; how often it now was."""
    return _need(tables, prefix, rules=0, binds=1).binds


def _need(tables: Tables, prefix: Prefix, *, rules: int, binds: int) -> _Record:
    old = _read(tables, prefix)
    if old is not None:
        new = old._replace(rules=old.rules + rules, binds=old.binds + binds)
        _write(tables, prefix, new)
        return new
    is_ours = local_delivery.is_ours(*_words(prefix))
    if is_ours is None:
        # The record first: a prefix that nobody would remove must not be left behind.
        _write(tables, prefix, _Record(rules, binds, layout.OWNER_PENDING))
        try:
            is_ours = local_delivery.add_local(*_words(prefix))
        except BaseException:
            tables.map("routes").delete(_key_of(prefix))
            raise
    new = _Record(rules, binds, layout.OWNER_ZFW if is_ours else layout.OWNER_OTHER)
    _write(tables, prefix, new)
    return new


def release(tables: Tables, destination: Prefix, *, keep: bool = False) -> None:
    """One rule fewer needs it; with ``keep`` the last one leaves it local."""
    old = _read(tables, destination)
    if old is None:
        return
    if old.rules > 1 or old.binds or keep:
        _write(tables, destination, old._replace(rules=max(old.rules - 1, 0)))
    else:
        _remove(tables, destination, old.owner)


def unbind(tables: Tables, prefix: Prefix) -> int | None:
    """Take back one bind; how many are left, None if there was none."""
    old = _read(tables, prefix)
    if old is None or not old.binds:
        return None
    _set_binds(tables, prefix, old, old.binds - 1)
    return old.binds - 1


def unbind_all(tables: Tables) -> int:
    """Take back every bind; how many prefixes had one."""
    found = [(prefix, record) for prefix, record in _records(tables) if record.binds]
    for prefix, record in found:
        _set_binds(tables, prefix, record, 0)
    return len(found)


def _set_binds(tables: Tables, prefix: Prefix, old: _Record, binds: int) -> None:
    if binds or old.rules:
        _write(tables, prefix, old._replace(binds=binds))
    else:
        _remove(tables, prefix, old.owner)


def bound(tables: Tables) -> dict[Prefix, int]:
    """Every bound prefix, and how often it was bound."""
    return {prefix: record.binds for prefix, record in _records(tables) if record.binds}


def forget_all(tables: Tables, *, unused_only: bool = False) -> None:
    """Remove every prefix that we made local; or those that nobody needs."""
    for prefix, record in _records(tables):
        if not unused_only or not (record.rules or record.binds):
            _remove(tables, prefix, record.owner)


def reconcile(tables: Tables, needed: dict[Prefix, int]) -> None:
    """Make local what the rules need and what is bound, after a writer died.

    ``needed`` counts the rules that hold each destination's route.
    """
    for prefix, record in _records(tables):
        owner = _known(prefix, record.owner)
        rules = needed.pop(prefix, 0)
        if rules or record.binds:
            if owner == layout.OWNER_ZFW:
                local_delivery.add_local(*_words(prefix))
            _write(tables, prefix, _Record(rules, record.binds, owner))
        elif record.rules or record.owner == layout.OWNER_PENDING:
            _remove(tables, prefix, owner)
    for destination, count in needed.items():
        for _ in range(count):
            hold(tables, destination)


def _known(prefix: Prefix, owner: int) -> int:
    """The owner; where a writer died before it wrote it, told by the mark."""
    if owner != layout.OWNER_PENDING:
        return owner
    # False: there, but not by us. What is not there is ours to make.
    is_others = local_delivery.is_ours(*_words(prefix)) is False
    return layout.OWNER_OTHER if is_others else layout.OWNER_ZFW


def _remove(tables: Tables, prefix: Prefix, owner: int) -> None:
    if _known(prefix, owner) == layout.OWNER_ZFW:
        local_delivery.remove_local(*_words(prefix))
    tables.map("routes").delete(_key_of(prefix))
