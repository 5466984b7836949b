# SPDX-License-Identifier: GPL-2.0-only
"""zfw save."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.documents import form_of, summary
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall
from zfw_py.kernel import files


def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="A name that ends in .toml or .json; - is stdout, as JSON."
        ),
    ] = "-",
) -> None:
    """Save rules, settings and attachments to a file.

    zfw restore reads the file. It has no counters and no times: saving the same
    firewall twice gives the same bytes. The file is replaced atomically, and only
    root can read it.
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
