# SPDX-License-Identifier: GPL-2.0-only
"""The firewall's units: one restores it before the network is up, one keeps it right since then.

They are two, because a follower that systemd starts again must not restore once more: what was
changed since the boot would go.
"""

from __future__ import annotations

from zfw_py.systemd.sandbox import sandbox

UNIT = "zfw-restore.service"
FOLLOW_UNIT = "zfw-follow.service"
FILE = "/etc/zfw/zfw.toml"

# The least that both need: CAP_SYS_ADMIN loads programs and opens inner maps by their id,
# CAP_NET_ADMIN attaches and makes local routes.
CAPABILITIES = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")

_END = f"""\
{sandbox(CAPABILITIES)}
[Install]
WantedBy=sysinit.target
"""

# DefaultDependencies would order this after basic.target, for which some networks' units
# do not wait. udev renames interfaces at the same time: hence --wait. The other unit attaches
# an interface that comes later, or comes and goes: hence --allow-absent.
_RESTORE = """\
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
ExecStart={program} restore --wait 10 --allow-absent {file}
ExecReload={program} restore --allow-absent {file}
TimeoutStartSec=5min
"""

# It needs neither the file nor that the other unit succeeded.
_FOLLOW = """\
[Unit]
Description=zfw: keep the firewall right while interfaces and addresses change
DefaultDependencies=no
After=local-fs.target sys-fs-bpf.mount zfw-restore.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=notify
ExecStart={program} follow
Restart=on-failure
RestartSec=5
"""


def text(program: str, file: str) -> str:
    """The text of the unit that restores, without its first line; both paths are escaped."""
    return _RESTORE.format(program=program, file=file) + _END


def follow_text(program: str) -> str:
    """The text of the unit that follows, without its first line; the path is escaped."""
    return _FOLLOW.format(program=program) + _END
