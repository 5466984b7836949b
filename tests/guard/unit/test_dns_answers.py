# SPDX-License-Identifier: GPL-2.0-only
"""What the guard's proxy reads of questions, takes of answers, keeps and hands out."""

from __future__ import annotations

from itertools import pairwise
from struct import pack
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.update
import pytest

from tests.guard.support.resolving import records, response
from zfw_py.guard.dns.answers import (
    MOST_NAMES,
    Answer,
    BadAnswer,
    Chain,
    any_answer,
    error,
    message,
)
from zfw_py.guard.dns.cache import Cache
from zfw_py.guard.dns.questions import Question, Unreadable, has_hidden_dot, query, read_question
from zfw_py.guard.dns.wire import read_reply

WWW = "www.example.test."
NSEC3 = "1 0 0 - 2VPTU5TIMAMQTTGL4LUU9KG21E0AOR3S A RRSIG"


def signature(rdtype: str) -> str:
    return f"{rdtype} 8 3 60 20300101000000 20200101000000 1 example.test. AAAA"


def asked(name: str = WWW, rdtype: str = "A", **edns: Any) -> Question:
    """A question as it is read."""
    found = read_question(dns.message.make_query(name, rdtype, **edns).to_wire()[2:])
    assert isinstance(found, Question)
    return found


def unread(wire: bytes) -> dns.message.Message | None:
    """The answer to what is no question; None if there is none."""
    found = read_question(wire[2:])
    assert isinstance(found, Unreadable)
    return dns.message.from_wire(b"\0\0" + found.answer) if found.answer else None


def answered(question: Question, *contents: str, **options: Any) -> Answer:
    """What comes of answers with these contents, one after the other."""
    chain = Chain(question)
    name: dns.name.Name | None = question.name
    for content in contents:
        assert name is not None
        name = follow(chain, name, question, content, **options)
    assert name is None
    return chain.answer()


def follow(
    chain: Chain, name: dns.name.Name, question: Question, content: str, **options: Any
) -> dns.name.Name | None:
    """What the chain makes of one answer, as it is read."""
    reply = response(upstream_query(name, question), content, **options)
    wire = reply.to_wire(max_size=65535, want_shuffle=False)
    return chain.follow(read_reply(wire, question.rdtype))


def upstream_query(name: dns.name.Name, question: Question) -> dns.message.Message:
    return dns.message.from_wire(b"\0\0" + query(name, question))


def handed_out(
    answer: Answer, question: Question, most: int = 65535, age: int = 0
) -> dns.message.Message:
    """The message that a client reads."""
    wire = b"\0\0" + message(answer, question, most, age)
    assert len(wire) <= most
    return dns.message.from_wire(wire)


def lines(rrsets: list[dns.rrset.RRset]) -> list[str]:
    return [line for rrset in rrsets for line in rrset.to_text().splitlines()]


class TestQuestions:
    def test_a_question_is_read(self) -> None:
        question = asked("WwW.Example.Test.", "AAAA")
        assert question.text == "www.example.test"
        assert question.rdtype == dns.rdatatype.AAAA
        assert question.wire == b"\3WwW\7Example\4Test\0" + pack("!HH", 28, 1)
        assert (question.is_edns, question.is_dnssec, question.fault) == (False, False, 0)
        assert question.flags == dns.flags.RD

    def test_case_makes_no_other_question(self) -> None:
        assert asked("WWW.example.test.").key == asked("www.EXAMPLE.test.").key

    def test_type_and_flags_and_dnssec_do(self) -> None:
        do = asked(use_edns=0, want_dnssec=True)
        keys = {asked().key, asked(rdtype="AAAA").key, do.key, asked(flags=dns.flags.CD).key}
        assert len(keys) == 4
        # As bytes, in another case: 65 is A, 97 is a.
        assert asked(rdtype="TYPE65").key != asked(rdtype="TYPE97").key

    def test_edns_alone_does_not(self) -> None:
        assert asked(use_edns=0, payload=4096).key == asked().key

    @pytest.mark.parametrize(("payload", "taken"), [(4096, 4096), (1232, 1232), (0, 512)])
    def test_the_payload_is_at_least_512(self, payload: int, taken: int) -> None:
        assert asked(use_edns=0, payload=payload).payload == taken

    def test_the_root_and_odd_bytes_have_names(self) -> None:
        assert asked(".", "NS").text == "."
        assert asked("a\\000b\\255.test.").text == "a\\000b\\255.test"

    def test_a_dot_within_a_label_is_no_border(self) -> None:
        hidden = asked("evil\\.example.test.")
        assert hidden.text == "evil\\.example.test"
        assert has_hidden_dot(hidden.name)
        assert not has_hidden_dot(asked().name)

    @pytest.mark.parametrize("length", range(12))
    def test_less_than_a_header_gets_no_answer(self, length: int) -> None:
        assert unread(dns.message.make_query(WWW, "A").to_wire()[:length]) is None

    def test_an_answer_gets_no_answer(self) -> None:
        """Not even a broken one: two proxies would talk for ever."""
        wire = bytearray(dns.message.make_query(WWW, "A").to_wire())
        wire[2] |= 0x80
        assert unread(bytes(wire)) is None
        assert unread(bytes(wire[:14])) is None

    @pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
    def test_other_opcodes_are_not_implemented(self, opcode: int) -> None:
        query = dns.message.make_query(WWW, "A")
        query.set_opcode(opcode)  # type: ignore[arg-type]
        answer = unread(query.to_wire())
        assert answer is not None
        assert answer.rcode() == dns.rcode.NOTIMP
        assert answer.opcode() == opcode
        assert answer.flags & dns.flags.QR

    def test_an_update_is_not_implemented(self) -> None:
        update = dns.update.UpdateMessage("example.test.")
        update.add("www", 60, "A", "192.0.2.1")
        answer = unread(update.to_wire())
        assert answer is not None
        assert answer.rcode() == dns.rcode.NOTIMP

    @pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0)])
    def test_what_counts_wrong_is_malformed(self, counts: tuple[int, ...]) -> None:
        question = b"\3www\4test\0\0\1\0\1"
        record = b"\3www\4test\0\0\1\0\1\0\0\0\0\0\4\1\2\3\4"
        wire = pack("!HHHHHH", 1, 0x0100, *counts)
        wire += question * counts[0] + record * sum(counts[1:])
        answer = unread(wire)
        assert answer is not None
        assert answer.rcode() == dns.rcode.FORMERR
        assert answer.question == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda wire: wire[:-1],
            lambda wire: wire + b"x",
            lambda wire: wire[:12] + b"\xc0\x0c" + wire[-4:],  # a name that is itself
            lambda wire: wire[:12] + b"\x40" + wire[13:],  # a kind of label that is none
            lambda wire: wire[:12] + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1",  # 257 bytes
            lambda wire: wire[:12],
        ],
    )
    def test_what_cannot_be_read_is_malformed(self, damage: Any) -> None:
        answer = unread(damage(dns.message.make_query(WWW, "A").to_wire()))
        assert answer is not None
        assert answer.rcode() == dns.rcode.FORMERR

    def test_only_an_opt_record_may_come_along(self) -> None:
        query = dns.message.make_query(WWW, "A")
        query.additional = records("x.test. 60 A 192.0.2.1")
        answer = unread(query.to_wire())
        assert answer is not None
        assert answer.rcode() == dns.rcode.FORMERR
        query = dns.message.make_query(WWW, "A")
        query.use_tsig({dns.name.from_text("key."): b"secret"})
        answer = unread(query.to_wire())
        assert answer is not None
        assert answer.rcode() == dns.rcode.FORMERR

    @pytest.mark.parametrize("rdtype", ["AXFR", "IXFR", "MAILA", "MAILB", "TSIG", "OPT", "TYPE0"])
    def test_types_of_questions_only_are_refused(self, rdtype: str) -> None:
        query = dns.message.make_query(WWW, "A")
        query.question = [
            dns.rrset.RRset(query.question[0].name, 1, dns.rdatatype.from_text(rdtype))
        ]  # type: ignore[arg-type]
        found = read_question(query.to_wire()[2:])
        assert isinstance(found, Question)
        assert found.fault == dns.rcode.REFUSED

    def test_so_are_other_classes(self) -> None:
        query = dns.message.make_query("version.bind.", "TXT", "CH")
        found = read_question(query.to_wire()[2:])
        assert isinstance(found, Question)
        assert found.fault == dns.rcode.REFUSED

    def test_a_later_edns_is_told_which_one_we_know(self) -> None:
        question = asked(use_edns=1)
        assert question.fault == dns.rcode.BADVERS
        answer = handed_out(error(question.fault), question)
        assert answer.rcode() == dns.rcode.BADVERS
        assert answer.edns == 0

    def test_only_options_for_who_answers_go_on(self) -> None:
        options = [
            dns.edns.ECSOption("192.0.2.0", 24),
            dns.edns.CookieOption(b"12345678", b""),
            dns.edns.GenericOption(dns.edns.OptionType.KEEPALIVE, b""),
            dns.edns.GenericOption(dns.edns.OptionType.PADDING, b"\0" * 30),
            dns.edns.GenericOption(65001, b"?"),  # type: ignore[arg-type]
        ]
        question = asked(use_edns=0, payload=4096, options=options, want_dnssec=True)
        sent = upstream_query(question.name, question)
        assert [option.to_text() for option in sent.options] == ["ECS 192.0.2.0/24 scope/0"]
        assert sent.payload == 1232
        assert sent.ednsflags == dns.flags.DO
        assert sent.flags == dns.flags.RD

    def test_without_options_upstream_is_asked_with_edns_all_the_same(self) -> None:
        question = asked(flags=dns.flags.RD | dns.flags.CD | dns.flags.AD)
        sent = upstream_query(question.name, question)
        assert (sent.payload, sent.ednsflags, sent.options) == (1232, 0, ())
        assert sent.flags == dns.flags.RD | dns.flags.CD | dns.flags.AD


class TestChains:
    def test_what_was_asked_for_is_handed_out(self) -> None:
        question = asked()
        answer = answered(question, f"{WWW} 60 A 192.0.2.1\n{WWW} 60 A 192.0.2.2")
        assert lines(handed_out(answer, question).answer) == [
            f"{WWW} 60 IN A 192.0.2.1",
            f"{WWW} 60 IN A 192.0.2.2",
        ]
        mapped = b"\0" * 10 + b"\xff\xff\xc0\0\2"
        assert answer.addresses == (mapped + b"\1", mapped + b"\2")
        assert (answer.address_ttl, answer.ttl, answer.names) == (60, 60, ())

    def test_nothing_else_is(self) -> None:
        question = asked()
        answer = answered(
            question,
            f"other.test. 60 A 192.0.2.66\n{WWW} 60 A 192.0.2.1\n{WWW} 60 TXT text",
            authority="example.test. 60 NS ns.test.\nexample.test. 60 SOA a. b. 1 2 3 4 5",
            additional="ns.test. 60 A 192.0.2.67",
        )
        out = handed_out(answer, question)
        assert lines(out.answer) == [f"{WWW} 60 IN A 192.0.2.1"]
        assert (out.authority, out.additional, out.opt) == ([], [], None)
        assert len(answer.addresses) == 1

    def test_ipv6_is_handed_out_as_it_is(self) -> None:
        answer = answered(asked(rdtype="AAAA"), f"{WWW} 60 AAAA 2001:db8::1")
        assert answer.addresses == (bytes.fromhex("20010db8" + "0" * 23 + "1"),)

    def test_a_chain_is_followed_in_whatever_order_it_comes(self) -> None:
        question = asked()
        answer = answered(
            question,
            """c.test. 300 A 192.0.2.1
            b.test. 20 CNAME c.test.
            x.test. 60 CNAME y.test.
            www.example.test. 60 CNAME b.test.""",
        )
        assert lines(handed_out(answer, question).answer) == [
            f"{WWW} 60 IN CNAME b.test.",
            "b.test. 20 IN CNAME c.test.",
            "c.test. 300 IN A 192.0.2.1",
        ]
        assert answer.names == ("b.test", "c.test")
        assert (answer.ttl, answer.address_ttl) == (20, 300)

    def test_a_question_for_the_alias_is_not(self) -> None:
        question = asked(rdtype="CNAME")
        answer = answered(question, f"{WWW} 60 CNAME b.test.\nb.test. 60 CNAME c.test.")
        assert lines(handed_out(answer, question).answer) == [f"{WWW} 60 IN CNAME b.test."]

    def test_a_dname_comes_along(self) -> None:
        question = asked()
        answer = answered(
            question,
            f"""example.test. 60 DNAME other.test.
            elsewhere.test. 60 DNAME other.test.
            {WWW} 60 CNAME www.other.test.
            www.other.test. 60 A 192.0.2.1""",
        )
        assert [line.split()[3] for line in lines(handed_out(answer, question).answer)] == [
            "DNAME",
            "CNAME",
            "A",
        ]
        assert answer.names == ("www.other.test",)

    def test_the_end_that_is_left_out_is_asked_for(self) -> None:
        question = asked()
        answer = answered(
            question, f"{WWW} 60 CNAME b.test.", "b.test. 60 CNAME c.test.\nc.test. 60 A 192.0.2.1"
        )
        assert len(handed_out(answer, question).answer) == 3
        assert answer.names == ("b.test", "c.test")
        assert len(answer.addresses) == 1

    def test_the_end_that_is_not_there_is_not(self) -> None:
        question = asked()
        answer = answered(
            question,
            f"{WWW} 60 CNAME b.other.",
            authority="other. 600 SOA ns.other. admin.other. 1 2 3 4 30",
        )
        out = handed_out(answer, question)
        assert (len(out.answer), len(out.authority), out.rcode()) == (1, 1, 0)
        assert answer.ttl == 30

    def test_nor_where_nobody_is_asked_to_look_further(self) -> None:
        question = asked(flags=0)
        answer = answered(question, f"{WWW} 60 CNAME b.test.")
        assert len(handed_out(answer, question).answer) == 1

    @pytest.mark.parametrize(
        "content",
        [
            f"{WWW} 60 CNAME {WWW}",
            f"{WWW} 60 CNAME a.test.\na.test. 60 CNAME WWW.example.test.",
            f"{WWW} 60 CNAME n0.test.\n"
            + "\n".join(f"n{n}.test. 60 CNAME n{n + 1}.test." for n in range(MOST_NAMES)),
        ],
    )
    def test_a_chain_without_end_is_bad(self, content: str) -> None:
        with pytest.raises(BadAnswer):
            answered(asked(), content)

    def test_the_longest_chain_is_not(self) -> None:
        names = [WWW, *(f"n{n}.test." for n in range(1, MOST_NAMES))]
        content = "\n".join(f"{a} 60 CNAME {b}" for a, b in pairwise(names))
        answer = answered(asked(), f"{content}\n{names[-1]} 60 A 192.0.2.1")
        assert len(answer.records) == MOST_NAMES

    def test_records_of_a_name_that_is_not_there_are_bad(self) -> None:
        with pytest.raises(BadAnswer):
            answered(asked(), f"{WWW} 60 A 192.0.2.1", rcode=dns.rcode.NXDOMAIN)

    def test_what_does_not_fit_together_into_a_message_is_bad(self) -> None:
        """No message can be too large; what several say can."""
        names = [".".join([letter * 62] * 4) + "." for letter in "abcdefghijklmn"]
        first = "\n".join(f"{a} 60 CNAME {b}" for a, b in pairwise([WWW, *names]))
        text = "x" * 250
        second = "\n".join(f'{names[-1]} 60 TXT "{n:03}{text}"' for n in range(240))
        with pytest.raises(BadAnswer):
            answered(asked(rdtype="TXT"), first, second)

    def test_a_name_that_is_not_there(self) -> None:
        question = asked()
        answer = answered(
            question,
            "",
            rcode=dns.rcode.NXDOMAIN,
            authority="""example.test. 3600 SOA ns.test. admin.test. 1 2 3 4 900
            example.test. 3600 NS ns.test.""",
        )
        out = handed_out(answer, question)
        assert out.rcode() == dns.rcode.NXDOMAIN
        assert [line.split()[3] for line in lines(out.authority)] == ["SOA"]
        assert answer.ttl == 900

    def test_somebody_else_says_nothing_about_it(self) -> None:
        answer = answered(asked(), "", authority="other.test. 3600 SOA a. b. 1 2 3 4 900")
        assert (answer.records, answer.ttl) == ((), 0)

    def test_without_a_soa_record_it_is_not_kept(self) -> None:
        answer = answered(asked(), "", rcode=dns.rcode.NXDOMAIN)
        assert answer.ttl == 0
        assert answer.rcode == dns.rcode.NXDOMAIN

    def test_ages_have_a_limit(self) -> None:
        question = asked()
        week = answered(question, f"{WWW} 604800 A 192.0.2.1")
        assert (week.ttl, week.address_ttl) == (86_400, 86_400)
        assert handed_out(week, question).answer[0].ttl == 86_400
        nothing = answered(question, "", authority="test. 604800 SOA a. b. 1 2 3 4 604800")
        assert nothing.ttl == 10_800

    def test_signatures_and_proofs_are_for_who_wants_them(self) -> None:
        content = f"{WWW} 60 A 192.0.2.1\n{WWW} 60 RRSIG {signature('A')}"
        content += f"\n{WWW} 60 RRSIG {signature('AAAA')}"
        proofs = f"""abcd.example.test. 50 NSEC3 {NSEC3}
            abcd.example.test. 50 RRSIG {signature("NSEC3")}
            example.test. 50 NS ns.test.
            example.test. 50 RRSIG {signature("NS")}"""
        question = asked(use_edns=0, want_dnssec=True)
        answer = answered(question, content, authority=proofs, flags=dns.flags.AD)
        out = handed_out(answer, question)
        assert [rrset.covers for rrset in out.answer] == [0, dns.rdatatype.A]
        assert [rrset.rdtype for rrset in out.authority] == [
            dns.rdatatype.NSEC3,
            dns.rdatatype.RRSIG,
        ]
        assert answer.ttl == 50
        assert out.flags & dns.flags.AD
        assert out.ednsflags & dns.flags.DO

        question = asked(use_edns=0)
        out = handed_out(answered(question, content, authority=proofs), question)
        assert len(out.answer) == 1
        assert out.authority == []

    def test_signatures_can_be_asked_for_themselves(self) -> None:
        question = asked(rdtype="RRSIG")
        answer = answered(
            question, f"{WWW} 60 RRSIG {signature('A')}\n{WWW} 60 RRSIG {signature('AAAA')}"
        )
        assert len(handed_out(answer, question).answer) == 2

    def test_all_of_a_chain_has_to_be_authentic(self) -> None:
        question = asked(flags=dns.flags.RD | dns.flags.AD)
        chain = Chain(question)
        name = follow(chain, question.name, question, f"{WWW} 60 CNAME b.test.", flags=dns.flags.AD)
        assert name is not None
        assert follow(chain, name, question, "b.test. 60 A 192.0.2.1") is None
        assert not handed_out(chain.answer(), question).flags & dns.flags.AD

    def test_who_does_not_ask_is_not_told_that_it_is_authentic(self) -> None:
        answer = answered(asked(), f"{WWW} 60 A 192.0.2.1", flags=dns.flags.AD)
        assert not handed_out(answer, asked()).flags & dns.flags.AD
        assert handed_out(answer, asked(flags=dns.flags.AD)).flags & dns.flags.AD

    @pytest.mark.parametrize("rdtype", ["HTTPS", "SVCB"])
    def test_hints_are_addresses_and_targets_names(self, rdtype: str) -> None:
        question = asked(rdtype=rdtype)
        answer = answered(
            question,
            f"""{WWW} 60 CNAME b.test.
            b.test. 30 {rdtype} 1 . alpn=h2 ipv4hint=192.0.2.1,192.0.2.2
            b.test. 30 {rdtype} 2 Svc.Test. ipv6hint=2001:db8::1 ipv4hint=192.0.2.1""",
        )
        assert [address[-1] for address in answer.addresses] == [1, 2, 1]
        assert answer.address_ttl == 30
        assert answer.names == ("b.test", "svc.test")

    def test_addresses_elsewhere_are_none(self) -> None:
        """What an MX record leads to is asked for, and judged, on its own."""
        answer = answered(
            asked(rdtype="MX"), f"{WWW} 60 MX 1 m.test.", additional="m.test. 60 A 192.0.2.1"
        )
        assert answer.addresses == ()

    def test_any_is_one_record_of_a_type_that_nobody_wants(self) -> None:
        question = asked(rdtype="ANY")
        out = handed_out(any_answer(question), question)
        assert lines(out.answer) == [f'{WWW} 3600 IN HINFO "RFC8482" ""']


class TestMessages:
    def test_a_client_gets_its_own_spelling_back(self) -> None:
        answer = answered(asked(), f"{WWW} 60 CNAME x.{WWW}\nx.{WWW} 60 A 192.0.2.1")
        out = handed_out(answer, asked("wWw.eXample.tEst."))
        assert out.question[0].name.to_text() == "wWw.eXample.tEst."
        assert out.answer[0].name.to_text() == "wWw.eXample.tEst."
        assert out.answer[1].name == dns.name.from_text(f"x.{WWW}")

    def test_times_to_live_go_down(self) -> None:
        question = asked(rdtype="TXT")
        answer = answered(question, f"{WWW} 60 CNAME b.test.\nb.test. 90 TXT a\nb.test. 90 TXT b")
        for age in (0, 1, 59):
            out = handed_out(answer, question, age=age)
            assert [rrset.ttl for rrset in out.answer] == [60 - age, 90 - age]
        assert [rrset.ttl for rrset in handed_out(answer, question).answer] == [60, 90]

    @pytest.mark.parametrize("is_edns", [False, True])
    @pytest.mark.parametrize("most", [512, 700, 1232])
    def test_what_is_too_long_is_cut_between_records(self, most: int, is_edns: bool) -> None:
        question = asked(use_edns=0 if is_edns else False)
        content = "\n".join(f"{WWW} 60 A 192.0.2.{n}" for n in range(100))
        out = handed_out(answered(question, content), question, most)
        assert out.flags & dns.flags.TC
        room = most - 12 - len(question.wire) - (11 if is_edns else 0)
        assert [rdata.address for rdata in out.answer[0]] == [
            f"192.0.2.{n}" for n in range(room // 16)
        ]
        assert (out.edns == 0) == is_edns

    def test_what_fits_is_not(self) -> None:
        question = asked()
        content = "\n".join(f"{WWW} 60 A 192.0.2.{n}" for n in range(29))
        answer = answered(question, content)
        size = 12 + len(question.wire) + len(answer.body)
        assert size <= 512
        assert not handed_out(answer, question, size).flags & dns.flags.TC
        assert handed_out(answer, question, size - 1).flags & dns.flags.TC

    def test_a_cut_into_the_authority_section_leaves_the_answer_whole(self) -> None:
        question = asked()
        answer = answered(
            question,
            f"{WWW} 60 CNAME b.test.",
            authority="test. 60 SOA ns.test. admin.test. 1 2 3 4 5",
        )
        whole = 12 + len(question.wire) + len(answer.body)
        out = handed_out(answer, question, whole - 1, age=2)
        assert (len(out.answer), len(out.authority)) == (1, 0)
        assert out.answer[0].ttl == 58

    def test_an_error_says_why_to_who_can_read_it(self) -> None:
        answer = error(dns.rcode.REFUSED, 15, "no")
        out = handed_out(answer, asked(use_edns=0))
        assert [option.to_text() for option in out.extended_errors()] == ["EDE 15 (Blocked): no"]
        assert handed_out(answer, asked()).opt is None

    def test_errors_fit_whatever_was_asked(self) -> None:
        longest = ".".join(["x" * 62] * 4) + "."
        question = asked(longest, use_edns=0, payload=512)
        out = handed_out(error(dns.rcode.SERVFAIL, 23, "x" * 150), question, 512)
        assert not out.flags & dns.flags.TC
        assert out.question[0].name.to_text() == longest

    def test_recursion_is_available(self) -> None:
        out = handed_out(error(dns.rcode.SERVFAIL), asked())
        assert dns.flags.to_text(out.flags) == "QR RD RA"
        out = handed_out(error(dns.rcode.SERVFAIL), asked(flags=dns.flags.CD))
        assert dns.flags.to_text(out.flags) == "QR RA CD"


class TestCache:
    def test_an_answer_is_there_as_long_as_it_lives(self) -> None:
        cache = Cache()
        answer = answered(asked(), f"{WWW} 60 A 192.0.2.1")
        cache.put(asked().key, answer, 1000.0)
        assert cache.get(asked("WWW.EXAMPLE.TEST.").key, 1059.5) == (answer, 59.5)
        assert cache.get(asked(rdtype="AAAA").key, 1000.0) is None
        assert cache.get(asked().key, 1060.0) is None
        assert len(cache) == 0

    def test_what_lives_for_a_moment_or_is_huge_is_not_kept(self) -> None:
        cache = Cache()
        cache.put(asked().key, answered(asked(), f"{WWW} 0 A 192.0.2.1"), 0.0)
        cache.put(asked().key, error(dns.rcode.SERVFAIL), 0.0)
        cache.put(asked().key, Answer(dns.rcode.NOERROR, body=b"x" * 16_385, ttl=60), 0.0)
        assert len(cache) == 0

    def test_what_was_not_asked_for_goes_first(self) -> None:
        cache = Cache(3)
        keys = [asked(f"{n}.test.").key for n in range(4)]
        answer = Answer(dns.rcode.NOERROR, ttl=60)
        for key in keys[:3]:
            cache.put(key, answer, 0.0)
        cache.get(keys[0], 1.0)
        cache.put(keys[2], answer, 2.0)
        cache.put(keys[3], answer, 2.0)
        assert [cache.get(key, 3.0) is not None for key in keys] == [True, False, True, True]
