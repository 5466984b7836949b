# SPDX-License-Identifier: GPL-2.0-only
"""Which servers the guard's proxy asks, and what it takes for their answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import dns.edns
import dns.message
import dns.rcode
import pytest

from zfw_py.errors import NotFound, UsageError
from zfw_py.guard.dns.resolv_conf import ResolvConf, open_own, system_upstreams
from zfw_py.guard.dns.upstream import check_upstreams, is_reply
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

NAME = "wwW.example.test."


class TestSystem:
    def read(self, tmp_path: Path, text: str | bytes) -> list[Endpoint]:
        path = tmp_path / "resolv.conf"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return system_upstreams(str(path))

    def test_servers_are_read_in_their_order(self, tmp_path: Path) -> None:
        text = "search test\nnameserver 192.0.2.1\noptions edns0\nnameserver\t2001:db8::1 # here\n"
        assert self.read(tmp_path, text) == [Endpoint("192.0.2.1", 53), Endpoint("2001:db8::1", 53)]

    def test_the_first_three_as_in_the_c_library(self, tmp_path: Path) -> None:
        text = "".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6))
        assert [server.address[-1] for server in self.read(tmp_path, text)] == ["1", "2", "3"]

    def test_what_makes_no_sense_is_passed_over(self, tmp_path: Path) -> None:
        text = "nameserver\n#nameserver 192.0.2.9\nnameserver dns.example\nnameserver 192.0.2.300\n"
        text += "nameserver 127.1\nnameserver fe80::1%no-such-interface\nnameserver fe80::1%lo\n"
        assert self.read(tmp_path, text) == [Endpoint("fe80::1%lo", 53)]

    def test_bytes_that_are_no_text_do_no_harm(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, b"\xff\xfe\nnameserver 192.0.2.1\n") == [
            Endpoint("192.0.2.1", 53)
        ]

    def test_none_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"resolv\.conf names no server"):
            self.read(tmp_path, "search test\n")
        with pytest.raises(NotFound, match="absent"):
            system_upstreams(str(tmp_path / "absent"))


class TestFollowed:
    """What a DHCP client, a VPN or an administrator does to the file while a guard is there."""

    def test_a_file_is_read_again_when_it_is_written_or_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "resolv.conf"
        followed = ResolvConf(lambda: open_own(str(path)), [Endpoint("192.0.2.9", 53)])
        assert followed() == [Endpoint("192.0.2.9", 53)]
        path.write_text("nameserver 192.0.2.1\n")
        assert followed() == [Endpoint("192.0.2.1", 53)]
        path.write_text("nameserver 192.0.2.2\nnameserver 192.0.2.1\n")
        assert followed() == [Endpoint("192.0.2.2", 53), Endpoint("192.0.2.1", 53)]
        (tmp_path / "new").write_text("nameserver 192.0.2.3\n")
        (tmp_path / "new").rename(path)
        assert followed() == [Endpoint("192.0.2.3", 53)]
        (tmp_path / "target").write_text("nameserver 192.0.2.4\n")
        path.unlink()
        assert followed() == [Endpoint("192.0.2.3", 53)]
        path.symlink_to(tmp_path / "target")
        assert followed() == [Endpoint("192.0.2.4", 53)]

    def test_a_file_without_a_server_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "resolv.conf"
        followed = ResolvConf(lambda: open_own(str(path)), [])
        path.write_text("nameserver 192.0.2.1\n")
        assert followed() == [Endpoint("192.0.2.1", 53)]
        path.write_text("search example\n")
        assert followed() == [Endpoint("192.0.2.1", 53)]
        path.unlink()
        os.mkfifo(path)
        assert followed() == [Endpoint("192.0.2.1", 53)]


class TestCheck:
    def test_a_server_is_written_as_it_is_given(self) -> None:
        assert str(Endpoint("192.0.2.1", 53)) == "192.0.2.1:53"
        assert str(Endpoint("2001:db8::1", 5353)) == "[2001:db8::1]:5353"

    @pytest.mark.parametrize(
        "server",
        [
            Endpoint("dns.example", 53),
            Endpoint("", 53),
            Endpoint("192.0.2.1", 0),
            Endpoint("192.0.2.1", 65536),
            Endpoint("192.0.2.1", -1),
            Endpoint("1.2.3", 53),
            Endpoint("fe80::1%no-such-interface", 53),
        ],
    )
    def test_what_is_no_address_is_refused(self, server: Endpoint) -> None:
        with pytest.raises(UsageError, match=r"^upstream .*: not an IP address and a port"):
            check_upstreams([server], [])

    @pytest.mark.parametrize(
        ("address", "listening"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "0:0:0:0:0:0:0:1"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "::ffff:127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("127.0.0.1", "0.0.0.0"),
            ("127.8.9.10", "0.0.0.0"),
            ("127.0.0.1", "::"),
        ],
    )
    def test_the_proxy_itself_is_refused(self, address: str, listening: str) -> None:
        other = Endpoint("192.0.2.1", 5300)
        with pytest.raises(UsageError, match=r"^upstream \S+:5300: this is the proxy itself$"):
            check_upstreams([other, Endpoint(address, 5300)], [("10.0.0.1", 1), (listening, 5300)])

    @pytest.mark.parametrize(
        ("server", "listening"),
        [
            (Endpoint("127.0.0.1", 53), ("127.0.0.1", 5300)),
            (Endpoint("127.0.0.2", 53), ("127.0.0.1", 53)),
            (Endpoint("192.0.2.1", 53), ("0.0.0.0", 53)),
            (Endpoint("2001:db8::", 53), ("2001:db8:1::", 53)),
            (Endpoint("fd00::1", 53), ("fd00::", 53)),
        ],
    )
    def test_others_are_not(self, server: Endpoint, listening: tuple[str, int]) -> None:
        check_upstreams([server], [listening])


class TestReplies:
    @pytest.fixture
    def query(self) -> dns.message.Message:
        return dns.message.make_query(NAME, "HTTPS", use_edns=0)

    def test_an_answer_repeats_the_question(self, query: dns.message.Message) -> None:
        reply = dns.message.make_response(query)
        assert is_reply(query.to_wire(), reply.to_wire())
        assert is_reply(query.to_wire(), reply.to_wire().replace(b"wwW", b"WWw"))

    @pytest.mark.parametrize(
        ("at", "value"),
        [(0, 0xFF), (1, 0xFF), (2, 0x01), (2, 0x91), (5, 2), (13, ord("x")), (12, 2), (-1, 3)],
        ids=["id", "id", "query", "opcode", "count", "name", "label", "class"],
    )
    def test_nothing_else_does(self, query: dns.message.Message, at: int, value: int) -> None:
        query.id = 0x1234
        query.use_edns(-1)
        wire = bytearray(dns.message.make_response(query).to_wire())
        assert is_reply(query.to_wire(), bytes(wire))
        wire[at] = value
        assert not is_reply(query.to_wire(), bytes(wire))

    def test_a_type_is_no_letter(self) -> None:
        asked = dns.message.make_query(NAME, "TYPE65", id=1)
        other = dns.message.make_query(NAME, "TYPE97", id=1)
        assert not is_reply(asked.to_wire(), dns.message.make_response(other).to_wire())

    def test_a_name_may_have_a_zero_in_it(self) -> None:
        asked = dns.message.make_query("a\\000b.test.", "A", id=1)
        other = dns.message.make_query("a\\000c.test.", "A", id=1)
        assert is_reply(asked.to_wire(), dns.message.make_response(asked).to_wire())
        assert not is_reply(asked.to_wire(), dns.message.make_response(other).to_wire())

    @pytest.mark.parametrize("length", range(30))
    def test_a_piece_of_one_is_none(self, query: dns.message.Message, length: int) -> None:
        wire = dns.message.make_response(query).to_wire()
        assert not is_reply(query.to_wire(), wire[:length])

    def test_an_error_need_not_repeat_it(self, query: dns.message.Message) -> None:
        for rcode in (dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOERROR):
            reply = dns.message.make_response(query)
            reply.question.clear()
            reply.set_rcode(rcode)
            assert is_reply(query.to_wire(), reply.to_wire()) == (rcode != dns.rcode.NOERROR)
