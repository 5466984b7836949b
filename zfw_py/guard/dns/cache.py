# SPDX-License-Identifier: GPL-2.0-only
"""Answers kept for as long as they live, the least recently asked for going first. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfw_py.guard.dns.answers import Answer
    from zfw_py.guard.dns.questions import Key

MOST = 4096
# So that all of it is 64 MB at the very most; usual answers have some hundred bytes.
_LARGEST = 16_384


class Cache:
    """Answers by what a question has to have in common with the one that they were for."""

    def __init__(self, most: int = MOST) -> None:
        """Keep that many, and none at all that is larger than 16 KiB."""
        self._most = most
        # In the order in which they were asked for, the latest last.
        self._kept: dict[Key, tuple[Answer, float]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, now: float) -> tuple[Answer, float] | None:
        """The answer and its age in seconds, as long as all of its records live."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        answer, since = found
        age = now - since
        if age >= answer.ttl:
            return None
        self._kept[key] = found
        return answer, age

    def put(self, key: Key, answer: Answer, now: float) -> None:
        """Keep an answer that was given just now, unless it lives for this moment only."""
        if answer.ttl <= 0 or len(answer.body) > _LARGEST:
            return
        self._kept.pop(key, None)
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (answer, now)
