# SPDX-License-Identifier: GPL-2.0-only
"""Reads the records of DNS messages that a stranger wrote. Pure.

``dns.message.from_wire`` keeps, for as long as the process runs, one entry for each class and type
that it meets, and takes another class's type for ours. A stranger writes both. So records are read
here: only those that the proxy uses, only of class IN, and with the types of a fixed table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dns.exception import ExceptionWrapper, FormError
from dns.message import MessageSection, QueryMessage
from dns.rdata import GenericRdata, get_rdata_class
from dns.rdataclass import IN
from dns.rdatatype import (
    AAAA,
    AFSDB,
    CNAME,
    DNAME,
    HINFO,
    HTTPS,
    KX,
    MX,
    NAPTR,
    NS,
    NSEC,
    NSEC3,
    OPT,
    PTR,
    PX,
    RP,
    RRSIG,
    RT,
    SOA,
    SRV,
    SVCB,
    A,
    RdataType,
)
from dns.rdtypes.ANY.OPT import OPT as OptRecord
from dns.rrset import from_rdata
from dns.wire import Parser

if TYPE_CHECKING:
    from typing import Any

    from dns.message import Message
    from dns.name import Name
    from dns.rrset import RRset

HEADER = 12
# Types that the proxy reads, and those whose names may be compressed (RFC 3597, section 4). All
# others are copied as they are, as that RFC asks of a resolver. dnspython loads a module for each.
_CLASSES: dict[int, Any] = {
    rdtype: get_rdata_class(IN, rdtype)  # type: ignore[no-untyped-call]
    for rdtype in (
        *(A, AAAA, CNAME, DNAME, HINFO, HTTPS, NSEC, NSEC3, RRSIG, SOA, SVCB),
        *(AFSDB, KX, MX, NAPTR, NS, PTR, PX, RP, RT, SRV),
    )
}
_ANSWER, _AUTHORITY, _ADDITIONAL = (
    int(MessageSection.ANSWER),
    int(MessageSection.AUTHORITY),
    int(MessageSection.ADDITIONAL),
)
# Beside the type in the question.
_WANTED: dict[int, frozenset[int]] = {
    _ANSWER: frozenset({CNAME, DNAME, RRSIG}),
    _AUTHORITY: frozenset({SOA, NSEC, NSEC3, RRSIG}),
}
_MOST_TTL = 0x7FFFFFFF
# QR, AA, TC, RD, RA, AD, CD and the rcode: few values, because dnspython keeps each one.
_FLAGS = 0x87BF


def read_opt(parser: Parser) -> RRset:
    """Read the record at the parser's place: an OPT record. Raises DNSException: FormError."""
    with ExceptionWrapper(FormError):  # type: ignore[no-untyped-call]
        name = parser.get_name()
        rdtype, payload, ttl, length = parser.get_struct("!HHIH")
        if rdtype != OPT:
            raise FormError
        return _opt(parser, name, payload, ttl, length)


def _opt(parser: Parser, name: Name, payload: int, ttl: int, length: int) -> RRset:
    """The OPT record whose data is at the parser's place (RFC 6891, section 6.1.2)."""
    if len(name.labels) != 1:
        raise FormError
    with parser.restrict_to(length):
        data = OptRecord.from_wire_parser(payload, OPT, parser)  # type: ignore[no-untyped-call]
        return from_rdata(name, ttl, data)


def read_reply(received: bytes, rdtype: int) -> Message:
    """Read a reply to a query for records of a type, with at most one question.

    The message has the header, the OPT record, and the records of class IN that may belong to the
    answer; all others are skipped unread. Raises DNSException: FormError, BadPointer and others.
    """
    with ExceptionWrapper(FormError):  # type: ignore[no-untyped-call]
        parser = Parser(received)
        identifier, flags, *counts = parser.get_struct("!HHHHHH")
        message = QueryMessage(id=identifier)
        message.flags = flags & _FLAGS
        for _ in range(counts[0]):
            parser.get_name(decompress=True)
            parser.get_bytes(4)
        for section in (_ANSWER, _AUTHORITY, _ADDITIONAL):
            for _ in range(counts[section]):
                _read_record(parser, message, section, rdtype)
        if parser.remaining():
            raise FormError
    return message


def _read_record(parser: Parser, message: Message, section: int, asked: int) -> None:
    name = parser.get_name(decompress=True)
    rdtype, rdclass, ttl, length = parser.get_struct("!HHIH")
    if rdtype == OPT:
        if section != _ADDITIONAL or message.opt is not None:
            raise FormError
        message.opt = _opt(parser, name, rdclass, ttl, length)
        return
    wanted = _WANTED.get(section, ())
    if rdclass == IN and (rdtype in wanted or (section == _ANSWER and rdtype == asked)):
        kind = RdataType.make(rdtype)
        with parser.restrict_to(length):
            rdata = _CLASSES.get(rdtype, GenericRdata).from_wire_parser(IN, kind, parser)
        rrset = message.find_rrset(section, name, IN, kind, rdata.covers(), create=True)
        rrset.add(rdata, ttl if ttl <= _MOST_TTL else 0)
    else:
        parser.get_bytes(length)
