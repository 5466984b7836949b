# SPDX-License-Identifier: GPL-2.0-only
"""Reads the queries of clients and builds the queries to upstream servers. Pure.

A client's message may be hostile. It is read as one question and at most an OPT record, and no byte
of it is used unread.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from dns.exception import DNSException, FormError
from dns.flags import AD, CD, DO, QR, RD
from dns.opcode import QUERY
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTIMP, REFUSED
from dns.rdataclass import IN
from dns.rdatatype import ANY, OPT, RdataType
from dns.wire import Parser

from zfw_py.guard.dns import edns
from zfw_py.guard.dns.wire import HEADER, read_opt

if TYPE_CHECKING:
    from dns.name import Name
    from dns.rcode import Rcode
    from dns.rrset import RRset

_OPCODE = 0x7800
_RESPONSE, _COPIED, _DNSSEC = int(QR), int(RD | AD | CD), int(DO)
_VERSION = 0x00FF0000  # in the time to live of an OPT record
# Ten times the longest name: no legitimate query is longer, and the cache can hold such messages.
LARGEST = 4096
# Half a megabyte of usual queries, 16 MB of the largest ones.
_CACHED = 4096
# The payload size without EDNS, and the least with it (RFC 1035, 6891). Above the largest one,
# networks lose datagrams.
_SMALLEST_PAYLOAD, _LARGEST_PAYLOAD = 512, 4096
# RFC 6895: types that occur in queries only. ANY is answered; the others are for zone transfers,
# signatures of messages and obsolete mail records.
_META_TYPES = frozenset({0, OPT, *range(128, 256)}) - {ANY}

# Queries with the same key have the same answer.
Key = tuple[bytes, int, int, bool, bytes]


class Question(NamedTuple):
    """The question of a query.

    ``wire``: the question section as the client sent it. ``flags``: RD, AD and CD. ``payload``:
    the most bytes of a datagram to the client. ``text``: the name for the policy, in lower case,
    without the last dot, escaped as in zone files. ``options``: the EDNS options to forward.
    ``fault``: the rcode of the answer if the query is not supported, else NOERROR.
    """

    name: Name
    text: str
    rdtype: RdataType
    wire: bytes
    flags: int
    is_edns: bool
    is_dnssec: bool
    payload: int
    options: bytes
    fault: Rcode
    key: Key


class Unreadable(NamedTuple):
    """A message that is no query. ``answer``: the reply without its id; empty: send none."""

    answer: bytes


_SILENCE = Unreadable(b"")


@lru_cache(maxsize=_CACHED)
def read_question(message: bytes) -> Question | Unreadable:
    """Read a message without its id, which is the first two bytes; results are cached.

    A message that is itself an answer gets no reply: two proxies would reply to each other forever.
    """
    if len(message) < 10:
        return _SILENCE
    flags, questions, answers, authorities, additional = unpack_from("!HHHHH", message)
    if flags & _RESPONSE:
        return _SILENCE
    if flags & _OPCODE != QUERY:
        return _unreadable(flags, NOTIMP)
    # One question and at most an OPT record. The proxy has no key to check a signature.
    if (questions, answers, authorities) != (1, 0, 0) or additional > 1 or len(message) > LARGEST:
        return _unreadable(flags, FORMERR)
    try:
        name, rdtype, rdclass, opt = _read_question(b"\0\0" + message, additional)
    except DNSException:
        return _unreadable(flags, FORMERR)

    fault = NOERROR
    edns_flags = 0 if opt is None else opt.ttl
    if edns_flags & _VERSION:
        fault = BADVERS
    elif rdclass != IN or rdtype in _META_TYPES:
        fault = REFUSED
    name_wire = name.to_wire() or b""
    copied = flags & _COPIED
    is_dnssec = bool(edns_flags & _DNSSEC)
    options = b"" if opt is None else edns.query_options(opt[0].options)
    payload = 0 if opt is None else int(opt[0].payload)
    return Question(
        name=name,
        text=text_of(name),
        rdtype=rdtype,
        wire=name_wire + pack("!HH", rdtype, rdclass),
        flags=copied,
        is_edns=opt is not None,
        is_dnssec=is_dnssec,
        payload=min(max(payload, _SMALLEST_PAYLOAD), _LARGEST_PAYLOAD),
        options=options,
        fault=fault,
        key=(name_wire.lower(), rdtype, copied, is_dnssec, options),
    )


def _read_question(message: bytes, additional: int) -> tuple[Name, RdataType, int, RRset | None]:
    """Name, type and class in a message's one question, and its OPT record.

    Raises DNSException, also for another additional record and for bytes after the last record.
    """
    parser = Parser(message, HEADER)
    name = parser.get_name()
    rdtype, rdclass = parser.get_struct("!HH")
    opt = read_opt(parser) if additional else None
    if parser.remaining():
        raise FormError
    return name, RdataType.make(rdtype), rdclass, opt


def text_of(name: Name) -> str:
    """A name in the form of the policy: ``www.example.com``; the root is ``.``."""
    return name.to_text(omit_final_dot=True).lower()


def has_hidden_dot(name: Name) -> bool:
    r"""Whether a label contains a dot: ``a\.example.com`` is below example.com as text only."""
    return any(b"." in label for label in name.labels)


def query(name: Name, question: Question, *, is_edns: bool = True) -> bytes:
    """The query to an upstream server for this name, without its id."""
    head = pack("!HHHHH", question.flags, 1, 0, 0, is_edns)
    opt = edns.opt_record(question.options, is_dnssec=question.is_dnssec) if is_edns else b""
    return head + (name.to_wire() or b"") + question.wire[-4:] + opt


def _unreadable(flags: int, rcode: int) -> Unreadable:
    return Unreadable(pack("!HHHHH", QR | (flags & (_OPCODE | RD)) | rcode, 0, 0, 0, 0))
