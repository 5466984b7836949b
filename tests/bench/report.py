# SPDX-License-Identifier: GPL-2.0-only
"""What was measured: sections of rows, targets, and the machine it was on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from zfw_py.cli import output, tables

Cell = str | int


@dataclass(frozen=True)
class Target:
    """A figure that the issue of this project demands."""

    name: str
    value: float
    limit: float
    unit: str
    is_least: bool = False  # the limit is a floor

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps to the limit."""
        return self.value >= self.limit if self.is_least else self.value <= self.limit


@dataclass
class Section:
    """A table, and what it was made from."""

    title: str
    notes: list[str]
    columns: list[str]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    # Every measurement by name, round by round.
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One more measurement of this name."""
        self.rounds.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle of the rounds."""
        return median(self.rounds[name])

    def show(self) -> None:
        """Print it: a table that fits a terminal, plain text elsewhere."""
        output.line("")
        output.line(self.title)
        for note in self.notes:
            output.line(f"  {note}")
        columns = [
            tables.Column(title, is_number=bool(position))
            for position, title in enumerate(self.columns)
        ]
        tables.table(columns, self.rows, lambda row: row)

    def as_object(self) -> dict[str, object]:
        """For JSON."""
        return {
            "title": self.title,
            "notes": self.notes,
            "rounds": self.rounds,
            "medians": {name: median(values) for name, values in self.rounds.items()},
            "targets": [asdict(target) | {"is_met": target.is_met} for target in self.targets],
        }


def number(value: float) -> str:
    """A figure with as many digits as are worth reading."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show_targets(sections: list[Section]) -> bool:
    """Print every target and whether it is met; whether all are."""
    targets = [target for section in sections for target in section.targets]
    if not targets:
        return True
    columns = [
        tables.Column("TARGET"),
        tables.Column("MEASURED", is_number=True),
        tables.Column("LIMIT", is_number=True),
        tables.Column("MET"),
    ]
    output.line("")
    output.line("Targets")
    tables.table(
        columns,
        targets,
        lambda target: (
            target.name,
            f"{number(target.value)} {target.unit}".rstrip(),
            f"{'>=' if target.is_least else '<='} {target.limit:,g} {target.unit}".rstrip(),
            "yes" if target.is_met else "NO",
        ),
    )
    return all(target.is_met for target in targets)


def machine() -> str:
    """The machine in a line: kernel, CPU, cores, what else it is doing."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Hardware", "cpu model"):
            cpu = value.strip()
            break
    mhz = next(
        (
            f", {float(line.partition(':')[2]) / 1000:.1f} GHz"
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("cpu MHz")
        ),
        "",
    )
    return (
        f"Linux {platform.release()} {platform.machine()}, {cpu}{mhz}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}, load {os.getloadavg()[0]:.2f} at the start"
    )


def progress(text: str) -> None:
    """A line on stderr for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
