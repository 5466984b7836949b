# SPDX-License-Identifier: GPL-2.0-only
"""Documents as files: which format, and errors that name the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.cli import files, output
from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from zfw_py.firewall.document import Document, Format


def form_of(file: str) -> Format:
    """The format that a file's name asks for; "-" is JSON."""
    if file == "-" or file.endswith(".json"):
        return "json"
    if file.endswith(".toml"):
        return "toml"
    raise UsageError(f"{file}: its name ends in neither .toml nor .json")


def load(file: str) -> Document:
    """Read and check a file, or stdin for "-". Raises UsageError, naming it, and NotFound."""
    from zfw_py.firewall.document import MAX_BYTES, DocumentError, decode

    form = form_of(file)
    data = files.read_stdin(MAX_BYTES) if file == "-" else files.read(file, MAX_BYTES)
    name = "stdin" if file == "-" else file
    try:
        return decode(data, form)
    except DocumentError as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise UsageError(f"{where}: {error.message}") from None


def summary(document: Document) -> str:
    """How much is in it."""
    rules = output.counted(len(document.rules), "rule")
    interfaces = output.counted(len(document.settings), "interface")
    attachments = output.counted(len(document.attachments), "attachment")
    return f"{rules}, the settings of {interfaces}, {attachments}"
