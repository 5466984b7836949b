# SPDX-License-Identifier: GPL-2.0-only
"""zfw save."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zfw_py.cli import files, output
from zfw_py.cli.documents import form_of, summary
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="Ends in .toml or .json; - is stdout, and means JSON."
        ),
    ] = "-",
) -> None:
    """Write rules, settings and attachments to a file that zfw restore reads.

    Without counters and times: the same firewall gives the same bytes. The file
    is replaced in one step and only root can read it.
    """
    from zfw_py.firewall.document import DocumentError, encode

    form = form_of(file)
    with output.Progress() as progress:
        progress.show("reading the rules", 0, None)
        document = Firewall().save()
        progress.show("writing", 0, None)
        try:
            data = encode(document, form)
        except DocumentError as error:
            raise UsageError(f"{file}: {error.message}") from None
        if file == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            return
        files.write(file, data)
    output.line(f"saved {summary(document)}")
