# SPDX-License-Identifier: GPL-2.0-only
"""The errors of zfw, each with its exit code.

ZfwError                    1
├── UsageError              2   a value, an option or a document is invalid
├── NotInstalled            3   nothing is attached, or not where the command needs it
├── NotFound                5   no such rule, interface or file
├── Conflict                6   an object that zfw does not own is in the way
├── MapFull                 7   a limit of the tables is reached
├── LayoutMismatch          8   the pinned maps are of another version of zfw
├── OutputLost             74   stdout cannot be written; what was changed stands
├── Busy                   75   another zfw process holds the lock for too long
├── PermissionDenied       77   needs root
└── KernelError             1   a call into the kernel failed (also an OSError)
    └── VerifierError       1   the kernel refused a program; carries its log

The classic grammar keeps its own codes: 0, 1, and 64 for usage.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_EPERM, _EACCES = 1, 13

# A message that quotes what the user gave keeps so many characters of its begin and its end.
_BEGIN, _END = 400, 200


def shortened(message: str) -> str:
    """A message that is not longer than a few lines of a terminal."""
    left_out = len(message) - _BEGIN - _END
    if left_out <= 0:
        return message
    return f"{message[:_BEGIN]}[{left_out} characters]{message[-_END:]}"


class ZfwError(Exception):
    """An expected failure: a message of one line, and perhaps a hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = shortened(message)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(ZfwError):
    """A value, an option or a document is invalid."""

    exit_code = 2


class NotInstalled(ZfwError):
    """Nothing is attached in this network namespace, or not where the command needs it."""

    exit_code = 3


class NotFound(ZfwError):
    """A rule, an interface or a file does not exist."""

    exit_code = 5


class Conflict(ZfwError):
    """An object that zfw does not own is in the way."""

    exit_code = 6


class MapFull(ZfwError):
    """A limit of the tables is reached; nothing was changed."""

    exit_code = 7


class LayoutMismatch(ZfwError):
    """The pinned maps were made by another version of zfw."""

    exit_code = 8


class OutputLost(ZfwError):
    """Standard output cannot be written; what the command changed stands."""

    exit_code = 74


class Busy(ZfwError):
    """Another zfw process held the lock for too long."""

    exit_code = 75


class PermissionDenied(ZfwError):
    """The command needs root."""

    exit_code = 77


class KernelError(ZfwError, OSError):
    """A call into the kernel failed. ``errno`` is set as in any OSError."""

    exit_code = 1

    def __init__(self, operation: str, errno: int, *, hint: str | None = None) -> None:
        # Only where something fails: this module is on the hot path.
        from errno import errorcode
        from os import strerror

        name = errorcode.get(errno, str(errno))
        ZfwError.__init__(self, f"{operation}: {strerror(errno)} ({name})", hint=hint)
        self.errno = errno


# The last lines of each log of the verifier.
_STATISTICS = ("processed ", "verification time ", "stack depth ")


class VerifierError(KernelError):
    """The kernel's verifier refused a program. ``log`` is its whole log."""

    def __init__(self, program: str, errno: int, log: str) -> None:
        lines = [line for line in log.splitlines() if line.strip()]
        telling = [line for line in lines if not line.startswith(_STATISTICS)]
        last = telling[-1].strip() if telling else "no log"
        super().__init__(f"load program {program}: {last}", errno)
        self.log = log
        self.hint = f"{len(lines)} lines of the verifier's log are in .log"


def raise_expected(error: OSError) -> NoReturn:
    """Raise PermissionDenied or KernelError for an OSError of the kernel."""
    if isinstance(error, VerifierError):
        raise error
    if isinstance(error, PermissionError) or error.errno in (_EPERM, _EACCES):
        raise PermissionDenied(f"not permitted: {error}: needs root") from error
    if isinstance(error, ZfwError):
        raise error
    raise KernelError("a call into the kernel", error.errno or 0) from error
