# SPDX-License-Identifier: GPL-2.0-only
"""Options of commands as rows of tables: a command gets them by a decorator."""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Wide = Annotated[
    bool,
    typer.Option("--wide", help="On a terminal as well all columns, in one line a row."),
]

_Command = TypeVar("_Command", bound="Callable[..., None]")


class Option:
    """An option: its spellings, its name in messages, and its type and default for Typer."""

    def __init__(
        self, *spellings: str, kind: Any = str | None, default: Any = None, **details: Any
    ) -> None:
        """``default`` ... makes it required; ``details`` are those of ``typer.Option``."""
        self.spellings = spellings
        self.name = ", ".join(spellings)
        self.kind = kind
        self._default = Parameter.empty if default is ... else default
        self._typer = typer.Option(*spellings, **details)

    def parameter(self, name: str) -> Parameter:
        """The parameter that Typer reads."""
        annotation = Annotated[self.kind, self._typer]  # type: ignore[name-defined]
        return Parameter(name, Parameter.KEYWORD_ONLY, default=self._default, annotation=annotation)


def switch(*spellings: str, help: str) -> Option:
    """An option without a value."""
    return Option(*spellings, kind=bool, default=False, help=help)


def takes(options: Mapping[str, Option]) -> Callable[[_Command], _Command]:
    """Give a command these options, whose values it finds by name in its ``**values``."""

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        added = [option.parameter(name) for name, option in options.items()]
        command.__signature__ = signature.replace(parameters=own + added)  # type: ignore[attr-defined]
        return command

    return decorate
