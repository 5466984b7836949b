# SPDX-License-Identifier: GPL-2.0-only
"""zfw-steer.service: the unit that restores mappings at boot, and manages their sockets."""

from __future__ import annotations

from zfw_py.systemd.sandbox import sandbox

UNIT = "zfw-steer.service"
FILE = "/etc/zfw/steer.json"

# CAP_SYS_ADMIN loads programs, CAP_NET_ADMIN attaches them; CAP_DAC_READ_SEARCH and
# CAP_SYS_PTRACE find and copy the sockets of other users' processes, and CAP_CHOWN makes
# the maps readable for the group.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
)

# Without ProtectProc, which hides the daemons.
_TEMPLATE = """\
[Unit]
Description=zfw: steer connections to daemons
ConditionPathExists={file}
RequiresMountsFor={file}
After=local-fs.target sys-fs-bpf.mount
Before=network.target

[Service]
Type=exec
ExecStartPre={program} steer apply {file}
ExecStart={program} steer run
ExecReload={program} steer apply {file}
Restart=on-failure
{sandbox}
[Install]
WantedBy=multi-user.target
"""


def text(program: str, file: str) -> str:
    """The unit's text, without its first line; both paths are escaped for units."""
    limits = sandbox(CAPABILITIES, "pidfd_getfd")
    return _TEMPLATE.format(program=program, file=file, sandbox=limits)
