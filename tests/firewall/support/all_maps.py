# SPDX-License-Identifier: GPL-2.0-only
"""The whole contents of the firewall's maps, to compare them before and after."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support.command import captured
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Callable

_SOCKHASH = 18


def contents() -> dict[tuple[str, int], Any]:
    """Every element of every map, those of inner maps by the map and its index."""
    found: dict[tuple[str, int], Any] = {}
    with Maps(is_writer=False) as maps:
        for name, (kind, *_) in layout.MAPS.items():
            if kind == _SOCKHASH:
                # No batch of these can be read; the values are the sockets' cookies.
                pin = f"{maps.directory}/{name}"
                found[name, 0] = json.loads(
                    captured("bpftool", "-j", "map", "dump", "pinned", pin, check=True).stdout
                )
            elif name not in layout.INNER_MAPS:
                found[name, 0] = dict(maps.map(name).items())
            else:
                for index in range(layout.MAPS[name][3]):
                    inner = maps.inner(name, index)
                    if inner is not None:
                        found[name, index] = dict(inner.items())
    return found


def changed_by(act: Callable[[], object]) -> list[tuple[str, int]]:
    """The maps that an act changes.

    A packet of the kernel's own may be counted meanwhile: what counts is that one of a few
    tries changes nothing.
    """
    changed: list[tuple[str, int]] = []
    for _ in range(5):
        before = contents()
        act()
        after = contents()
        changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
        if not changed:
            break
    return changed
