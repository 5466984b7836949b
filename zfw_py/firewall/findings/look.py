# SPDX-License-Identifier: GPL-2.0-only
"""What the findings about a firewall look at; each part is read once, when it is needed."""

from __future__ import annotations

from functools import cached_property
from socket import if_indextoname
from typing import TYPE_CHECKING

from zfw_py.firewall import programs
from zfw_py.firewall.interfaces import Interfaces
from zfw_py.firewall.listing import read_rules
from zfw_py.firewall.model import PROTOCOLS
from zfw_py.kernel.lookups import PortSocket, sockets_of

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.programs import Attachment


class Look:
    """The firewall of the caller's network namespace. The caller holds its lock."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps

    @cached_property
    def interfaces(self) -> Interfaces:
        """The table of interfaces."""
        return Interfaces(self.maps)

    @cached_property
    def rules(self) -> list[Rule]:
        """All rules, as ``zfw list`` has them."""
        return read_rules(self.maps, self.interfaces)

    @cached_property
    def attached(self) -> list[Attachment]:
        """Where the firewall's programs are."""
        return programs.attachments(self.maps)

    @cached_property
    def filtered(self) -> dict[str, int]:
        """The interfaces with the ingress program, and their indexes; without lo."""
        indexes = [each.ifindex for each in self.attached if each.direction == "ingress"]
        names = {if_indextoname(index): index for index in indexes}
        return {name: index for name, index in names.items() if name != "lo"}

    @cached_property
    def listening(self) -> list[tuple[str, PortSocket]]:
        """The sockets that may receive a first packet, each with its protocol."""
        return [(protocol, each) for protocol in PROTOCOLS for each in sockets_of(protocol) or ()]
