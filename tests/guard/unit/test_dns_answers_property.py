# SPDX-License-Identifier: GPL-2.0-only
"""Whatever arrives, the guard's proxy reads it or says that it cannot, and writes what is right."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
from hypothesis import example, given
from hypothesis import strategies as st

from zfw_py.guard.dns.answers import BadAnswer, Chain, message
from zfw_py.guard.dns.questions import Question, Unreadable, query, read_question
from zfw_py.guard.dns.upstream import is_reply
from zfw_py.guard.dns.wire import read_reply

labels = st.binary(min_size=1, max_size=20)
names = st.lists(labels, max_size=6).map(lambda found: dns.name.Name([*found, b""]))
QUERY = dns.message.make_query("www.example.test.", "A", use_edns=0, want_dnssec=True, id=1)
FEW = ["a.", "b.test.", "c.b.test.", "www.test.", "\\000.test."]


def damaged(wire: bytes) -> st.SearchStrategy[bytes]:
    """The message with some bytes changed, and perhaps cut."""
    changes = st.lists(st.tuples(st.integers(0, len(wire) - 1), st.integers(0, 255)), max_size=6)

    def change(found: tuple[list[tuple[int, int]], int]) -> bytes:
        made = bytearray(wire)
        for at, value in found[0]:
            made[at] = value
        return bytes(made[: found[1]])

    return st.tuples(changes, st.integers(0, len(wire))).map(change)


@st.composite
def responses(draw: st.DrawFn) -> tuple[Question, bytes]:
    """A question, and a message that has something to do with it."""
    few = st.sampled_from(FEW)
    rdtype = draw(st.sampled_from(["A", "AAAA", "CNAME", "TXT", "HTTPS", "RRSIG"]))
    asked = dns.message.make_query(draw(few), rdtype, want_dnssec=draw(st.booleans()))
    data = {
        "A": st.just("192.0.2.1"),
        "AAAA": st.just("2001:db8::1"),
        "TXT": st.just("text"),
        "HTTPS": few.map(lambda name: f"1 {name} ipv4hint=192.0.2.2"),
        "CNAME": few,
        "DNAME": few,
        "SOA": few.map(lambda name: f"{name} {name} 1 2 3 4 5"),
        "NSEC": few.map(lambda name: f"{name} A RRSIG"),
        "RRSIG": few.map(lambda name: f"A 8 2 60 20300101000000 20200101000000 1 {name} AAAA"),
    }
    made = dns.message.make_response(asked)
    for section in (made.answer, made.authority, made.additional):
        for _ in range(draw(st.integers(0, 6))):
            kind = draw(st.sampled_from(sorted(data)))
            ttl = draw(st.sampled_from([0, 1, 60, 2**31 - 1]))
            section.append(dns.rrset.from_text(draw(few), ttl, "IN", kind, draw(data[kind])))
    made.set_rcode(draw(st.sampled_from([dns.rcode.NOERROR, dns.rcode.NXDOMAIN])))
    question = read_question(asked.to_wire()[2:])
    assert isinstance(question, Question)
    return question, made.to_wire(max_size=65535)


@given(st.one_of(st.binary(max_size=100), damaged(QUERY.to_wire())))
@example(QUERY.to_wire())
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x04\0\1\0\1")  # a name in the header
def test_whatever_comes_is_a_question_or_not(wire: bytes) -> None:
    found = read_question(wire[2:])
    if isinstance(found, Unreadable):
        if found.answer:
            told = dns.message.from_wire(wire[:2] + found.answer)
            assert told.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP)
            assert told.flags & dns.flags.QR
    else:
        sent = dns.message.from_wire(b"\0\0" + query(found.name, found))
        assert sent.question[0].name == found.name
        assert found.wire[-4:] == sent.to_wire()[12:][len(found.wire) - 4 : len(found.wire)]


@given(names)
def test_a_name_is_sent_as_it_came(name: dns.name.Name) -> None:
    asked = dns.message.make_query(name, "A")
    found = read_question(asked.to_wire()[2:])
    assert isinstance(found, Question)
    sent = b"\0\0" + query(found.name, found)
    assert dns.message.from_wire(sent).question[0].name.labels == name.labels
    assert found.text == name.to_text(omit_final_dot=True).lower()
    assert found.text.isascii()
    assert found.text.isprintable()


@given(responses(), st.sampled_from([512, 65535]), st.integers(0, 100))
def test_what_is_handed_out_belongs_to_the_question(
    made: tuple[Question, bytes], most: int, age: int
) -> None:
    question, wire = made
    chain = Chain(question)
    received = read_reply(wire, question.rdtype)
    try:
        left_out = chain.follow(received)
    except BadAnswer:
        return
    if left_out is not None:
        assert left_out != question.name
        return
    answer = chain.answer()
    out = dns.message.from_wire(wire[:2] + message(answer, question, most, age))
    assert out.question == dns.message.from_wire(wire, question_only=True).question
    assert out.rcode() == received.rcode()
    assert out.additional == []
    given_out = {question.name}
    for rrset in out.answer:
        assert rrset in received.answer
        given_out |= {rdata.target for rdata in rrset if rrset.rdtype.name == "CNAME"}
        if rrset.rdtype.name not in ("DNAME", "RRSIG"):
            assert rrset.name in given_out
        assert rrset.rdtype in (question.rdtype, 5, 39, 46)
        original = received.find_rrset(
            received.answer, rrset.name, rrset.rdclass, rrset.rdtype, rrset.covers
        )
        assert rrset.ttl == max(min(original.ttl, 86_400) - age, 0)
    for rrset in out.authority:
        assert rrset in received.authority
        assert rrset.rdtype.name in ("SOA", "NSEC", "RRSIG")
    assert answer.ttl <= min((ttl for _, ttl, _ in answer.records), default=0)


@given(st.one_of(st.binary(max_size=60), damaged(dns.message.make_response(QUERY).to_wire())))
def test_whatever_comes_from_upstream_is_an_answer_or_not(wire: bytes) -> None:
    """And one with another question never is."""
    if is_reply(QUERY.to_wire(), wire) and wire[4:6] != b"\0\0":
        end = 12 + len("?www?example?test?") + 4
        assert wire[:2] == QUERY.to_wire()[:2]
        assert wire[12:end].lower() == QUERY.to_wire()[12:end].lower()


@st.composite
def damaged_responses(draw: st.DrawFn) -> tuple[Question, bytes]:
    """A question, and a response to it with some bytes changed."""
    question, wire = draw(responses())
    return question, draw(damaged(wire))


@given(damaged_responses())
def test_whatever_is_in_a_reply_it_is_read_or_malformed(made: tuple[Question, bytes]) -> None:
    """No other exception, and what is read can be rendered or is refused."""
    question, wire = made
    try:
        received = read_reply(wire, question.rdtype)
    except dns.exception.DNSException:
        return
    chain = Chain(question)
    try:
        if chain.follow(received) is None:
            message(chain.answer(), question, 65535)
    except BadAnswer:
        pass
