# SPDX-License-Identifier: GPL-2.0-only
"""zfw systemd."""

from __future__ import annotations

import os
import sysconfig
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from zfw_py.cli import files, output
from zfw_py.cli.documents import form_of
from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError
from zfw_py.systemd import firewall as restore_unit
from zfw_py.systemd import steer as steer_service

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = "etc/systemd/system"

_FIRST_LINE = "# Written by zfw systemd install; zfw systemd remove takes it away."


class _Service(NamedTuple):
    """A unit: its name, the target that wants it, what it reads and in which form, its text."""

    unit: str
    target: str
    file: str
    text: Callable[[str, str], str]
    takes_toml: bool


_SERVICES = {
    "firewall": _Service(
        restore_unit.UNIT, "sysinit.target", restore_unit.FILE, restore_unit.text, takes_toml=True
    ),
    "steer": _Service(
        steer_service.UNIT,
        "multi-user.target",
        steer_service.FILE,
        steer_service.text,
        takes_toml=False,
    ),
}


def command(
    action: Annotated[Literal["install", "remove"], typer.Argument(metavar="install|remove")],
    system: Annotated[
        Literal["firewall", "steer"],
        typer.Argument(metavar="[firewall|steer]", help="Whose service."),
    ] = "firewall",
    prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Root of the file system to install into.")
    ] = "/",
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=f"What is brought back at boot, {restore_unit.FILE} (or .json) of the firewall,"
            f" {steer_service.FILE} of steer.",
        ),
    ] = None,
) -> None:
    """Bring the firewall back at boot, before the network is up, or steering; or no longer.

    install writes zfw-restore.service and enables it; it runs zfw restore FILE, if there is that
    file. Of steer it is zfw-steer.service, which runs zfw steer apply FILE, and zfw steer run.
    Written again it is brought up to date. remove takes away exactly this, and leaves FILE and what
    is attached as they are.
    """
    service = _SERVICES[system]
    if action == "install":
        path = _install(service, prefix, file or service.file)
        output.line(f"installed {path}, enabled for {file or service.file}")
    else:
        path = _remove(service, prefix)
        output.line(f"removed {path}")
    output.line("systemctl daemon-reload makes systemd know of it")


def _paths(service: _Service, prefix: str) -> tuple[str, str]:
    """The unit, and the link that enables it."""
    directory = os.path.join(prefix, DIRECTORY)
    return (
        os.path.join(directory, service.unit),
        os.path.join(directory, f"{service.target}.wants/{service.unit}"),
    )


def _install(service: _Service, prefix: str, file: str) -> str:
    written = _unit(service, file)
    path, link = _paths(service, prefix)
    if not os.path.isdir(prefix):
        raise NotFound(f"--prefix: no such directory: {prefix}")
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


def _remove(service: _Service, prefix: str) -> str:
    path, link = _paths(service, prefix)
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


def _unit(service: _Service, file: str) -> str:
    """The unit that brings a file back, by this installation's command."""
    if service.takes_toml:
        form_of(file)
    elif not file.endswith(".json"):
        raise UsageError(f"{file}: its name does not end in .json")
    if not file.startswith("/"):
        raise UsageError(f"--file: not an absolute path: {file}")
    program = os.path.join(sysconfig.get_path("scripts"), "zfw")
    if not os.access(program, os.X_OK):
        raise ZfwError(f"{program} is missing", hint="pip install makes it")
    body = service.text(_in_unit(program, "this installation"), _in_unit(file, "--file"))
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


def _is_our_link(link: str, service: _Service) -> bool:
    try:
        return os.readlink(link) in (f"../{service.unit}", f"/{DIRECTORY}/{service.unit}")
    except OSError:
        return False
