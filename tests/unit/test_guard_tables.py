# SPDX-License-Identifier: GPL-2.0-only
"""The table of addresses that names led to, when it is full."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from zfw_py.abi.guard_codec import learnt_key, time_value
from zfw_py.guard.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESSES = [bytes(15) + bytes([number]) for number in range(4)]


class Small:
    """A hash map with room for two, as a BPF map behaves."""

    def __init__(self) -> None:
        self.elements: dict[bytes, bytes] = {}
        self.walks = 0

    def lookup(self, key: bytes) -> bytes | None:
        return self.elements.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        if key not in self.elements and len(self.elements) == 2:
            raise OSError(errno.E2BIG, "full")
        self.elements[key] = value

    def delete(self, key: bytes) -> bool:
        return self.elements.pop(key, None) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        self.walks += 1
        yield from self.elements.items()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    made = Small()
    monkeypatch.setattr(Tables, "map", lambda *_: made)
    return made


def test_what_has_expired_makes_room(small: Small) -> None:
    for address in ADDRESSES[:2]:
        small.update(learnt_key(address, 0), time_value(time.monotonic_ns() - 1))
    Tables("").admit(ADDRESSES[2:3], frozenset(), 60)
    assert list(small.elements) == [learnt_key(ADDRESSES[2], 0)]


def test_a_full_table_is_not_walked_for_every_answer(small: Small) -> None:
    tables = Tables("")
    tables.admit(ADDRESSES[:2], frozenset(), 60)
    for _ in range(5):
        with pytest.raises(OSError, match="full"):
            tables.admit(ADDRESSES[2:], frozenset(), 60)
    assert small.walks == 1
    # What is in it may be let for longer all the same.
    tables.admit(ADDRESSES[:1], frozenset(), 600)
    assert small.walks == 1
