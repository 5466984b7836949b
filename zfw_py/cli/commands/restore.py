# SPDX-License-Identifier: GPL-2.0-only
"""zfw restore."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import name_of
from zfw_py.cli.commands.set import limits_text
from zfw_py.cli.documents import load, summary
from zfw_py.errors import NotFound
from zfw_py.firewall.interfaces import index_of
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.firewall.document import Document
    from zfw_py.firewall.persistence import Restored
    from zfw_py.firewall.programs import Attachment

_PAUSE = 0.05  # seconds


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="A name that ends in .toml or .json; - is stdin, as JSON."
        ),
    ] = "-",
    check: Annotated[bool, typer.Option("--check", help="Only read and check the file.")] = False,
    wait: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=3600,
            help="Wait up to this long for interfaces that do not exist yet.",
        ),
    ] = 0,
    allow_absent: Annotated[
        bool,
        typer.Option(
            "--allow-absent",
            help="Exit with 0 although an interface does not exist: zfw follow attaches it later.",
        ),
    ] = False,
) -> None:
    """Make the firewall equal to a file of zfw save.

    Rules, settings and attachments that the file does not have are removed. Those
    that it has already are left alone and keep their counters; established
    connections continue. Interfaces that do not exist are reported and skipped; the
    command then exits with code 5. A firewall is installed if there is none. On an
    error nothing changes.
    """
    with output.Progress() as progress:
        progress.show("reading", 0, None)
        document = load(file)
        if check:
            output.line(f"valid: {summary(document)}")
            output.warnings(document.warnings())
            return
        _wait(document, wait)
        total = len(document.rules)
        restored = Firewall().restore(
            document, lambda done: progress.show("comparing", done, total)
        )
    _tell(restored)
    if restored.missing and not allow_absent:
        raise typer.Exit(NotFound.exit_code)


def _wait(document: Document, seconds: int) -> None:
    deadline = monotonic() + seconds
    names = {entry.interface for entry in document.attachments}
    while any(not _exists(name) for name in names) and monotonic() < deadline:
        sleep(_PAUSE)


def _exists(name: str) -> bool:
    try:
        return index_of(name) > 0
    except NotFound:
        return False


def _tell(restored: Restored) -> None:
    output.warnings(restored.warnings)
    for interface, setting, on in restored.settings:
        output.line(f"{interface}: {setting.replace('_', '-')} {'on' if on else 'off'}")
    if restored.flow_limits:
        output.line(limits_text(restored.flow_limits))
    _tell_attachments("attached", restored.attached)
    _tell_attachments("detached", restored.detached)
    if restored.is_changed:
        moved = f", {restored.reordered} reordered" if restored.reordered else ""
        output.line(
            f"{restored.inserted} inserted, {restored.changed} changed,"
            f" {restored.deleted} deleted{moved}"
        )
    else:
        output.line("nothing to change")
    for name in restored.missing:
        output.warning(f"Interface not found: {name}: not attached")


def _tell_attachments(what: str, attachments: list[Attachment]) -> None:
    for attachment in attachments:
        name = name_of(attachment.ifindex)
        output.line(f"{what} {name} {attachment.direction} ({attachment.mode})")
