# SPDX-License-Identifier: GPL-2.0-only
"""Which cases of the classic command's callers are tested, and why the others are not.

A case is tested by a test of the command on a real kernel, or of what its
process costs, that has its number in its name. What parses only is not counted.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]

# 12, 34, 49 and 63 do not exist.
CASES = set(range(1, 63)) - {12, 34, 49}

# Not tested at all: the case, and what it waits for.
UNTESTED = {
    51: "the monitor is not there yet",
    55: "tunnel mode and its XDP object are not there yet; -A is case 45",
    59: "another program's walk over another's maps: not kept, a wrapper of our own replaces it",
}

# Tested, but not all of what the case says.
PARTLY_TESTED = {
    38: "masquerading, which an egress detach turns off, is not there yet",
    43: "DDoS protection is not there yet; the boot program says so",
    44: "tunnel mode is not there yet; the boot program says so",
    54: "-T is not there yet",
    60: "-L -Y, -U and -C list what is not there yet",
}

_NAME = re.compile(r"test_case_(\d+)((?:_(?:and|to)_\d+)*)_")


def numbers(name: str) -> set[int]:
    """The cases in a test's name: case_36_and_37, case_43_to_45."""
    found = _NAME.match(name)
    if not found:
        return set()
    cases = [int(found[1])]
    for word, number in re.findall(r"_(and|to)_(\d+)", found[2]):
        cases += range(cases[-1] + 1, int(number)) if word == "to" else ()
        cases.append(int(number))
    return set(cases)


def covered() -> set[int]:
    paths = [*sorted(TESTS.glob("*/netns/test_*.py")), TESTS / "test_import_budget.py"]
    return {
        case
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for case in numbers(node.name)
    }


def test_every_case_is_tested_or_has_its_reason_here() -> None:
    assert covered() | set(UNTESTED) == CASES


def test_no_case_that_is_tested_is_said_to_be_untested() -> None:
    assert covered() & set(UNTESTED) == set()
    assert set(PARTLY_TESTED) <= covered()


def test_names_are_read() -> None:
    assert numbers("test_case_01_version") == {1}
    assert numbers("test_case_36_and_37_attach") == {36, 37}
    assert numbers("test_case_43_to_45_later") == {43, 44, 45}
    assert numbers("test_cases") == numbers("test_case_of_it") == set()
