# SPDX-License-Identifier: GPL-2.0-only
"""Make the units of routers and controllers run the boot program, by drop-ins.

The C program's scripts edited the router's unit: that edit can be undone here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfw_py.compat import places
from zfw_py.errors import Conflict, ZfwError
from zfw_py.kernel import subprocesses
from zfw_py.systemd.firewall import FOLLOW_UNIT

if TYPE_CHECKING:
    from zfw_py.compat.report import Report
    from zfw_py.compat.tree import Tree

_MAX_UNIT_BYTES = 64 * 1024
_TIMEOUT = 120.0  # seconds; a unit has 90 to stop, and 90 to start
_HEAD = "# Made by zfw's boot program; its revert program removes it.\n"

# The router's unit also starts what keeps the firewall right from then on.
ROUTER_HOOK = (
    f"{_HEAD}[Unit]\nWants={FOLLOW_UNIT}\n"
    f"\n[Service]\nExecStartPre=-{places.START.format('router')}\n"
)
# The line that the C program's script put into the router's unit.
_EDITED = re.compile(
    rb"^ExecStartPre=-?" + re.escape(places.START.format("router")).encode() + rb"[ \t]*\r?\n",
    re.MULTILINE,
)


def controller_hook(interface: str) -> str:
    """fw-init.service starts the controller's boot program in place of the router's."""
    program = places.START.format("controller")
    return f"{_HEAD}[Service]\nExecStart=\nExecStart={program} --lanIf {interface}\n"


def has_unit(tree: Tree, name: str) -> bool:
    """Whether systemd has a unit of this name."""
    return any(tree.exists(f"{folder}/{name}") for folder in places.UNIT_FOLDERS)


def is_router_hooked(tree: Tree) -> bool:
    """Whether the router's unit runs the boot program."""
    unit = tree.read(places.ROUTER_UNIT, _MAX_UNIT_BYTES) or b""
    return tree.exists(places.ROUTER_DROP_IN) or _EDITED.search(unit) is not None


def hook(tree: Tree, drop_in: str, text: str) -> bool:
    """Write a drop-in; False if it is up to date. Raises Conflict if zfw did not create it."""
    old = tree.read(drop_in, _MAX_UNIT_BYTES)
    if old == text.encode():
        return False
    if old is not None and not old.startswith(_HEAD.encode()):
        raise Conflict(f"{tree.absolute(drop_in)}: zfw did not create it")
    tree.make_directory(drop_in.rpartition("/")[0])
    tree.write(drop_in, text.encode(), 0o644, is_new=old is None)
    return True


def unhook(tree: Tree, drop_in: str) -> bool:
    """Remove a drop-in; False if there is none. Raises Conflict if zfw did not create it."""
    old = tree.read(drop_in, _MAX_UNIT_BYTES)
    if old is None:
        return False
    if not old.startswith(_HEAD.encode()):
        raise Conflict(f"{tree.absolute(drop_in)}: zfw did not create it; left unchanged")
    tree.remove(drop_in)
    tree.remove_directory(drop_in.rpartition("/")[0])
    return True


def unhook_router(tree: Tree) -> bool:
    """Remove the router's drop-in."""
    return unhook(tree, places.ROUTER_DROP_IN)


def unedit_router_unit(tree: Tree) -> bool:
    """Remove the line that the C program's script put into the router's unit."""
    found = tree.read_with_status(places.ROUTER_UNIT, _MAX_UNIT_BYTES)
    if found is None:
        return False
    unit, status = found
    changed = _EDITED.sub(b"", unit)
    if changed == unit:
        return False
    tree.write(places.ROUTER_UNIT, changed, 0o644, is_new=False, like=status)
    return True


def systemctl(tree: Tree, report: Report, *arguments: str) -> None:
    """Run systemctl, if systemd is running; a failure goes to the report."""
    command = " ".join(("systemctl", *arguments))
    if not (tree.exists(places.SYSTEMCTL) and tree.exists(places.SYSTEMD_RUNS)):
        report.warn(f"systemd is not running: skipped {command}")
        return
    try:
        code = subprocesses.run(tree.absolute(places.SYSTEMCTL), *arguments, timeout=_TIMEOUT)
    except ZfwError as error:
        report.failed(error)
        return
    if code:
        report.failed(ZfwError(f"{command}: exit code {code}"))
    else:
        report.say(command)
