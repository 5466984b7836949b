# SPDX-License-Identifier: GPL-2.0-only
"""Reads TOML and JSON strictly into types; an error has the line or the path of the value. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from msgspec import Struct, ValidationError, convert

from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Literal["toml", "json"]

_Made = TypeVar("_Made", bound=Struct)

_TOML_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")
# A message can quote the document.
_MOST_MESSAGE = 300


class DocumentError(UsageError):
    """An error in a document: ``line`` of a syntax error, else ``path`` of the value."""

    def __init__(self, message: str, *, line: int | None = None, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.line = line
        self.path = path


class ContentError(ValueError):
    """Raised by a type's ``__post_init__``; it becomes the cause of msgspec's ValidationError."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class _Duplicate:
    """Stands for the value of a key that an object has twice."""


def bounded(text: str) -> str:
    """The text, cut to the length that a message may have."""
    return text if len(text) <= _MOST_MESSAGE else f"{text[:_MOST_MESSAGE]}..."


def parse(data: bytes, form: Format, most_bytes: int) -> Any:
    """Parse a document of at most ``most_bytes``. Raises DocumentError with the line of an error.

    Pass the result to ``make`` and nothing else: a duplicate key has a marker as its value.
    """
    if len(data) > most_bytes:
        raise DocumentError(f"larger than {most_bytes} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError("not UTF-8", line=line) from None
    try:
        return _parse_toml(text) if form == "toml" else _parse_json(text)
    except RecursionError:
        raise DocumentError("nested too deeply") from None


def make(raw: Any, kind: type[_Made], tables: Mapping[str, type[Struct]] | None = None) -> _Made:
    """Convert the result of ``parse``. Raises DocumentError with the path of the first error.

    ``tables``: the fields that are objects with names as keys, and the type of their values.
    """
    try:
        try:
            return convert(raw, kind)
        except UnicodeEncodeError:
            # msgspec cannot encode a lone surrogate of JSON to compare it with known keys and
            # words. Its replacement is not a known one either, so the error has the path.
            raw = _without_surrogates(raw)
            return convert(raw, kind)
    except ValidationError as error:
        _raise_document_error(error, raw, tables or {})
    except RecursionError:
        raise DocumentError("nested too deeply") from None


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        if found is None:  # at the end of the document
            message, line = str(error), text.count("\n") + 1
        else:
            message, line = str(error)[: found.start()], int(found[1])
        raise DocumentError(bounded(message), line=line) from None
    except ValueError as error:  # a number with thousands of digits
        raise DocumentError(bounded(str(error))) from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        raise DocumentError(error.msg, line=error.lineno) from None
    except ValueError as error:
        raise DocumentError(bounded(str(error))) from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                made[key] = _Duplicate()
            seen.add(key)
    return made


def _without_surrogates(raw: Any) -> Any:
    if isinstance(raw, str):
        return raw.encode("utf-8", "replace").decode()
    if isinstance(raw, list):
        return [_without_surrogates(item) for item in raw]
    if isinstance(raw, dict):
        return {_without_surrogates(key): _without_surrogates(raw[key]) for key in raw}
    return raw


def _raise_document_error(
    error: ValidationError, raw: Any, tables: Mapping[str, type[Struct]]
) -> NoReturn:
    if isinstance(error.__cause__, ContentError):
        content = error.__cause__
        raise DocumentError(bounded(content.message), path=content.path) from None
    message, at, place = str(error).rpartition(" - at `$")
    if not at:
        message, place = str(error), "`"
    path = place.removesuffix("`").removeprefix(".")
    for field, kind in tables.items():
        if path.startswith(f"{field}[...]"):
            name = _bad_name(raw[field], kind)
            path = f"{field}.{name}{path.removeprefix(f'{field}[...]')}"
    for beginning, meaning in (
        ("Object contains unknown field `", "no such field"),
        ("Object missing required field `", "missing"),
    ):
        if message.startswith(beginning):
            field = message.removeprefix(beginning).removesuffix("`")
            path, message = f"{path}.{field}" if path else field, meaning
    if message.endswith("got `_Duplicate`"):
        message = "duplicate key"
    message = message.replace("`", "")
    raise DocumentError(bounded(message[:1].lower() + message[1:]), path=bounded(path)) from None


def _bad_name(table: dict[str, Any], kind: type[Struct]) -> str:
    """The name whose value has the error: msgspec does not report the key of an object."""
    for name, value in table.items():
        try:
            convert(value, kind)
        except ValidationError:
            return name
    raise AssertionError("msgspec accepts now what it refused before")
