# SPDX-License-Identifier: GPL-2.0-only
"""DNS messages as a program without a resolver sends and reads them."""

from __future__ import annotations

import socket
from struct import pack

import dns.message
import dns.rdatatype


def question(name: str, rdtype: str = "A", *, id: int = 0x1234) -> bytes:
    """A query on the wire."""
    return dns.message.make_query(name, rdtype, id=id).to_wire()


def addresses_in(answer: bytes) -> list[str]:
    """The addresses in an answer on the wire, sorted."""
    return sorted(
        record.address
        for rrset in dns.message.from_wire(answer).answer
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for record in rrset
    )


def ask_over_tcp(s: socket.socket, query: bytes) -> bytes:
    """Send a query on a connection; its answer (RFC 7766)."""
    s.sendall(pack("!H", len(query)) + query)
    with s.makefile("rb") as file:
        return file.read(int.from_bytes(file.read(2)))
