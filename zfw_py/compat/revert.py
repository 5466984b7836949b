# SPDX-License-Identifier: GPL-2.0-only
"""The revert programs: detach the firewall, remove the boot configuration, restore the router.

A step that fails is reported, and the other steps are still taken; another run repeats it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.compat import drop_ins, interfaces_config, places, router_config
from zfw_py.compat.start import allow_in_ufw, read_router, require_root
from zfw_py.errors import NotInstalled, ZfwError
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.compat.report import Report
    from zfw_py.compat.tree import Tree


def revert(kind: str, tree: Tree, report: Report) -> None:
    """Undo what the boot program of ``kind`` does."""
    require_root()
    _revert_ufw(tree, report)
    try:
        for taken in Firewall().detach_all():
            report.say(f"detached interface {taken.ifindex} {taken.direction} ({taken.mode})")
    except NotInstalled:
        report.say("nothing is attached")
    except ZfwError as error:
        report.failed(error)
    for path in (places.INTERFACES, places.USER_RULES):
        try:
            if tree.remove(path):
                report.say(f"removed {tree.absolute(path)}")
        except ZfwError as error:
            report.failed(error)
    if kind == "router":
        _revert_router(tree, report)
    elif kind == "controller":
        _revert_controller(tree, report)


def _revert_ufw(tree: Tree, report: Report) -> None:
    try:
        content = tree.read(places.INTERFACES, interfaces_config.MAX_BYTES)
        if content is None:
            return
        config = interfaces_config.read(content, tree.absolute(places.INTERFACES))
    except ZfwError as error:
        # The exit code of a UsageError would mean that nothing was changed.
        report.failed(ZfwError(f"{error}: ufw's rules are left unchanged"))
        return
    for interface in config.interfaces:
        allow_in_ufw(tree, report, interface.name, delete=True)


def _revert_router(tree: Tree, report: Report) -> None:
    is_changed = is_unhooked = False
    try:
        router = read_router(tree)
        # Leave a mode that names another program.
        if router is not None and (router.config.mode() or "").endswith(":" + places.ZFW):
            content = router.config.with_mode(router_config.PLAIN_MODE)
            if content is not None:
                tree.write(router.path, content, 0o600, is_new=False, like=router.status)
                report.say(f"{tree.absolute(router.path)}: mode is now {router_config.PLAIN_MODE}")
                is_changed = True
    except ZfwError as error:
        report.failed(error)
    for undo in (drop_ins.unedit_router_unit, drop_ins.unhook_router):
        try:
            is_unhooked |= undo(tree)
        except ZfwError as error:
            report.failed(error)
    if is_unhooked:
        drop_ins.systemctl(tree, report, "daemon-reload")
    if (is_changed or is_unhooked) and drop_ins.has_unit(tree, "ziti-router.service"):
        drop_ins.systemctl(tree, report, "restart", "ziti-router.service")


def _revert_controller(tree: Tree, report: Report) -> None:
    try:
        if drop_ins.unhook(tree, places.CONTROLLER_DROP_IN):
            drop_ins.systemctl(tree, report, "disable", "fw-init.service")
            drop_ins.systemctl(tree, report, "daemon-reload")
    except ZfwError as error:
        report.failed(error)
