# SPDX-License-Identifier: GPL-2.0-only
"""The console entry: the classic grammar's fast path, or else the Typer app. Hot.

A first argument that starts with "-" is the classic grammar, which a router runs
once for each rule: nothing heavy is imported on that way.
"""

from __future__ import annotations

import gc
import posix
import sys
from _io import BufferedWriter, FileIO, TextIOWrapper

from zfw_py.errors import OutputLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from _typeshed import ReadableBuffer

_EPIPE = 32


class _Output(FileIO):
    """The file of stdout: an error of writing to it is no error of the command's own files."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # A reader that has gone, as in `zfw list | head`, is no failure to report.
            raise OutputLost(
                ""
                if error.errno == _EPIPE
                else f"cannot write to stdout: {error.strerror}; what the command changed stands"
            ) from error


def _set_up_streams() -> None:
    """Open streams that the caller closed: what is opened later must not be in their place.

    Reading then finds the end, writing to stdout fails as it does on a full disk, and stderr is
    lost. Stdout has a buffer whatever PYTHONUNBUFFERED says: a failed write must not end a
    command between two changes.
    """
    if sys.stdin is None:
        sys.stdin = open("/dev/null")  # noqa: SIM115
    old = sys.stdout
    if old is None:
        posix.open("/dev/null", posix.O_RDONLY)
    sys.stdout = TextIOWrapper(
        BufferedWriter(_Output(1, "w", closefd=False)),
        "utf-8" if old is None else old.encoding,
        # A service id may have letters that the locale cannot encode.
        "backslashreplace" if old is None or old.errors == "strict" else old.errors,
        line_buffering=old is not None and old.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115


def _is_classic(argv: list[str]) -> bool:
    return bool(argv) and argv[0].startswith("-") and argv[0] != "--help"


def _run(argv: list[str]) -> int:
    if _is_classic(argv):
        from zfw_py.cli.classic.run import run

        return run(argv)
    from zfw_py.cli.app import main as run_app

    return run_app(argv)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    # One command, then the process ends: a million rules of a batch or a listing
    # would be gone through again and again, and nothing is there to be collected.
    gc.disable()
    _set_up_streams()
    argv = sys.argv[1:]
    code = _run(argv)
    try:
        sys.stdout.flush()
    except OutputLost:
        # A runner has reported it; the interpreter would fail on what is left.
        null = posix.open("/dev/null", posix.O_WRONLY)
        posix.dup2(null, 1)
    if _is_classic(argv):
        # Nothing is left to do: the kernel frees memory faster than the interpreter would.
        posix._exit(code)
    # The interpreter's last collections would visit all that was imported, 3 ms after Typer.
    gc.freeze()
    sys.exit(code)
