# SPDX-License-Identifier: GPL-2.0-only
"""JSON, and progress on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from zfw_py.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@contextmanager
def on_a_terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        yield terminal


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001])
def test_json_arrays(capsys: pytest.CaptureFixture[str], count: int) -> None:
    items = [{"number": n} for n in range(count)]
    output.json_array(items)
    text = capsys.readouterr().out
    assert json.loads(text) == items
    assert text.count("\n") == (count + 2 if count else 1)


def test_progress_shows_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(output, "monotonic", lambda: now)
    with on_a_terminal() as terminal, output.Progress() as progress:
        progress.show("reading", 1, None)
        assert terminal.getvalue() == ""
        now += 2
        progress.show("reading", 2, None)
        progress.show("applying", 1, 2)
    assert "applying" in terminal.getvalue()


def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(output, "monotonic", lambda: now)
    with output.Progress() as progress:
        now += 2
        progress.show("reading", 1, 2)
    assert capsys.readouterr() == ("", "")
