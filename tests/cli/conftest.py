# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the tests of the command line, which run it in pytest's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from zfw_py.cli.app import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Zfw(Protocol):
    def __call__(self, *argv: str) -> Result: ...


@pytest.fixture
def zfw(capsys: pytest.CaptureFixture[str]) -> Zfw:
    """A function that runs a command line: its exit code, and what it printed."""

    def run(*argv: str) -> Result:
        capsys.readouterr()
        code = main(list(argv))
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """A function that sets the text that the command reads from stdin."""
    path = tmp_path / "stdin"
    path.touch()
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        yield path.write_text
