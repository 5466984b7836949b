# SPDX-License-Identifier: GPL-2.0-only
"""zfw batch: all of a file, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfw_py import Firewall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Zfw

pytestmark = pytest.mark.kernel

INSERTS = """\
# two grammars
insert -c 10.0.0.1 -p tcp -l 22 -t 5000

zfw insert --destination=10.0.0.2/31 --protocol udp --low-port=53
-I -c 10.0.0.4 -m 32 -p tcp -o 0.0.0.0 -n 0 -l 22 -h 30 -t 5000
zfw -I -c 10.0.0.5 -m 32 -p tcp -l 22 -h 22 -t 0
"""


@pytest.fixture
def batch(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of lines; its path."""

    def write(text: str) -> str:
        path = tmp_path / "rules"
        path.write_text(text)
        return str(path)

    return write


def destinations(firewall: Firewall) -> list[str]:
    return [str(rule.key.destination) for rule in firewall.rules()]


def test_both_grammars(zfw: Zfw, firewall: Firewall, batch: Callable[[str], str]) -> None:
    assert zfw("batch", batch(INSERTS)) == (0, "4 inserted, 0 replaced, 0 deleted\n", "")
    assert destinations(firewall) == ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32", "10.0.0.5/32"]


def test_in_order(zfw: Zfw, firewall: Firewall, stdin: Callable[[str], None]) -> None:
    stdin(
        "insert -c 10.0.0.1 -p tcp -l 22\n"
        "insert -c 10.0.0.1 -p tcp -l 22 -h 30\n"
        "delete -c 10.0.0.1 -p tcp -l 22\n"
        "insert -c 10.0.0.9 -p tcp -l 22"
    )
    assert zfw("batch") == (0, "2 inserted, 1 replaced, 1 deleted\n", "")
    assert destinations(firewall) == ["10.0.0.9/32"]


def test_a_bad_line_changes_nothing(
    zfw: Zfw, firewall: Firewall, batch: Callable[[str], str]
) -> None:
    path = batch(INSERTS + "insert -c 10.0.0.1 -p tcp -l x\n")
    assert zfw("batch", path) == (
        2,
        "",
        f"zfw: {path}:7: -l, --low-port: not a port within 0 to 65535: 'x'\n",
    )
    assert firewall.rules() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "delete -c 10.0.0.7 -p tcp -l 22",
            "no rule ingress tcp 10.0.0.7/32 port 22: the prefix has none",
        ),
        ("delete -c 10.0.0.1 -p tcp -l 23", "no rule ingress tcp 10.0.0.1/32 port 23"),
        ("insert -c 10.0.0.1 -p tcp -l 22 -N nosuch", "Interface not found: nosuch"),
    ],
)
def test_a_line_that_cannot_be_done_undoes_all(
    zfw: Zfw, firewall: Firewall, batch: Callable[[str], str], line: str, message: str
) -> None:
    path = batch(f"{INSERTS}{line}\n{INSERTS}")
    assert zfw("batch", path) == (5, "", f"zfw: {path}:7: {message}\n")
    assert firewall.rules() == []


def test_warnings_name_the_line(zfw: Zfw, firewall: Firewall, batch: Callable[[str], str]) -> None:
    covering = "insert -c 10.0.0.1 -p tcp -l 0 -h 65535\n"
    path = batch(covering + "".join(f"insert -c 10.0.0.1 -p tcp -l {n}\n" for n in range(1, 13)))
    result = zfw("batch", path)
    assert (result.code, result.out) == (0, "13 inserted, 0 replaced, 0 deleted\n")
    lines = result.err.splitlines()
    assert lines[0] == (
        f"zfw: warning: {path}:2: rule ingress tcp 10.0.0.1/32 port 1 pass can never match:"
        " earlier rules of its prefix cover it"
    )
    assert len(lines) == 11
    assert lines[10] == "zfw: warning: 2 more like these"


def test_files_that_cannot_be_read(zfw: Zfw, firewall: Firewall, tmp_path: Path) -> None:
    assert zfw("batch", f"{tmp_path}/none") == (5, "", f"zfw: {tmp_path}/none: no such file\n")
    assert zfw("batch", str(tmp_path)) == (2, "", f"zfw: {tmp_path}: Is a directory\n")


def test_an_empty_batch(zfw: Zfw, firewall: Firewall, batch: Callable[[str], str]) -> None:
    assert zfw("batch", batch("# nothing\n")) == (0, "0 inserted, 0 replaced, 0 deleted\n", "")
