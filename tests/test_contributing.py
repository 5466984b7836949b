# SPDX-License-Identifier: GPL-2.0-only
"""CONTRIBUTING.md names the modules and scripts that there are."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

import pytest

from tests.test_import_budget import OURS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_hot_path_is_that_of_the_import_budget() -> None:
    """The list has modules; the packages around them are not named."""
    files = {name.replace(".", "/") + ".py" for name in OURS}
    listed = ", ".join(f"`{name}`" for name in sorted(files) if (ROOT / name).exists())
    expected = f"<!-- hot path -->\n{fill(listed, 120, break_on_hyphens=False)}\n<!-- end -->"
    if expected not in TEXT:
        pytest.fail(f"write into CONTRIBUTING.md:\n{expected}", pytrace=False)


def test_each_script_that_is_named_is_there() -> None:
    for name in set(re.findall(r"scripts/[a-z][a-z-]*", TEXT)):
        assert (ROOT / name).is_file(), name
