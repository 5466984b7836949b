# SPDX-License-Identifier: GPL-2.0-only
"""Tables and progress, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from zfw_py.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = (
    output.Column("NAME"),
    output.Column("ACTION"),
    output.Column("BYTES", is_number=True, is_bytes=True),
)
ROWS = [("[red]a\x1b[0m", "deny", 0), ("", "pass", 12_345_678)]


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


def table() -> None:
    output.table(COLUMNS, ROWS, lambda row: row)


def test_elsewhere_it_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    assert capsys.readouterr().out == (
        "NAME           ACTION     BYTES\n"
        "[red]a\\x1b[0m  deny           0\n"
        "-              pass    12345678\n"
    )


def test_on_a_terminal_it_has_colours_and_a_frame() -> None:
    with on_a_terminal() as terminal:
        table()
    text = terminal.getvalue()
    assert "\x1b[31mdeny" in text
    assert "\x1b[36mpass" in text
    assert r"[red]a\x1b[0m" in text
    assert "12.3 MB" in text
    assert "╭" in text


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with on_a_terminal() as terminal:
        table()
    text = terminal.getvalue()
    assert "\x1b[3" not in text
    assert "╭" in text


def test_many_rows_are_plain_on_a_terminal_too() -> None:
    with on_a_terminal() as terminal:
        output.table(COLUMNS, ROWS * 1000, lambda row: row)
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert text.count("\n") == 2001


def test_long_text_is_folded_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    with on_a_terminal() as terminal:
        output.table(COLUMNS, [("2001:db8:1111:2222:3333:4444:5555:6666/128", "", 1)], tuple)
    assert "…" not in terminal.getvalue()


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
