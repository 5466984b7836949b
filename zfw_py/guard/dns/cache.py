# SPDX-License-Identifier: GPL-2.0-only
"""Caches answers until they expire; evicts the least recently used one. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from zfw_py.guard.dns.answers import Answer

MOST = 4096
# Bytes of an answer: limits the cache to 64 MB. Usual answers have some hundred bytes.
_LARGEST = 16_384


class Cache:
    """Answers by the key of their question and of the servers asked."""

    def __init__(self, most: int = MOST) -> None:
        """``most``: how many answers. Answers of more than 16 KiB are not cached."""
        self._most = most
        # In the order of their last use, the latest last.
        self._entries: dict[Hashable, tuple[Answer, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now: float) -> tuple[Answer, float] | None:
        """The answer and its age in seconds; None if a record of it has expired."""
        found = self._entries.pop(key, None)
        if found is None:
            return None
        answer, since = found
        age = now - since
        if age >= answer.ttl:
            return None
        self._entries[key] = found
        return answer, age

    def put(self, key: Hashable, answer: Answer, now: float) -> None:
        """Store an answer that was received at ``now``, unless its time to live is 0."""
        if answer.ttl <= 0 or len(answer.body) > _LARGEST:
            return
        self._entries.pop(key, None)
        if len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (answer, now)
