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


class Unit(NamedTuple):
    """A unit's name, and its text for a command and the service's file, without its first line."""

    name: str
    text: Callable[[str, str], str]


class Service(NamedTuple):
    """The units of a system, the target that wants them, and the file that the first applies."""

    units: tuple[Unit, ...]
    target: str
    file: str
    endings: tuple[str, ...]  # those that the name of the file may have


SERVICES = {
    "firewall": Service(
        (
            Unit(firewall.UNIT, firewall.text),
            Unit(firewall.FOLLOW_UNIT, lambda program, _: firewall.follow_text(program)),
        ),
        "sysinit.target",
        firewall.FILE,
        (".toml", ".json"),
    ),
    "steer": Service((Unit(steer.UNIT, steer.text),), "multi-user.target", steer.FILE, (".json",)),
}


def install(service: Service, root: str, file: str) -> list[str]:
    """Write and enable the units, of which the first applies ``file``; return their paths.

    Units that are there already are updated. Raises UsageError, NotFound for the root, Conflict
    for a file that is not ours, ZfwError.
    """
    program, quoted = _program(), _quoted_file(service, file)
    if not os.path.isdir(root):
        raise NotFound(f"--prefix: no such directory: {root}")
    places = _places(service, root)
    for _, path, _ in places:
        _check_ours(path)
    try:
        for unit, path, link in places:
            os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
            files.write(path, f"{_FIRST_LINE}\n{unit.text(program, quoted)}".encode(), 0o644)
            with suppress(FileExistsError):
                os.symlink(f"../{unit.name}", link)
            if not _is_our_link(link, unit):
                raise Conflict(f"{link} is in the way")
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return [path for _, path, _ in places]


def remove(service: Service, root: str) -> list[str]:
    """Remove the units and disable them; return their paths.

    Raises NotFound if there is none of them, Conflict, ZfwError.
    """
    all_places = _places(service, root)
    places = [
        (unit, path, link)
        for unit, path, link in all_places
        if os.path.lexists(path) or _is_our_link(link, unit)
    ]
    if not places:
        raise NotFound(f"{all_places[0][1]}: not installed")
    for _, path, _ in places:
        _check_ours(path)
    try:
        for unit, path, link in places:
            if _is_our_link(link, unit):
                os.unlink(link)
            with suppress(FileNotFoundError):
                os.unlink(path)
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return [path for _, path, _ in places]


def _places(service: Service, root: str) -> list[tuple[Unit, str, str]]:
    """Each unit with its path, and the link that enables it."""
    directory = os.path.join(root, _DIRECTORY)
    return [
        (
            unit,
            os.path.join(directory, unit.name),
            os.path.join(directory, f"{service.target}.wants/{unit.name}"),
        )
        for unit in service.units
    ]


def _quoted_file(service: Service, file: str) -> str:
    """The file as a unit has it."""
    if not file.endswith(service.endings):
        raise UsageError(f"{file}: its name does not end in {' or '.join(service.endings)}")
    if not file.startswith("/"):
        raise UsageError(f"--file: not an absolute path: {file}")
    return _in_unit(file, "--file")


def _program() -> str:
    """This installation's command as a unit has it."""
    program = os.path.join(sysconfig.get_path("scripts"), "zfw")
    if not os.access(program, os.X_OK):
        raise ZfwError(f"{program} is missing", hint="pip install creates it")
    return _in_unit(program, "this installation")


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


def _is_our_link(link: str, unit: Unit) -> bool:
    try:
        return os.readlink(link) in (f"../{unit.name}", f"/{_DIRECTORY}/{unit.name}")
    except OSError:
        return False
