# SPDX-License-Identifier: GPL-2.0-only
"""zfw systemd."""

from __future__ import annotations

import os
import sysconfig
from contextlib import suppress
from typing import Annotated, Literal

import typer

from zfw_py.classic.restore_unit import FILE, UNIT, text
from zfw_py.cli import files, output
from zfw_py.cli.documents import form_of
from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError

DIRECTORY = "etc/systemd/system"
LINK = f"sysinit.target.wants/{UNIT}"

_FIRST_LINE = "# Written by zfw systemd install; zfw systemd remove takes it away."


def command(
    action: Annotated[Literal["install", "remove"], typer.Argument(metavar="install|remove")],
    prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Root of the file system to install into.")
    ] = "/",
    file: Annotated[
        str, typer.Option(metavar="FILE", help="What is restored at boot; .toml or .json.")
    ] = FILE,
) -> None:
    """Bring the firewall back at boot, before the network is up; or no longer.

    install writes zfw-restore.service and enables it; it runs zfw restore FILE,
    if there is that file. Written again it is brought up to date. remove takes
    away exactly this, and leaves FILE and the firewall as they are.
    """
    if action == "install":
        path = install(prefix, file)
        output.line(f"installed {path}, enabled for {file}")
    else:
        path = remove(prefix)
        output.line(f"removed {path}")
    output.line("systemctl daemon-reload makes systemd know of it")


def install(prefix: str, file: str) -> str:
    """Write the unit and the link that enables it; the unit's path."""
    written = unit(file)
    directory = os.path.join(prefix, DIRECTORY)
    path, link = os.path.join(directory, UNIT), os.path.join(directory, LINK)
    if not os.path.isdir(prefix):
        raise NotFound(f"--prefix: no such directory: {prefix}")
    _check_ours(path)
    try:
        os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
        files.write(path, written.encode(), 0o644)
        with suppress(FileExistsError):
            os.symlink(f"../{UNIT}", link)
        if not _is_our_link(link):
            raise Conflict(f"{link} is in the way")
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return path


def remove(prefix: str) -> str:
    """Remove what ``install`` made; the unit's path. Raises NotFound if it is not there."""
    directory = os.path.join(prefix, DIRECTORY)
    path, link = os.path.join(directory, UNIT), os.path.join(directory, LINK)
    if not os.path.lexists(path) and not _is_our_link(link):
        raise NotFound(f"{path}: not installed")
    _check_ours(path)
    try:
        if _is_our_link(link):
            os.unlink(link)
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise ZfwError(f"{error.filename}: {error.strerror}") from None
    return path


def unit(file: str) -> str:
    """The unit that restores a file, by this installation's command."""
    form_of(file)
    if not file.startswith("/"):
        raise UsageError(f"--file: not an absolute path: {file}")
    program = os.path.join(sysconfig.get_path("scripts"), "zfw")
    if not os.access(program, os.X_OK):
        raise ZfwError(f"{program} is missing", hint="pip install makes it")
    body = text(_in_unit(program, "this installation"), _in_unit(file, "--file"))
    return f"{_FIRST_LINE}\n{body}"


def _in_unit(path: str, what: str) -> str:
    """A path as a unit has it; one that would need quoting is refused."""
    if not path.isprintable() or any(c in path for c in " \"'\\$;"):
        raise UsageError(f"{what}: blanks, quotes and the like are not for a unit: {path!r}")
    return path.replace("%", "%%")


def _check_ours(path: str) -> None:
    """Refuse a unit of this name that somebody else wrote, or a link."""
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


def _is_our_link(link: str) -> bool:
    try:
        return os.readlink(link) in (f"../{UNIT}", f"/{DIRECTORY}/{UNIT}")
    except OSError:
        return False
