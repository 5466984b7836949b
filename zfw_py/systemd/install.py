# SPDX-License-Identifier: GPL-2.0-only
"""Write zfw's units below a root directory and enable them, and remove exactly those."""

from __future__ import annotations

import os
import sysconfig
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError
from zfw_py.kernel import files
from zfw_py.systemd import firewall, steer

if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = "etc/systemd/system"
# Units of hosts have it.
_FIRST_LINE = "# Written by zfw systemd install; zfw systemd remove takes it away."


class Service(NamedTuple):
    """A unit: its name, the target that wants it, the file that it applies, and its text."""

    unit: str
    target: str
    file: str
    endings: tuple[str, ...]  # those that the name of the file may have
    text: Callable[[str, str], str]


SERVICES = {
    "firewall": Service(
        firewall.UNIT, "sysinit.target", firewall.FILE, (".toml", ".json"), firewall.text
    ),
    "steer": Service(steer.UNIT, "multi-user.target", steer.FILE, (".json",), steer.text),
}


def install(service: Service, root: str, file: str) -> str:
    """Write and enable the unit that applies ``file``; return its path.

    A unit that is there already is updated. Raises UsageError, NotFound for the root, Conflict
    for a file that is not ours, ZfwError.
    """
    written = _unit(service, file)
    path, link = _paths(service, root)
    if not os.path.isdir(root):
        raise NotFound(f"--prefix: no such directory: {root}")
    _check_ours(path)
    try:
        os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
        files.write(path, written.encode(), 0o644)
        with suppress(FileExistsError):
            os.symlink(f"../{service.unit}", link)
        if not _is_our_link(link, service):
            raise Conflict(f"{link} is in the way")
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return path


def remove(service: Service, root: str) -> str:
    """Remove the unit and disable it; return its path. Raises NotFound, Conflict, ZfwError."""
    path, link = _paths(service, root)
    if not os.path.lexists(path) and not _is_our_link(link, service):
        raise NotFound(f"{path}: not installed")
    _check_ours(path)
    try:
        if _is_our_link(link, service):
            os.unlink(link)
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return path


def _paths(service: Service, root: str) -> tuple[str, str]:
    """The unit, and the link that enables it."""
    directory = os.path.join(root, _DIRECTORY)
    return (
        os.path.join(directory, service.unit),
        os.path.join(directory, f"{service.target}.wants/{service.unit}"),
    )


def _unit(service: Service, file: str) -> str:
    """The unit's text, with this installation's command."""
    if not file.endswith(service.endings):
        raise UsageError(f"{file}: its name does not end in {' or '.join(service.endings)}")
    if not file.startswith("/"):
        raise UsageError(f"--file: not an absolute path: {file}")
    program = os.path.join(sysconfig.get_path("scripts"), "zfw")
    if not os.access(program, os.X_OK):
        raise ZfwError(f"{program} is missing", hint="pip install creates it")
    body = service.text(_in_unit(program, "this installation"), _in_unit(file, "--file"))
    return f"{_FIRST_LINE}\n{body}"


def _in_unit(path: str, option: str) -> str:
    """A path as units have it; one that would need quotes is refused."""
    if not path.isprintable() or any(c in path for c in " \"'\\$;"):
        raise UsageError(
            f"{option}: path contains characters that systemd units cannot hold"
            f" (whitespace, quotes, \\, $, ;): {path!r}"
        )
    return path.replace("%", "%%")


def _check_ours(path: str) -> None:
    """Refuse a unit that zfw did not write, or a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Conflict(f"{path} is in the way: {error.strerror}") from None
    try:
        if not os.read(fd, 4096).startswith(_FIRST_LINE.encode()):
            raise Conflict(f"{path} is in the way: zfw systemd install did not write it")
    except OSError as error:
        raise Conflict(f"{path} is in the way: {error.strerror}") from None
    finally:
        os.close(fd)


def _is_our_link(link: str, service: Service) -> bool:
    try:
        return os.readlink(link) in (f"../{service.unit}", f"/{_DIRECTORY}/{service.unit}")
    except OSError:
        return False
