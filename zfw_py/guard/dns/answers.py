# SPDX-License-Identifier: GPL-2.0-only
"""Builds answers from upstream's messages, and renders them for each client. Pure.

1. ``Chain`` takes the records that belong to the question from upstream's messages. All other
   records are dropped.
2. ``Answer`` holds them, rendered to bytes once, for the cache.
3. ``message`` copies the bytes for one client: with its id, its payload size, and the times to live
   that are left.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_pton
from struct import pack, pack_into
from typing import TYPE_CHECKING, Any, NamedTuple

from dns.exception import TooBig
from dns.flags import AD, CD, QR, RA, RD, TC
from dns.message import Message, MessageSection
from dns.rcode import NOERROR
from dns.rdataclass import IN
from dns.rdatatype import (
    AAAA,
    CNAME,
    DNAME,
    HINFO,
    HTTPS,
    NONE,
    NSEC,
    NSEC3,
    RRSIG,
    SOA,
    SVCB,
    A,
)
from dns.rdtypes.svcbbase import ParamKey
from dns.rrset import RRset, from_text

from zfw_py.guard.dns import edns
from zfw_py.guard.dns.questions import text_of
from zfw_py.guard.dns.wire import HEADER
from zfw_py.values.prefix import IPV4_MAPPED

if TYPE_CHECKING:
    from dns.name import Name
    from dns.rcode import Rcode
    from dns.rdatatype import RdataType

    from zfw_py.guard.dns.questions import Question

LARGEST = 65535
_ANSWER, _AUTHORITY = MessageSection.ANSWER, MessageSection.AUTHORITY
# Plain numbers: arithmetic with dnspython's flags costs more than the rest of a message.
_ANSWERED, _COPIED, _RECURSIVE = int(QR | RA), int(RD | CD), int(RD)
_AUTHENTIC, _TRUNCATED = int(AD), int(TC)
# Names in a chain; the longest real chains have about ten.
MOST_NAMES = 16
# RFC 8767 allows a week; RFC 2308 suggests one to three hours for names without a record.
MOST_TTL = 86_400
_MOST_NEGATIVE_TTL = 10_800
_RFC8482_TTL = 3_600


class BadAnswer(Exception):
    """Upstream's answer is unusable: a loop, records of a name that does not exist, too large."""


class Record(NamedTuple):
    """Offsets in an answer's body: of a record's time to live (4 bytes), and of its end."""

    ttl_at: int
    ttl: int
    end: int


class Answer(NamedTuple):
    """An answer, without header, question and OPT record.

    ``body``: ``answers`` records of the answer section, then those of the authority section. Its
    compressed names point into a question section of the same length as the original one.
    ``names``: the names that the question's name leads to. ``addresses``: those in the records, 16
    bytes each, IPv4 as ``::ffff:a.b.c.d``, valid for ``address_ttl`` seconds. The answer may be
    cached for ``ttl`` seconds.
    """

    rcode: Rcode
    options: bytes = b""
    is_authentic: bool = False
    body: bytes = b""
    records: tuple[Record, ...] = ()
    answers: int = 0
    names: tuple[str, ...] = ()
    addresses: tuple[bytes, ...] = ()
    address_ttl: int = 0
    ttl: int = 0


def message(answer: Answer, question: Question, most: int, age: int = 0) -> bytes:
    """The message for an answer that is ``age`` seconds old, without the id (two bytes).

    It has at most ``most`` bytes. A longer one is cut between two records, with TC set: some
    clients never ask over TCP, and use the addresses that fit.
    """
    opt = b""
    if question.is_edns:
        opt = edns.opt_record(answer.options, rcode=answer.rcode, is_dnssec=question.is_dnssec)
    flags = _ANSWERED | (question.flags & _COPIED) | (int(answer.rcode) & 15)
    if answer.is_authentic and (question.is_dnssec or question.flags & _AUTHENTIC):
        flags |= _AUTHENTIC
    body: bytes | bytearray = answer.body
    records = answer.records
    room = most - HEADER - len(question.wire) - len(opt)
    if len(body) > room:
        flags |= _TRUNCATED
        records = tuple(record for record in records if record.end <= room)
        body = body[: records[-1].end] if records else b""
    if age > 0 and records:
        body = bytearray(body)
        for ttl_at, ttl, _ in records:
            pack_into("!I", body, ttl_at, max(ttl - age, 0))
    answers = min(answer.answers, len(records))
    counts = pack("!HHHHH", flags, 1, answers, len(records) - answers, question.is_edns)
    return b"".join((counts, question.wire, body, opt))


def error(rcode: Rcode, extended: int | None = None, text: str = "") -> Answer:
    """An error, with an extended error (RFC 8914) for clients that know EDNS."""
    return Answer(rcode, b"" if extended is None else edns.extended_error(extended, text))


def any_answer(question: Question) -> Answer:
    """The answer to a query for ANY: one HINFO record (RFC 8482)."""
    rrset = from_text(question.name, _RFC8482_TTL, IN, HINFO, '"RFC8482" ""')
    return _render(Answer(NOERROR, answers=1), question, [rrset], [])


class Chain:
    """Follows the CNAME records from the question's name to the records asked for.

    Upstream may leave out the end of a chain. The caller then asks it for the last name, and calls
    ``follow`` with the next message.
    """

    def __init__(self, question: Question) -> None:
        """Start at the question's name."""
        self._question = question
        self._name = question.name
        self._seen = {question.name}
        self._names: list[str] = []
        self._answer: list[RRset] = []
        self._authority: list[RRset] = []
        self._wanted: list[RRset] = []
        self._rcode = NOERROR
        self._is_authentic = True
        self._ttl = MOST_TTL
        self._options = b""

    def follow(self, message: Message) -> Name | None:
        """Take the records of the chain from a message; the name to ask for next, or None.

        None: the chain is complete. The message must be a reply to the query for the last name.
        Raises BadAnswer.
        """
        self._rcode = message.rcode()
        self._is_authentic &= bool(int(message.flags) & _AUTHENTIC)
        self._options = edns.answer_options(message.options)
        start = self._name
        while not self._take_wanted(message):
            cname = self._find(message, _ANSWER, self._name, CNAME)
            if cname is None:
                if self._is_left_out(message, start):
                    self._take_proofs(message)
                    return self._name
                self._take_negative(message)
                break
            self._take_dname(message)
            self._take(message, _ANSWER, cname)
            self._go_to(cname[0].target)
        if self._wanted and self._rcode != NOERROR:
            raise BadAnswer("records of a name that does not exist")
        self._take_proofs(message)
        return None

    def answer(self) -> Answer:
        """The answer, once ``follow`` has returned None. Raises BadAnswer if it is too large."""
        addresses: dict[bytes, None] = {}
        for rrset in self._wanted:
            for rdata in rrset:
                addresses.update(dict.fromkeys(_addresses(rdata)))
                # The target of a service is checked against the policy like a name of the chain.
                if rrset.rdtype in (HTTPS, SVCB) and rdata.target.labels != (b"",):
                    self._names.append(text_of(rdata.target))
        answer = Answer(
            rcode=self._rcode,
            options=self._options,
            is_authentic=self._is_authentic,
            answers=sum(len(rrset) for rrset in self._answer),
            names=tuple(self._names),
            addresses=tuple(addresses),
            address_ttl=min((rrset.ttl for rrset in self._wanted), default=0),
            ttl=min((rrset.ttl for rrset in self._answer + self._authority), default=0),
        )
        if not self._wanted:
            answer = answer._replace(ttl=min(answer.ttl, self._ttl))
        try:
            return _render(answer, self._question, self._answer, self._authority)
        except TooBig:
            raise BadAnswer("more than a message holds") from None

    def _go_to(self, name: Name) -> None:
        if name in self._seen or len(self._seen) == MOST_NAMES:
            raise BadAnswer("a chain of names that is a loop or too long")
        self._seen.add(name)
        self._name = name
        self._names.append(text_of(name))

    def _is_left_out(self, message: Message, start: Name) -> bool:
        """Whether the chain has reached a name that this message has no record of."""
        return (
            self._name != start
            and self._rcode == NOERROR
            and bool(self._question.flags & _RECURSIVE)
            and self._soa(message) is None
        )

    def _take_wanted(self, message: Message) -> bool:
        rdtype = self._question.rdtype
        if rdtype == RRSIG:  # one set for each type that is signed
            found = [
                rrset
                for rrset in message.answer
                if rrset.rdtype == RRSIG and rrset.name == self._name
            ]
        else:
            one = self._find(message, _ANSWER, self._name, rdtype)
            found = [] if one is None else [one]
        for rrset in found:
            self._take(message, _ANSWER, rrset)
        self._wanted = found
        return bool(found)

    def _take_dname(self, message: Message) -> None:
        """Take the DNAME record that the CNAME record of this name was synthesised from, if any."""
        for rrset in message.answer:
            if rrset.rdtype == DNAME and rrset not in self._answer:
                owner = rrset.name
                if owner != self._name and self._name.is_subdomain(owner):
                    self._take(message, _ANSWER, rrset)

    def _take_negative(self, message: Message) -> None:
        """Take the SOA record, which limits the time to live (RFC 2308); without one it is 0."""
        soa = self._soa(message)
        if soa is None:
            self._ttl = 0
        else:
            minimum = soa[0].minimum
            self._ttl = min(minimum, _MOST_NEGATIVE_TTL)
            self._take(message, _AUTHORITY, soa)

    def _take_proofs(self, message: Message) -> None:
        """Take the NSEC and NSEC3 records: proofs that a name, or a closer one, does not exist."""
        if self._question.is_dnssec:
            for rrset in message.authority:
                if rrset.rdtype in (NSEC, NSEC3) and rrset not in self._authority:
                    self._take(message, _AUTHORITY, rrset)

    def _soa(self, message: Message) -> RRset | None:
        for rrset in message.authority:
            if rrset.rdtype == SOA and self._name.is_subdomain(rrset.name):
                return rrset
        return None

    def _take(self, message: Message, section: int, rrset: RRset) -> None:
        """Take a record set, and its signatures if the client wants DNSSEC."""
        taken = [rrset]
        if self._question.is_dnssec and rrset.rdtype != RRSIG:
            signatures = self._find(message, section, rrset.name, RRSIG, rrset.rdtype)
            if signatures is not None:
                taken.append(signatures)
        for each in taken:
            each.ttl = min(each.ttl, MOST_TTL)
        (self._answer if section == _ANSWER else self._authority).extend(taken)

    @staticmethod
    def _find(
        message: Message, section: int, name: Name, rdtype: RdataType, covers: RdataType = NONE
    ) -> RRset | None:
        return message.get_rrset(section, name, IN, rdtype, covers)


def _addresses(rdata: Any) -> list[bytes]:
    """The addresses in a record (16 bytes each), those of hints included."""
    if rdata.rdtype == A:
        return [IPV4_MAPPED + inet_pton(AF_INET, rdata.address)]
    if rdata.rdtype == AAAA:
        return [inet_pton(AF_INET6, rdata.address)]
    found = []
    if rdata.rdtype in (HTTPS, SVCB):
        if hint := rdata.params.get(ParamKey.IPV4HINT):
            found += [IPV4_MAPPED + inet_pton(AF_INET, address) for address in hint.addresses]
        if hint := rdata.params.get(ParamKey.IPV6HINT):
            found += [inet_pton(AF_INET6, address) for address in hint.addresses]
    return found


def _render(
    answer: Answer, question: Question, records: list[RRset], authority: list[RRset]
) -> Answer:
    """Add the rendered body. Its names may be compressed by pointers into the question section."""
    rendered = Message(id=0)
    rendered.question.append(RRset(question.name, IN, question.rdtype))
    rendered.answer = records
    rendered.authority = authority
    wire = rendered.to_wire(max_size=LARGEST, want_shuffle=False)
    body = wire[HEADER + len(question.wire) :]
    return answer._replace(body=body, records=tuple(_records(body)))


def _records(body: bytes) -> list[Record]:
    """The offsets of the records in a body that ``_render`` has rendered."""
    found = []
    at = 0
    while at < len(body):
        while 0 < body[at] < 0xC0:  # labels; then the root's, or a pointer
            at += 1 + body[at]
        ttl_at = at + (1 if body[at] == 0 else 2) + 4
        ttl = int.from_bytes(body[ttl_at : ttl_at + 4])
        at = ttl_at + 6 + int.from_bytes(body[ttl_at + 4 : ttl_at + 6])
        found.append(Record(ttl_at, ttl, at))
    return found
