# SPDX-License-Identifier: GPL-2.0-only
"""Attachments, settings, numbers of rules, and counters by decision reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall.codec import table_parts_of
from zfw_py.firewall.interfaces import addresses_by_index, settings_by_index, settings_of
from zfw_py.firewall.listing import read_reasons
from zfw_py.firewall.programs import attachments
from zfw_py.firewall.rules.find import port_rules, settled
from zfw_py.firewall.wanted import absent, differences, is_followed
from zfw_py.values.prefix import address_text
from zfw_py.version import __version__

if TYPE_CHECKING:
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.programs import Attachment
    from zfw_py.firewall.wanted import Difference


class InterfaceStatus(NamedTuple):
    """An interface that is attached or has settings."""

    name: str
    ifindex: int
    attachments: dict[str, Attachment]
    settings: dict[str, bool]
    addresses: list[str]


class Status(NamedTuple):
    """``rules`` counts by direction and family; ``reasons`` has packets and bytes.

    ``differences`` are between what is wanted and what is. ``absent`` are the interfaces that
    shall be attached and do not exist, which is no difference while a follower runs.
    """

    version: str
    interfaces: list[InterfaceStatus]
    rules: dict[str, dict[int, int]]
    reasons: dict[str, tuple[int, int]]
    differences: list[Difference]
    absent: list[str]
    is_followed: bool


def read_status(maps: Maps, interfaces: Interfaces) -> Status:
    """Read it from the maps and the kernel; the caller holds the lock."""
    attached: dict[int, dict[str, Attachment]] = {}
    present = attachments(maps)
    for attachment in present:
        attached.setdefault(attachment.ifindex, {})[attachment.direction] = attachment
    addresses = addresses_by_index(maps)
    rows = []
    for name, ifindex in interfaces.indexes().items():
        bits = settings_by_index(maps, ifindex)
        if ifindex not in attached and not bits:
            continue
        rows.append(
            InterfaceStatus(
                name,
                ifindex,
                attached.get(ifindex, {}),
                settings_of(bits),
                sorted(address_text(address) for address in addresses.get(ifindex, [])),
            )
        )
    rules: dict[str, dict[int, int]] = {"ingress": {4: 0, 6: 0}, "egress": {4: 0, 6: 0}}
    progress = maps.state().in_progress
    for key, _, some in port_rules(maps):
        direction, family, _ = table_parts_of(key)
        rules[direction][family] += len(settled(some, progress))
    return Status(
        __version__,
        rows,
        rules,
        read_reasons(maps),
        differences(maps, interfaces, present),
        absent(maps, interfaces),
        is_followed(),
    )
