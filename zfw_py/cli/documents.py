# SPDX-License-Identifier: GPL-2.0-only
"""Documents in files: the format by the file's name, and errors that name the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from zfw_py.cli import output
from zfw_py.errors import UsageError
from zfw_py.kernel import files

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.firewall.document import Document, Format

_Document = TypeVar("_Document")


def form_of(file: str) -> Format:
    """The format of a file by its name's ending; "-" is JSON. Raises UsageError."""
    if file == "-" or file.endswith(".json"):
        return "json"
    if file.endswith(".toml"):
        return "toml"
    raise UsageError(f"{file}: its name does not end in .toml or .json")


def read(file: str, most: int, decode: Callable[[bytes], _Document]) -> _Document:
    """Read a document of at most ``most`` bytes from a file, or from stdin for "-".

    Raises NotFound, and UsageError with the file and the line of a syntax error.
    """
    from zfw_py.values.structured import DocumentError

    data = files.read_stdin(most) if file == "-" else files.read(file, most)
    try:
        return decode(data)
    except DocumentError as error:
        name = "stdin" if file == "-" else file
        where = name if error.line is None else f"{name}:{error.line}"
        raise UsageError(f"{where}: {error.message}") from None


def load(file: str) -> Document:
    """Read a firewall's document, as ``read`` does."""
    from zfw_py.firewall.document import MAX_BYTES, decode

    form = form_of(file)
    return read(file, MAX_BYTES, lambda data: decode(data, form))


def summary(document: Document) -> str:
    """The numbers of rules, interfaces and attachments, as a text."""
    rules = output.counted(len(document.rules), "rule")
    interfaces = output.counted(len(document.settings), "interface")
    attachments = output.counted(len(document.attachments), "attachment")
    return f"{rules}, the settings of {interfaces}, {attachments}"
