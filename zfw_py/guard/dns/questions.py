# SPDX-License-Identifier: GPL-2.0-only
"""What a client asked: messages read, and those that ask nothing told apart. Pure.

A question is hostile until it was read, and read by dnspython.
"""

from __future__ import annotations

from functools import lru_cache
from struct import pack, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from dns.exception import DNSException
from dns.flags import AD, CD, DO, QR, RD
from dns.message import from_wire
from dns.opcode import QUERY
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTIMP, REFUSED
from dns.rdataclass import IN
from dns.rdatatype import ANY, OPT

from zfw_py.guard.dns import edns

if TYPE_CHECKING:
    from dns.name import Name
    from dns.rcode import Rcode
    from dns.rdatatype import RdataType

_OPCODE = 0x7800
_RESPONSE, _KEPT, _DNSSEC = int(QR), int(RD | AD | CD), int(DO)
# A whole name, ten times over: no question is longer, and one of them is no burden to remember.
LARGEST = 4096
# Half a million bytes of what clients usually ask, 16 MB of the largest questions.
_REMEMBERED = 4096
# Without EDNS, and with it at least (RFC 1035, 6891); with it at most, or networks lose datagrams.
_SMALLEST_PAYLOAD, _LARGEST_PAYLOAD = 512, 4096
# RFC 6895: types that are of questions only. ANY is answered, the others are for zone transfers,
# signatures of messages and what mail was once.
_META_TYPES = frozenset({0, OPT, *range(128, 256)}) - {ANY}

# Of two questions with the same key one answer serves both.
Key = tuple[bytes, int, int, bool, bytes]


class Question(NamedTuple):
    """A question. ``wire`` is its section as it was asked, ``flags`` are RD, AD and CD.

    ``payload`` is what a datagram to the client may have.

    ``text`` is the name for the policy: lower case, without the last dot, escaped as in zone
    files. ``options`` go on to whoever answers. ``fault`` is the rcode for what nobody is asked.
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
    """Not a question. ``answer`` is the message for it, without its id; empty if there is none."""

    answer: bytes


_SILENCE = Unreadable(b"")


@lru_cache(maxsize=_REMEMBERED)
def read_question(message: bytes) -> Question | Unreadable:
    """Read a message without its id, the first two bytes: clients ask the same again and again.

    What is itself an answer gets none, or two proxies would never be done with each other.
    """
    if len(message) < 10:
        return _SILENCE
    flags, questions, answers, authorities, additional = unpack_from("!HHHHH", message)
    if flags & _RESPONSE:
        return _SILENCE
    if flags & _OPCODE != QUERY:
        return _unreadable(flags, NOTIMP)
    # One question and at most an OPT record: a signature would be for a key that we do not have.
    if (questions, answers, authorities) != (1, 0, 0) or additional > 1 or len(message) > LARGEST:
        return _unreadable(flags, FORMERR)
    try:
        read = from_wire(b"\0\0" + message, keyring=False)
    except DNSException:
        return _unreadable(flags, FORMERR)
    if additional and read.opt is None:
        return _unreadable(flags, FORMERR)

    question = read.question[0]
    name = question.name
    fault = NOERROR
    if read.edns > 0:
        fault = BADVERS
    elif question.rdclass != IN or question.rdtype in _META_TYPES:
        fault = REFUSED
    name_wire = name.to_wire() or b""
    kept = flags & _KEPT
    is_dnssec = bool(read.ednsflags & _DNSSEC)
    options = edns.asked_on(read.options)
    return Question(
        name=name,
        text=text_of(name),
        rdtype=question.rdtype,
        wire=name_wire + pack("!HH", question.rdtype, question.rdclass),
        flags=kept,
        is_edns=read.opt is not None,
        is_dnssec=is_dnssec,
        payload=min(max(read.payload, _SMALLEST_PAYLOAD), _LARGEST_PAYLOAD),
        options=options,
        fault=fault,
        key=(name_wire.lower(), question.rdtype, kept, is_dnssec, options),
    )


def text_of(name: Name) -> str:
    """A name as the policy knows names: ``www.example.com``; the root is ``.``."""
    return name.to_text(omit_final_dot=True).lower()


def has_hidden_dot(name: Name) -> bool:
    r"""Whether a label has a dot in it: ``a\.example.com`` ends in example.com as text only."""
    return any(b"." in label for label in name.labels)


def query(name: Name, question: Question, *, is_edns: bool = True) -> bytes:
    """The message, without its id, that asks an upstream server for this name's records."""
    head = pack("!HHHHH", question.flags, 1, 0, 0, is_edns)
    opt = edns.opt_record(question.options, is_dnssec=question.is_dnssec) if is_edns else b""
    return head + (name.to_wire() or b"") + question.wire[-4:] + opt


def _unreadable(flags: int, rcode: int) -> Unreadable:
    return Unreadable(pack("!HHHHH", QR | (flags & (_OPCODE | RD)) | rcode, 0, 0, 0, 0))
