# SPDX-License-Identifier: GPL-2.0-only
"""The table of addresses that names led to, when it is full."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from zfw_py.guard import maps
from zfw_py.guard.codec import resolved_key
from zfw_py.guard.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESSES = [bytes(15) + bytes([number]) for number in range(4)]
KEYS = [resolved_key(address, 0) for address in ADDRESSES]
ANY = frozenset[int]()


class Small:
    """A hash map with room for two, as a BPF map behaves."""

    def __init__(self) -> None:
        self.elements: dict[bytes, bytes] = {}
        self.looked_up = 0

    def lookup(self, key: bytes) -> bytes | None:
        self.looked_up += 1
        return self.elements.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        if key not in self.elements and len(self.elements) == 2:
            raise OSError(errno.E2BIG, "full")
        self.elements[key] = value

    def delete(self, key: bytes) -> bool:
        return self.elements.pop(key, None) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        raise AssertionError("the whole table is walked")


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    made = Small()
    monkeypatch.setattr(Maps, "map", lambda *_: made)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(maps, "time", made)
    return made


def test_what_has_expired_makes_room_at_once(small: Small, clock: Clock) -> None:
    maps = Maps("")
    maps.admit(ADDRESSES[:1], ANY, 5)
    maps.admit(ADDRESSES[1:2], ANY, 60)
    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            maps.admit(ADDRESSES[2:3], ANY, 60)
    clock.now += 5
    maps.admit(ADDRESSES[2:3], ANY, 60)
    assert set(small.elements) == {KEYS[1], KEYS[2]}
    with pytest.raises(OSError, match="full"):
        maps.admit(ADDRESSES[3:], ANY, 60)


def test_what_is_admitted_again_stays(small: Small, clock: Clock) -> None:
    maps = Maps("")
    maps.admit(ADDRESSES[:2], ANY, 5)
    # Full or not, it may be let for longer, but not for less.
    maps.admit(ADDRESSES[:1], ANY, 60)
    maps.admit(ADDRESSES[:1], ANY, 6)
    clock.now += 10
    assert maps.remove_expired(kept=0) == 1
    assert set(small.elements) == {KEYS[0]}
    maps.admit(ADDRESSES[2:3], ANY, 5)
    with pytest.raises(OSError, match="full"):
        maps.admit(ADDRESSES[3:], ANY, 5)
    clock.now += 50
    assert maps.remove_expired(kept=0) == 2
    assert not small.elements


def test_what_has_expired_and_is_admitted_again_stays_too(small: Small, clock: Clock) -> None:
    maps = Maps("")
    maps.admit(ADDRESSES[:1], ANY, 5)
    clock.now += 10
    maps.admit(ADDRESSES[:1], ANY, 5)
    assert maps.remove_expired(kept=0) == 0
    assert set(small.elements) == {KEYS[0]}


def test_nothing_is_looked_at_but_what_may_have_expired(small: Small, clock: Clock) -> None:
    """However often it was admitted: an answer from the cache admits its addresses again."""
    maps = Maps("")
    for _ in range(1000):
        clock.now += 0.001
        maps.admit(ADDRESSES[:2], ANY, 5)
    small.looked_up = 0
    clock.now += 4
    assert maps.remove_expired(kept=0) == 0
    assert small.looked_up == 0
    clock.now += 0.5
    assert maps.remove_expired(kept=0) == 0
    assert small.looked_up == 2
    clock.now += 0.5
    assert maps.remove_expired(kept=0) == 2
    assert small.looked_up == 4


def test_what_has_expired_is_kept_for_a_day(small: Small, clock: Clock) -> None:
    """So that its denial can say why."""
    maps = Maps("")
    maps.admit(ADDRESSES[:1], ANY, 5)
    clock.now += 86_404
    assert maps.remove_expired() == 0
    clock.now += 2
    assert maps.remove_expired() == 1
