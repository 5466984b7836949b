# SPDX-License-Identifier: GPL-2.0-only
"""What a watch tells: queries, and what happens to the container and its redirect."""

from __future__ import annotations

import time
from socket import AF_INET, IPPROTO_TCP, inet_ntop
from typing import TYPE_CHECKING, Literal, NamedTuple

from dns.name import from_wire

from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from zfw_py.docker_dns.codec import Event

_NANOSECONDS = 1_000_000_000

Kind = Literal["redirected", "ended", "absent", "failed", "broken", "lost", "back", "removed"]


class Query(NamedTuple):
    """A query, or a connection that begins, and what became of it. ``time``: seconds since 1970.

    ``resolver`` has the port that NAT put there. ``server`` and ``port``, its source's on
    the uplink, are None where it did not go there. ``name`` is that of the first question,
    in the master file format; None where there is none to read. ``id`` is the redirect's.
    """

    time: float
    container: str
    id: str
    protocol: str
    source: Endpoint
    resolver: Endpoint
    server: Endpoint | None
    port: int | None
    name: str | None
    message_id: int | None
    outcome: str


class Change(NamedTuple):
    """What happened. ``id``: of the redirect that is or was, or ""."""

    time: float
    container: str
    id: str
    kind: Kind
    words: str


def change(container: str, identifier: str, kind: Kind, words: str) -> Change:
    """One that happens now."""
    return Change(time.time(), container, identifier, kind, words)


class Reader:
    """Makes records of a redirect's events."""

    def __init__(self, container: str, identifier: str) -> None:
        self._container = container
        self._id = identifier
        self._offset = time.time() - time.monotonic()

    def of_event(self, event: Event) -> Query:
        """What the program on lo did."""
        is_sent = event.port != 0
        has_name = event.wire_name is not None
        return Query(
            time=self._offset + event.time / _NANOSECONDS,
            container=self._container,
            id=self._id,
            protocol="tcp" if event.protocol == IPPROTO_TCP else "udp",
            source=_endpoint(event.source),
            resolver=_endpoint(event.destination),
            server=_endpoint(event.server) if is_sent else None,
            port=event.port if is_sent else None,
            name=_text(event.wire_name) if event.wire_name is not None else None,
            message_id=event.message_id if has_name else None,
            outcome=event.outcome,
        )


def _endpoint(end: tuple[bytes, int]) -> Endpoint:
    return Endpoint(inet_ntop(AF_INET, end[0]), end[1])


def _text(wire_name: bytes) -> str:
    """Without the root's dot at the end, unless it is the root."""
    name, _ = from_wire(wire_name + b"\0", 0)
    return name.to_text(omit_final_dot=True)
