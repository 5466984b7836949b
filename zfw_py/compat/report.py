# SPDX-License-Identifier: GPL-2.0-only
"""What a boot program tells while it goes on, and the exit code that it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.errors import ZfwError

# sysexits.h: EX_UNAVAILABLE.
NOT_IN_THIS_VERSION = 69


class Report:
    """Steps as they are done, and what went wrong without stopping the rest."""

    def __init__(self, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """``say`` is for what was done, ``warn`` for what was not."""
        self.say = say
        self.warn = warn
        self._codes: list[int] = []

    def failed(self, error: ZfwError) -> None:
        """A step that was not done."""
        self.warn(error.message if error.hint is None else f"{error.message} ({error.hint})")
        self._codes.append(error.exit_code)

    def missing(self, feature: str) -> None:
        """Something that was asked for, and that this version does not have."""
        self.warn(f"not in this version of zfw, left out: {feature}")
        self._codes.append(NOT_IN_THIS_VERSION)

    @property
    def exit_code(self) -> int:
        """The first failure's; without one, what is missing, an interface before a feature."""
        lesser = (NotFound.exit_code, NOT_IN_THIS_VERSION)
        grave = [code for code in self._codes if code not in lesser]
        return grave[0] if grave else min(self._codes, key=lesser.index, default=0)
