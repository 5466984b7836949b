# SPDX-License-Identifier: GPL-2.0-only
"""The table of docs/DOCTOR.md has every kind of finding."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from zfw_py.cli.commands.doctor import SYSTEMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "DOCTOR.md"
START, END = "<!-- findings -->\n", "<!-- end -->"


def table() -> str:
    rows = ["| id | severity | condition |", "|---|---|---|"]
    for system in SYSTEMS:
        for kind in import_module(f"zfw_py.{system}.findings").KINDS:
            rows.append(f"| `{kind.id}` | {kind.severity} | {kind.summary} |")
    return "\n".join(rows) + "\n"


def test_the_page_has_every_kind_of_finding() -> None:
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    wanted = before + START + table() + END + after
    assert PAGE.read_text() == wanted, f"the table has to be:\n{table()}"


def test_each_kind_has_an_id_a_summary_and_a_reason() -> None:
    kinds = [
        kind for system in SYSTEMS for kind in import_module(f"zfw_py.{system}.findings").KINDS
    ]
    assert len({kind.id for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.summary
        assert kind.why.endswith(".")
