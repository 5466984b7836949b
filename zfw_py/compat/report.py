# SPDX-License-Identifier: GPL-2.0-only
"""The lines that a boot program prints, and its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.errors import ZfwError

# sysexits.h: EX_UNAVAILABLE.
NOT_IN_THIS_VERSION = 69


class Report:
    """Prints steps, and collects failures that do not stop the program."""

    def __init__(self, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """``say`` prints a step that was taken, ``warn`` one that failed."""
        self.say = say
        self.warn = warn
        self._codes: list[int] = []

    def failed(self, error: ZfwError) -> None:
        """Report a step that failed."""
        self.warn(error.message if error.hint is None else f"{error.message} ({error.hint})")
        self._codes.append(error.exit_code)

    def missing(self, feature: str) -> None:
        """Report a feature of the configuration that this version does not have."""
        self.warn(f"skipped, not in this version of zfw: {feature}")
        self._codes.append(NOT_IN_THIS_VERSION)

    @property
    def exit_code(self) -> int:
        """The first failure's; without one, that of a missing interface, then of a feature."""
        lesser = (NotFound.exit_code, NOT_IN_THIS_VERSION)
        grave = [code for code in self._codes if code not in lesser]
        return grave[0] if grave else min(self._codes, key=lesser.index, default=0)
