# SPDX-License-Identifier: GPL-2.0-only
"""The boot program in other people's systemd units: by a drop-in, never by an edit of a unit.

But units that the replaced command's programs edited are set right again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfw_py.compat import places
from zfw_py.errors import Conflict, ZfwError
from zfw_py.kernel import subprocesses

if TYPE_CHECKING:
    from zfw_py.compat.report import Report
    from zfw_py.compat.tree import Tree

_MAX_UNIT_BYTES = 64 * 1024
_TIMEOUT = 120.0  # seconds; a unit has 90 to stop, and 90 to start
_HEAD = "# Made by zfw's boot program; its revert program removes it.\n[Service]\n"

ROUTER_HOOK = f"{_HEAD}ExecStartPre=-{places.START.format('router')}\n"
# What the replaced command's program put into the router's own unit.
_EDITED = re.compile(
    rb"^ExecStartPre=-?" + re.escape(places.START.format("router")).encode() + rb"[ \t]*\r?\n",
    re.MULTILINE,
)


def controller_hook(interface: str) -> str:
    """fw-init.service starts the controller's boot program in place of the router's."""
    program = places.START.format("controller")
    return f"{_HEAD}ExecStart=\nExecStart={program} --lanIf {interface}\n"


def has_unit(tree: Tree, name: str) -> bool:
    """Whether systemd has a unit of this name."""
    return any(tree.exists(f"{folder}/{name}") for folder in places.UNIT_FOLDERS)


def is_router_hooked(tree: Tree) -> bool:
    """Whether the router's unit runs the boot program."""
    unit = tree.read(places.ROUTER_UNIT, _MAX_UNIT_BYTES) or b""
    return tree.exists(places.ROUTER_DROP_IN) or _EDITED.search(unit) is not None


def hook(tree: Tree, drop_in: str, text: str) -> bool:
    """Put a drop-in in place; False if it was there already. One of others is a Conflict."""
    old = tree.read(drop_in, _MAX_UNIT_BYTES)
    if old == text.encode():
        return False
    if old is not None and not old.startswith(_HEAD.encode()):
        raise Conflict(f"{tree.absolute(drop_in)}: was not made by zfw")
    tree.make_directory(drop_in.rpartition("/")[0])
    tree.write(drop_in, text.encode(), 0o644, is_new=old is None)
    return True


def unhook(tree: Tree, drop_in: str) -> bool:
    """Take a drop-in of ours away; False if there is none. One of others is a Conflict."""
    old = tree.read(drop_in, _MAX_UNIT_BYTES)
    if old is None:
        return False
    if not old.startswith(_HEAD.encode()):
        raise Conflict(f"{tree.absolute(drop_in)}: was not made by zfw, and stays")
    tree.remove(drop_in)
    tree.remove_directory(drop_in.rpartition("/")[0])
    return True


def unhook_router(tree: Tree) -> bool:
    """Take the router's drop-in away."""
    return unhook(tree, places.ROUTER_DROP_IN)


def unedit_router_unit(tree: Tree) -> bool:
    """Take out the line that the replaced command's program put into the router's unit."""
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
    """Tell systemd, if it runs here; a failure goes to the report."""
    command = " ".join(("systemctl", *arguments))
    if not (tree.exists(places.SYSTEMCTL) and tree.exists(places.SYSTEMD_RUNS)):
        report.warn(f"systemd does not run here: no {command}")
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
