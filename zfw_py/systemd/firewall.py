# SPDX-License-Identifier: GPL-2.0-only
"""zfw-restore.service: the unit that restores a saved firewall before the network is up."""

from __future__ import annotations

UNIT = "zfw-restore.service"
FILE = "/etc/zfw/zfw.toml"

# The least that zfw restore needs: CAP_SYS_ADMIN loads programs and opens inner maps by their id,
# CAP_NET_ADMIN attaches and makes local routes.
CAPABILITIES = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")

# DefaultDependencies would order this after basic.target, for which some networks' units
# do not wait. udev renames interfaces at the same time: hence --wait.
# Without ProtectKernelTunables, which makes /sys read-only, and with it bpffs.
TEMPLATE = """\
[Unit]
Description=zfw: restore the firewall
DefaultDependencies=no
ConditionPathExists={file}
RequiresMountsFor={file}
After=local-fs.target sys-fs-bpf.mount systemd-modules-load.service systemd-udev-trigger.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} restore --wait 10 {file}
ExecReload={program} restore {file}
TimeoutStartSec=5min
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
SystemCallFilter=@system-service bpf

[Install]
WantedBy=sysinit.target
"""


def text(program: str, file: str) -> str:
    """The unit's text, without its first line; both paths are escaped for units."""
    return TEMPLATE.format(program=program, file=file, capabilities=" ".join(CAPABILITIES))
