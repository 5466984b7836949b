# SPDX-License-Identifier: GPL-2.0-only
"""The settings of an interface: each is one row of ``SETTINGS``.

``zfw set``, documents, status and the bits in the kernel maps follow from the rows. A setting
that the classic grammar has is one of its options as well, see ``cli/classic``.
"""

from __future__ import annotations

from zfw_py.firewall import layout


class Setting:
    """A setting of an interface.

    Attributes:
        name: its key in documents and JSON.
        bit: its bit in the kernel maps' settings.
        help: a sentence for ``zfw set --help``.
        default: its value on an interface that has no settings. The bit means the opposite.
    """

    __slots__ = ("bit", "default", "help", "name")

    def __init__(self, name: str, bit: int, help: str, *, default: bool = False) -> None:
        self.name = name
        self.bit = bit
        self.help = help
        self.default = default

    @property
    def words(self) -> str:
        """The name in output, and the option of ``zfw set`` without its hyphens."""
        return self.name.replace("_", "-")

    def is_on(self, bits: int) -> bool:
        """Whether the setting is on, given the settings of an interface as bits."""
        return bool(bits & self.bit) != self.default

    def applied(self, bits: int, on: bool) -> int:
        """The bits with this setting on or off."""
        return bits | self.bit if on != self.default else bits & ~self.bit


_ROWS = (
    Setting("icmp_echo", layout.SETTING_ICMP_ECHO, "Answer pings."),
    Setting(
        "ssh", layout.SETTING_SSH_OFF, "Pass SSH to the interface's own addresses.", default=True
    ),
    Setting("ipv6", layout.SETTING_IPV6, "Apply the rules to IPv6; off drops IPv6."),
    Setting(
        "per_interface_rules",
        layout.SETTING_PER_INTERFACE_RULES,
        "Apply only rules that name this interface with -N.",
    ),
    Setting(
        "pass_non_tuple",
        layout.SETTING_PASS_NON_TUPLE,
        "Pass all packets that are neither TCP nor UDP.",
    ),
    Setting("verbose", layout.SETTING_VERBOSE, "Trace packets."),
    Setting(
        "outbound_filter",
        layout.SETTING_OUTBOUND_FILTER,
        "Drop outgoing packets that no egress rule and no open flow allows.",
    ),
    Setting("vrrp", layout.SETTING_VRRP, "Pass VRRP."),
    Setting("eapol", layout.SETTING_EAPOL, "Pass EAPOL frames (802.1X)."),
)

SETTINGS = {setting.name: setting for setting in _ROWS}
