# SPDX-License-Identifier: GPL-2.0-only
"""What the units of zfw may do: the same for each, but for capabilities and system calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Without ProtectKernelTunables, which makes /sys read-only, and with it bpffs.
_LINES = """\
UMask=0077
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=net
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter={calls}
"""


def sandbox(capabilities: Iterable[str], *calls: str) -> str:
    """Lines of a [Service] section; ``calls`` are system calls beside the usual ones."""
    return _LINES.format(
        capabilities=" ".join(capabilities), calls=" ".join(("@system-service", "bpf", *calls))
    )
