# SPDX-License-Identifier: GPL-2.0-only
"""What ``zfw doctor`` finds, and the registries of the kinds of findings.

Each system has registries of its own. A new kind is one function with the decorator ``kind``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Severity = Literal["note", "warning", "error"]
# The mildest first.
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

Subject = TypeVar("Subject")


class Finding(NamedTuple):
    """Something that is wrong, or may be: what it is, why it matters, the command that mends it.

    ``command`` can be typed in a shell as it is; it is empty where no command helps.
    """

    id: str
    severity: Severity
    what: str
    why: str
    command: str


class Kind(NamedTuple, Generic[Subject]):
    """A kind of finding. ``find`` yields pairs: what is wrong, and the command that mends it."""

    id: str
    severity: Severity
    why: str
    find: Callable[[Subject], Iterable[tuple[str, str]]]

    @property
    def summary(self) -> str:
        """What is looked for, in a line."""
        return (self.find.__doc__ or "").partition("\n")[0].rstrip(".")


class Registry(Generic[Subject]):
    """The kinds of findings about one kind of subject, in the order of their definition."""

    def __init__(self) -> None:
        self.kinds: list[Kind[Subject]] = []

    def kind(
        self, id: str, severity: Severity, why: str
    ) -> Callable[
        [Callable[[Subject], Iterable[tuple[str, str]]]],
        Callable[[Subject], Iterable[tuple[str, str]]],
    ]:
        """Register the function that finds it; the first line of its docstring is the summary."""

        def register(
            find: Callable[[Subject], Iterable[tuple[str, str]]],
        ) -> Callable[[Subject], Iterable[tuple[str, str]]]:
            self.kinds.append(Kind(id, severity, why, find))
            return find

        return register

    def find(self, subject: Subject) -> Iterator[Finding]:
        """Everything that is found. Changes nothing."""
        for kind in self.kinds:
            for what, command in kind.find(subject):
                yield Finding(kind.id, kind.severity, what, kind.why, command)
