# SPDX-License-Identifier: GPL-2.0-only
"""The page of recipes names things that exist, each once."""

from __future__ import annotations

import re

from tests.firewall.support.recipes import block_names, page
from zfw_py.firewall import layout


def test_each_block_has_a_name_of_its_own() -> None:
    names = block_names()
    assert names
    assert sorted(set(names)) == sorted(names)


def test_the_reasons_that_it_explains_exist() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", page(), re.MULTILINE)
    assert explained
    assert sorted(set(explained) - set(layout.REASONS)) == []
