# SPDX-License-Identifier: GPL-2.0-only
"""The records that ``zfw docker-dns watch`` emits: queries, and changes of the redirect."""

from __future__ import annotations

import time
from socket import AF_INET, IPPROTO_TCP, inet_ntop
from typing import TYPE_CHECKING, Literal, NamedTuple

from dns.name import from_wire

from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from zfw_py.docker_dns.codec import Event

_NANOSECONDS = 1_000_000_000

Kind = Literal[
    "redirected", "ended", "absent", "failed", "broken", "renamed", "lost", "back", "removed"
]


class Query(NamedTuple):
    """A query, or the begin of a TCP connection to the resolver.

    ``time``: seconds since 1970. ``id``: the redirect's. ``protocol``: "udp" or "tcp".
    ``resolver`` has the port to which NAT changed port 53. ``server``, and ``port``, the source
    port on the uplink, are None if the query was not sent there. ``name``: of the first
    question, in the master file format (RFC 1035, section 5.1); None if none could be read.
    ``outcome``: of the layout's OUTCOMES.
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
    """A change of the container, its redirect or the engine. ``id``: the redirect's, or ""."""

    time: float
    container: str
    id: str
    kind: Kind
    text: str


class Reader:
    """Converts the events of one redirect to records."""

    def __init__(self, container: str, identifier: str) -> None:
        self._container = container
        self._id = identifier
        self._offset = time.time() - time.monotonic()

    def of_event(self, event: Event) -> Query:
        """The record of an event that the program ``query`` wrote."""
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
    """The name as text, without a last dot; the root is "."."""
    name, _ = from_wire(wire_name + b"\0", 0)
    return name.to_text(omit_final_dot=True)
