# SPDX-License-Identifier: GPL-2.0-only
"""The well-known paths, which callers have in their own files."""

from __future__ import annotations

ZFW = "/opt/openziti/bin/zfw"
ZFW_LINK = "/usr/sbin/zfw"
MONITOR = "/opt/openziti/bin/zfw_monitor"
MONITOR_LINK = "/usr/sbin/zfw_monitor"
INTERFACES = "/opt/openziti/etc/ebpf_config.json"
USER_RULES = "/opt/openziti/bin/user/user_rules.sh"
USER_RULES_TIMEOUT = 600.0  # seconds

# A router's or controller's own files: where the vendor's image has them comes first,
# for there the second place is a link to it.
ROUTER_CONFIGS = (
    "/opt/netfoundry/ziti/ziti-router/config.yml",
    "/opt/openziti/ziti-router/config.yml",
)
CONTROLLER_CONFIGS = (
    "/opt/netfoundry/ziti/ziti-controller/conf/controller01.config.yml",
    "/opt/openziti/ziti-controller/controller01.config.yml",
)
SALT_CONFIG = "/etc/salt/master.d/nf_master.conf"
UFW_RULES = "/etc/ufw/before.rules"

START = "/opt/openziti/bin/start_ebpf_{}.py"

UFW = "/usr/sbin/ufw"
SYSTEMCTL = "/usr/bin/systemctl"
SYSTEMD_RUNS = "/run/systemd/system"
ROUTER_UNIT = "/etc/systemd/system/ziti-router.service"
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
# The drop-ins that boot programs create, so that no unit has to be edited.
ROUTER_DROP_IN = "/etc/systemd/system/ziti-router.service.d/zfw.conf"
CONTROLLER_DROP_IN = "/etc/systemd/system/fw-init.service.d/zfw.conf"
