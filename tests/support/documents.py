# SPDX-License-Identifier: GPL-2.0-only
"""Documents in TOML and JSON: written, and refused by a decoder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w

from zfw_py.values.structured import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable

forms = pytest.mark.parametrize("form", ["toml", "json"])


def written(raw: dict[str, Any], form: str) -> bytes:
    """The document in a form, "toml" or "json"."""
    return (tomli_w.dumps(raw) if form == "toml" else json.dumps(raw)).encode()


def refusal(decode: Callable[[bytes, Any], object], data: bytes, form: str) -> DocumentError:
    """The error of a decoder: exit code 2 and a message of one line."""
    with pytest.raises(DocumentError) as raised:
        decode(data, form)
    assert "\n" not in raised.value.message
    assert raised.value.exit_code == 2
    return raised.value
