# SPDX-License-Identifier: GPL-2.0-only
"""Reading a batch: lines, words, limits."""

from __future__ import annotations

import io

import pytest

from zfw_py import Delete, Insert, UsageError
from zfw_py.cli import batch


def read(text: bytes) -> batch.Edits:
    return batch.read(io.BytesIO(text), "rules", lambda done: None)


def test_lines() -> None:
    edits = read(
        b"\n"
        b"  # it's a comment\n"
        b"insert -c 10.0.0.0/8 -p tcp -l 22 -N eth1 -N eth0 --deny --route\r\n"
        b"\tzfw delete -c 10.0.0.0/8 -p tcp -l 22 -N eth0 -t 5\n"
        b"-Ic 10.0.0.0 -m8 -ptcp -l22 -h22 -t0 -r\n"
        b"zfw -D -c 10.0.0.0 -m 8 -p tcp -l 22 -h 22"
    )
    assert [edits.line_of(index) for index in range(len(edits))] == [3, 4, 5, 6]
    first, second, third, fourth = edits
    assert isinstance(first, Insert)
    assert (first.rule.action, first.rule.interfaces, first.route) == (
        "deny",
        ("eth0", "eth1"),
        True,
    )
    assert isinstance(second, Delete)
    assert (second.key, second.interfaces) == (first.rule.key, ("eth0",))
    assert isinstance(third, Insert)
    assert (third.rule.action, third.route) == ("pass", True)
    assert isinstance(fourth, Delete)
    assert (fourth.key, fourth.route) == (first.rule.key, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n", []),
        ("#x", []),
        (" # don't", []),
        ("a  b\tc\r\n", ["a", "b", "c"]),
        ("-s 'a b' c\n", ["-s", "a b", "c"]),
        ('-s "" x', ["-s", "", "x"]),
        (r"-s a\ b", ["-s", "a b"]),
        ("-s a#b", ["-s", "a#b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert batch.split(text) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("insert -c 'x", "no closing quotation"),
        ("list", "neither insert nor delete: 'list'"),
        ("zfw", "neither insert nor delete: ''"),
        ("-L", "neither -I nor -D: '-L'"),
        ("-I -Z", "option requires an argument -- 'Z'"),
        ("-I -c x", "-l, --low-port: missing, -I, --insert needs it"),
        ("insert", "-c, --destination: missing"),
        ("insert -c ::1 -l 1", "-p, --protocol: missing"),
        ("insert -c ::1 -p tcp", "-l, --low-port: missing"),
        ("insert -c", "-c: needs a value"),
        ("insert --low 22", "no such option: '--low'"),
        ("insert --low=22", "no such option: '--low=22'"),
        ("insert -q", "no such option: '-q'"),
        ("insert --deny=yes", "--deny: takes no value"),
        ("insert extra", "unexpected word: 'extra'"),
        ("delete -c ::1 -p tcp -l 1 -h 0", "-h, --high-port: 0 is below the low port 1"),
        ("insert -c 1.2.3.4\0 -p tcp -l 1", "not an IPv4 or IPv6 address: '1.2.3.4\\x00'"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(f"# first\n{line}\n".encode())
    assert str(caught.value).startswith("rules:2: ")
    assert message in str(caught.value)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(UsageError, match=r"^rules:1: neither insert nor delete: "):
        read(b"\xff\x00\xc3 -c")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = b"#" * (batch.MAX_LINE_BYTES - 1) + b"\n"
    assert len(read(longest)) == 0
    with pytest.raises(UsageError, match=r"^rules:2: longer than 65536 bytes$"):
        read(b"\n#" + longest)
    monkeypatch.setattr(batch, "MAX_LINES", 3)
    assert len(read(b"\n" * 3)) == 0
    with pytest.raises(UsageError, match=r"^rules: more than 3 lines$"):
        read(b"\n" * 4)


def test_the_edit_that_is_looked_at_has_a_line() -> None:
    edits = read(b"\n".join(b"insert -c ::%x -p tcp -l 1" % n for n in range(5000)))
    told: list[int] = []
    edits.on_progress = told.append
    seen = [(edits.line, edit) for edit in edits]
    assert [line for line, _ in seen] == list(range(1, 5001))
    assert [edit for _, edit in seen] == edits[:]
    assert edits.line is None
    assert told == [0, 4096]
