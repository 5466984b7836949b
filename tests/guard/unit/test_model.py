# SPDX-License-Identifier: GPL-2.0-only
"""What a guarded program may reach: how entries are read, which one decides, what a file says."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args
from unicodedata import normalize

import dns.name
import msgspec
import pytest

from tests.support.documents import forms, refusal, written
from zfw_py.errors import UsageError
from zfw_py.guard import codec as guard_codec
from zfw_py.guard import document as policy_file
from zfw_py.guard import layout as guard_layout
from zfw_py.guard.document import decode
from zfw_py.guard.model import (
    ANY_PORT,
    MAX_PORTS,
    Entry,
    NameEntry,
    Otherwise,
    Policy,
    PrefixEntry,
    Reach,
    parse_entry,
)
from zfw_py.values.endpoint import Server, parse_server
from zfw_py.values.prefix import Prefix
from zfw_py.values.structured import Format


def entries(*texts: str) -> tuple[Entry, ...]:
    return tuple(parse_entry(text, "--allow") for text in texts)


def policy(*allow: str, block: tuple[str, ...] = (), **others: Any) -> Policy:
    return Policy(allow=entries(*allow), block=entries(*block), **others)


def flat(made: Policy) -> dict[str, tuple[tuple[int, ...], str]]:
    """Without loopback; with the keys as IPv6 text, lengths counted from bit 0."""
    made = msgspec.structs.replace(made, has_loopback=False)
    return {
        str(Prefix.from_mapped(6, *key)): (reach.ports, reach.otherwise)
        for key, reach in made.flatten().items()
    }


class TestEntry:
    @pytest.mark.parametrize(
        ("text", "prefix", "port", "canonical"),
        [
            ("10.0.0.0/8", "10.0.0.0/8", None, "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32", None, "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1/32", None, "10.0.0.1"),
            ("10.0.0.1:443", "10.0.0.1/32", 443, "10.0.0.1:443"),
            ("10.0.0.0/8:443", "10.0.0.0/8", 443, "10.0.0.0/8:443"),
            ("0.0.0.0/0:65535", "0.0.0.0/0", 65535, "0.0.0.0/0:65535"),
            ("2001:db8::/32", "2001:db8::/32", None, "2001:db8::/32"),
            ("2001:DB8:0::1", "2001:db8::1/128", None, "2001:db8::1"),
            ("[2001:db8::/32]:443", "2001:db8::/32", 443, "[2001:db8::/32]:443"),
            ("[2001:db8::1]:443", "2001:db8::1/128", 443, "[2001:db8::1]:443"),
            ("[2001:db8::1]", "2001:db8::1/128", None, "2001:db8::1"),
            ("[2001:db8::/32]", "2001:db8::/32", None, "2001:db8::/32"),
            ("2001:db8::1:443", "2001:db8::1:443/128", None, "2001:db8::1:443"),
            ("::/0", "::/0", None, "::/0"),
            ("::", "::/128", None, "::"),
            ("::ffff:0:0/96", "0.0.0.0/0", None, "0.0.0.0/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", None, "10.0.0.0/8"),
            ("[::ffff:10.0.0.1]:53", "10.0.0.1/32", 53, "10.0.0.1:53"),
            ("::fffe:0:0/95", "::fffe:0:0/95", None, "::fffe:0:0/95"),
        ],
    )
    def test_a_prefix_is_read(
        self, text: str, prefix: str, port: int | None, canonical: str
    ) -> None:
        entry = parse_entry(text, "--allow")
        assert isinstance(entry, PrefixEntry)
        assert entry == PrefixEntry(Prefix.parse(prefix), port)
        assert entry.prefix.family == Prefix.parse(prefix).family
        assert str(entry) == canonical

    @pytest.mark.parametrize(
        ("text", "name", "port"),
        [
            ("example.com", "example.com", None),
            ("example.com.", "example.com", None),
            ("EXAMPLE.com:443", "example.com", 443),
            ("example.com.:1", "example.com", 1),
            ("localhost", "localhost", None),
            ("_dmarc.my-host.example", "_dmarc.my-host.example", None),
            ("1.example", "1.example", None),
            ("1.2.3.x", "1.2.3.x", None),
            ("fe80", "fe80", None),
            ("fe80:80", "fe80", 80),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            (".", ".", None),
            (".:443", ".", 443),
            ("a" * 63 + ".x", "a" * 63 + ".x", None),
            (".".join(["a" * 49] * 5) + ".ccc.", ".".join(["a" * 49] * 5) + ".ccc", None),
        ],
    )
    def test_a_name_is_read(self, text: str, name: str, port: int | None) -> None:
        entry = parse_entry(text, "--allow")
        assert isinstance(entry, NameEntry)
        assert entry == NameEntry(name, port)
        assert str(entry) == (name if port is None else f"{name}:{port}")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            (" ", "blanks or control characters in ' '"),
            ("a b.example", "blanks or control characters"),
            ("example.com\n", "blanks or control characters"),
            ("10.0.0.1\0", "blanks or control characters"),
            ("a\x85b", "blanks or control characters"),
            ("a\u2003b", "blanks or control characters"),
            ("x" * 1025, "longer than 1024 characters"),
            # URLs
            ("https://example.com", "give the host name, not a URL"),
            ("https://example.com:443/x", "give the host name, not a URL"),
            # what looks like an address and is none
            ("1.2.3", "not an IPv4 or IPv6 address: '1.2.3'"),
            ("10.0.0.999", "not an IPv4 or IPv6 address: '10.0.0.999'"),
            ("10.0.0.1.", "not an IPv4 or IPv6 address: '10.0.0.1.'"),
            ("010.0.0.1", "not an IPv4 or IPv6 address"),
            ("2130706433", "not an IPv4 or IPv6 address"),
            ("example.1:80", "not an IPv4 or IPv6 address: 'example.1'"),
            ("\uff11.\uff12.\uff13.\uff14", "not an IPv4 or IPv6 address"),
            ("fe80::1%eth0", "not an IPv4 or IPv6 address: 'fe80::1%eth0'"),
            ("example.com:443:80", "not an IPv4 or IPv6 address"),
            ("1::2::3", "not an IPv4 or IPv6 address"),
            # prefixes
            ("10.0.0.0/33", "prefix length of '10.0.0.0/33' is not within 0 to 32"),
            ("10.0.0.0/", "prefix length of '10.0.0.0/' is not within 0 to 32"),
            ("10.0.0.0/255.0.0.0", "prefix length of"),
            ("2001:db8::/129", "prefix length of '2001:db8::/129' is not within 0 to 128"),
            ("10.0.0.1/8", "host bits are set in '10.0.0.1/8'; the prefix is 10.0.0.0/8"),
            ("10.0.0.1/8:443", "host bits are set in '10.0.0.1/8'; the prefix is 10.0.0.0/8"),
            ("::1/64", "host bits are set in '::1/64'; the prefix is ::/64"),
            (
                "::ffff:10.0.0.1/104",
                "host bits are set in '::ffff:10.0.0.1/104'; the prefix is 10.0.0.0/8",
            ),
            ("::ffff:0:0/95", "host bits are set in '::ffff:0:0/95'; the prefix is ::fffe:0:0/95"),
            ("2001:db8::/32:443", "IPv6 with a port is [ADDR/LEN]:PORT"),
            ("[2001:db8::/32", "not IPv6 in brackets"),
            ("[2001:db8::]/32", "not IPv6 in brackets"),
            ("[2001:db8::]443", "not IPv6 in brackets"),
            ("[10.0.0.1]:443", "not IPv6 in brackets"),
            ("[example.com]:443", "not IPv6 in brackets"),
            ("[]:443", "not IPv6 in brackets"),
            ("[::x]:443", "not an IPv4 or IPv6 address: '::x'"),
            # ports
            ("example.com:", "the port of 'example.com:' is not within 1 to 65535"),
            ("example.com:0", "the port of"),
            ("example.com:65536", "the port of"),
            ("example.com:+80", "the port of"),
            ("example.com:080", "the port of"),
            ("example.com:https", "the port of"),
            ("example.com:\u0664\u0664", "the port of"),
            ("10.0.0.1:" + "9" * 900, "the port of"),
            ("[::1]:", "the port of '[::1]:'"),
            ("[::1]:x", "the port of '[::1]:x'"),
            # names
            ("*.example.com", "'example.com' covers all names below it: '*.example.com'"),
            ("*.example.com:443", "'example.com' covers all names below it"),
            ("*", "'.' covers all names below it"),
            ("a.*.example", "only letters, digits, hyphens and underscores are allowed"),
            ("exa$mple.com", "only letters, digits, hyphens and underscores are allowed"),
            ("a\\.b", "only letters, digits, hyphens and underscores are allowed"),
            ("user@example.com", "only letters, digits, hyphens and underscores are allowed"),
            ("example.com/24", "neither a prefix nor a name, which has no slash"),
            ("example.com/path", "neither a prefix nor a name, which has no slash"),
            ("/8", "neither a prefix nor a name, which has no slash"),
            (":443", "an empty label"),
            ("..", "an empty label"),
            (".example.com", "an empty label"),
            ("example..com", "an empty label"),
            ("example.com..", "an empty label"),
            ("a" * 64 + ".example", "a label of more than 63 octets"),
            (".".join(["a" * 49] * 5) + ".cccc", "a name of more than 253 octets"),
            ("\u2603.example", "'\u2603' is not a valid label"),
            ("\ud800.example", "is not a valid label"),
            ("\u00ad.example", "is not a valid label"),
        ],
    )
    def test_nonsense_gets_one_line_that_names_the_option(self, text: str, message: str) -> None:
        with pytest.raises(UsageError) as raised:
            parse_entry(text, "--allow")
        assert raised.value.message.startswith("--allow: ")
        assert message in raised.value.message
        assert "\n" not in raised.value.message
        assert raised.value.exit_code == 2

    def test_a_block_has_no_port(self) -> None:
        assert parse_entry("example.com", "--block", is_block=True) == NameEntry("example.com")
        for text in ("example.com:443", "10.0.0.0/8:443", "[::/0]:443"):
            with pytest.raises(UsageError, match=r"^--block: a block is for all ports"):
                parse_entry(text, "--block", is_block=True)
        with pytest.raises(UsageError, match=r"block: .*'10.0.0.0/8:443'"):
            policy(block=("10.0.0.0/8:443",))


class TestUnicodeName:
    @pytest.fixture(params=["IDNA 2008", "IDNA 2003"])
    def has_idna(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        """As with the package idna and as without."""
        assert dns.name.have_idna_2008, "the tests need the package"
        has_idna = request.param == "IDNA 2008"
        monkeypatch.setattr(dns.name, "have_idna_2008", has_idna)
        return has_idna

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example.", "xn--bcher-kva.example"),
            (normalize("NFD", "bücher.example"), "xn--bcher-kva.example"),
            ("_sip.bücher.example", "_sip.xn--bcher-kva.example"),
            ("例え\u3002テスト", "xn--r8jz45g.xn--zckzah"),
            ("\uff45xample.com", "example.com"),
            ("пример.испытание:443", "xn--e1afmkfd.xn--80akhbyknj4f"),
        ],
    )
    def test_becomes_a_labels(self, has_idna: bool, text: str, name: str) -> None:
        entry = parse_entry(text, "--allow")
        assert isinstance(entry, NameEntry)
        assert entry.name == name

    def test_that_idna_2003_takes_for_another_is_refused_without_the_package(
        self, has_idna: bool
    ) -> None:
        if has_idna:
            assert parse_entry("straße.example", "--allow") == NameEntry("xn--strae-oqa.example")
        else:
            with pytest.raises(UsageError, match="needs the Python package idna, or A-labels"):
                parse_entry("straße.example", "--allow")

    @pytest.mark.parametrize(
        "text",
        [
            "\uff0a.example",  # a wide asterisk
            "a\uff1ab.example",  # a wide colon
            "\u2100.example",  # account of: a/c
            "\u00ad",
            "ü" * 64,
            "\ufffe.example",
        ],
    )
    def test_that_is_none_is_refused(self, has_idna: bool, text: str) -> None:
        with pytest.raises(UsageError, match="--allow: "):
            parse_entry(text, "--allow")


class TestServer:
    @pytest.mark.parametrize(
        ("text", "server", "canonical"),
        [
            ("192.0.2.53", Server(4, b"\xc0\0\2\x35", 53), "192.0.2.53:53"),
            ("192.0.2.53:5353", Server(4, b"\xc0\0\2\x35", 5353), "192.0.2.53:5353"),
            ("127.0.0.1", Server(4, b"\x7f\0\0\1", 53), "127.0.0.1:53"),
            ("::1", Server(6, bytes(15) + b"\1", 53), "[::1]:53"),
            ("[::1]", Server(6, bytes(15) + b"\1", 53), "[::1]:53"),
            ("[::1]:5353", Server(6, bytes(15) + b"\1", 5353), "[::1]:5353"),
            ("[::ffff:192.0.2.53]:1", Server(4, b"\xc0\0\2\x35", 1), "192.0.2.53:1"),
        ],
    )
    def test_is_read(self, text: str, server: Server, canonical: str) -> None:
        assert parse_server(text, "--dns-upstream") == server
        assert str(server) == canonical

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty"),
            ("dns.example", "not an IPv4 or IPv6 address: 'dns.example'"),
            ("dns.example:53", "not an IPv4 or IPv6 address: 'dns.example'"),
            ("192.0.2.0/24", "not an IPv4 or IPv6 address"),
            ("192.0.2.53:0", "the port of '192.0.2.53:0'"),
            ("192.0.2.53:65536", "the port of"),
            ("[::1]:0", "the port of"),
            ("tls://192.0.2.53", "a URL"),
            ("0.0.0.0", "not the address of one server: '0.0.0.0'"),
            ("[::]:53", "not the address of one server"),
            ("::ffff:0.0.0.0", "not the address of one server"),
            ("224.0.0.251", "not the address of one server"),
            ("239.255.255.255:53", "not the address of one server"),
            ("ff02::fb", "not the address of one server"),
            ("255.255.255.255", "not the address of one server"),
        ],
    )
    def test_nonsense_gets_one_line_that_names_the_option(self, text: str, message: str) -> None:
        with pytest.raises(UsageError) as raised:
            parse_server(text, "--dns-upstream")
        assert raised.value.message.startswith("--dns-upstream: ")
        assert message in raised.value.message


class TestDefault:
    def test_is_to_deny(self) -> None:
        assert not Policy().is_allowed_by_default
        assert not policy("example.com").is_allowed_by_default
        assert not policy("example.com", block=("a.example.com",)).is_allowed_by_default

    def test_of_blocks_alone_is_to_allow(self) -> None:
        assert policy(block=("example.com",)).is_allowed_by_default
        assert policy(block=("10.0.0.0/8",)).is_allowed_by_default

    def test_that_is_given_counts(self) -> None:
        assert not policy(block=("example.com",), default="deny").is_allowed_by_default
        assert policy("example.com", default="allow").is_allowed_by_default
        assert Policy(default="allow").is_allowed_by_default


class TestName:
    def test_is_covered_on_label_borders(self) -> None:
        made = policy("example.com")
        for name in ("example.com", "a.example.com", "A.b.EXAMPLE.Com.", r"a\.b.example.com."):
            assert made.ports_of_name(name) == ANY_PORT
        for name in ("badexample.com", "com", "example.com.org", "", ".", r"a\.example.com."):
            assert made.ports_of_name(name) is None

    @pytest.mark.parametrize(
        "name",
        [
            r"a\.example.com.",
            r"a\.example.com",
            r"\.example.com.",
            r"\\\.example.com.",
            r"\046example.com.",
            r"example\.com.",
            r"example.com\.",
            "example.com\\",
            "\\\n.x",
        ],
    )
    def test_has_no_border_at_a_dot_within_a_label(self, name: str) -> None:
        assert policy("example.com").ports_of_name(name) is None

    def test_has_one_after_a_backslash_within_a_label(self) -> None:
        assert policy("example.com").ports_of_name(r"a\\.example.com.") == ANY_PORT

    def test_is_told_apart_as_dnspython_writes_it(self) -> None:
        for labels, ports in (
            ((b"a.example", b"com", b""), None),
            ((b"a\\", b"example", b"com", b""), ANY_PORT),
            ((b"\xff.\0", b"eXample", b"com", b""), ANY_PORT),
        ):
            assert policy("example.com").ports_of_name(dns.name.Name(labels).to_text()) == ports

    def test_lower_case_is_that_of_dns(self) -> None:
        """The sign of the Kelvin is a "k" in lower case, and no label on the wire."""
        assert policy("k.example").ports_of_name("\u212a.example") is None
        assert policy(block=("k.example",)).ports_of_name("\u212a.example") == ANY_PORT

    def test_is_decided_by_the_longest_entry(self) -> None:
        made = policy("example.com", "c.b.example.com:443", block=("b.example.com",))
        assert made.ports_of_name("example.com") == ANY_PORT
        assert made.ports_of_name("b.example.com") is None
        assert made.ports_of_name("x.b.example.com") is None
        assert made.ports_of_name("x.c.b.example.com") == {443}
        assert made.ports_of_name("example.org") is None

    def test_is_blocked_where_it_is_allowed_as_well(self) -> None:
        made = policy("example.com", "example.com:443", block=("example.com",))
        assert made.ports_of_name("a.example.com") is None

    def test_has_the_ports_of_all_its_entries(self) -> None:
        made = policy("a.example:443", "a.example:80", "b.example:443", "b.example", "example:53")
        assert made.ports_of_name("a.example") == {80, 443}
        assert made.ports_of_name("b.example") == ANY_PORT
        assert made.ports_of_name("c.example") == {53}

    def test_that_no_entry_covers_has_the_default(self) -> None:
        made = policy("example.com:443", block=("example.org",), default="allow")
        assert made.ports_of_name("example.net") == ANY_PORT
        assert made.ports_of_name("example.com") == {443}
        assert made.ports_of_name("example.org") is None
        assert policy("10.0.0.0/8").ports_of_name("10.0.0.1") is None

    def test_is_covered_by_the_root(self) -> None:
        made = policy(".:443", "example.com", block=("example.org",))
        assert made.ports_of_name(".") == {443}
        assert made.ports_of_name("com") == {443}
        assert made.ports_of_name("example.com") == ANY_PORT
        assert made.ports_of_name("example.org") is None
        assert policy(block=(".",)).ports_of_name("com") is None


def translated(*prefixes: str) -> list[tuple[bytes, int]]:
    """The keys of the IPv6 prefixes from which NAT64 and 6to4 send to these IPv4 ones."""
    found = []
    for prefix in map(Prefix.parse, prefixes):
        found.append((bytes.fromhex("0064ff9b" + "00" * 8) + prefix.address, 96 + prefix.length))
        found.append((b"\x20\x02" + prefix.address + bytes(10), 16 + prefix.length))
    return found


class TestFlatten:
    def test_without_prefixes_there_are_none(self) -> None:
        assert flat(Policy()) == {}
        assert flat(policy("example.com", block=("example.org",))) == {}

    def test_keys_are_those_of_the_kernel(self) -> None:
        made = policy("10.0.0.0/8:443", "2001:db8::/32", "10.0.0.0/8:80", has_loopback=False)
        assert made.flatten() == {
            (bytes(10) + b"\xff\xff\x0a\0\0\0", 104): Reach((80, 443), "none"),
            (b"\x20\x01\x0d\xb8" + bytes(12), 32): Reach((), "allow"),
        }

    def test_the_kernel_s_side_is_the_same(self) -> None:
        assert guard_layout.PREFIX_PORTS == MAX_PORTS
        assert set(get_args(Otherwise)) == set(guard_codec.OTHERWISE)

    def test_loopback_is_allowed_like_any_other_prefix(self) -> None:
        assert Policy().flatten() == {
            Prefix.parse("127.0.0.0/8").mapped: Reach((), "allow"),
            Prefix.parse("127.0.0.11").mapped: Reach((), "none"),
            Prefix.parse("::1").mapped: Reach((), "allow"),
        }
        made = policy("127.0.0.1:80", block=("127.0.0.2", "::1", "0.0.0.0/0")).flatten()
        assert made == {
            Prefix.any(4).mapped: Reach((), "block"),
            Prefix.parse("127.0.0.0/8").mapped: Reach((), "allow"),
            Prefix.parse("127.0.0.1").mapped: Reach((), "allow"),
            Prefix.parse("127.0.0.2").mapped: Reach((), "block"),
            Prefix.parse("127.0.0.11").mapped: Reach((), "block"),
            Prefix.parse("::1").mapped: Reach((), "block"),
            **dict.fromkeys(translated("0.0.0.0/0", "127.0.0.2/32"), Reach((), "block")),
        }
        blocks = policy(block=("10.0.0.0/8",))
        assert blocks.is_allowed_by_default
        assert flat(policy("127.0.0.1:80")) == {"::ffff:127.0.0.1/128": ((80,), "none")}

    def test_a_port_leaves_the_others_to_the_prefix_around_it(self) -> None:
        made = policy("10.0.0.0/8", "10.1.0.0/16:443", "10.1.2.0/24:80", "192.0.2.0/24:1")
        assert flat(made) == {
            "::ffff:10.0.0.0/104": ((), "allow"),
            "::ffff:10.1.0.0/112": ((), "allow"),
            "::ffff:10.1.2.0/120": ((), "allow"),
            "::ffff:192.0.2.0/120": ((1,), "none"),
        }

    def test_ports_add_up(self) -> None:
        made = policy("10.0.0.0/8:443", "10.1.0.0/16:80", "10.1.2.3:443", "10.2.0.0/16:22")
        assert flat(made) == {
            "::ffff:10.0.0.0/104": ((443,), "none"),
            "::ffff:10.1.0.0/112": ((80, 443), "none"),
            "::ffff:10.1.2.3/128": ((80, 443), "none"),
            "::ffff:10.2.0.0/112": ((22, 443), "none"),
        }

    def test_the_inner_one_counts(self) -> None:
        made = policy(
            "10.0.0.0/8",
            "10.1.2.0/24:443",
            "10.1.2.3",
            "10.1.2.128/25:80",
            block=("10.1.0.0/16", "10.1.2.4"),
        )
        assert flat(made) == {
            "::ffff:10.0.0.0/104": ((), "allow"),
            "::ffff:10.1.0.0/112": ((), "block"),
            "::ffff:10.1.2.0/120": ((443,), "block"),
            "::ffff:10.1.2.3/128": ((), "allow"),
            "::ffff:10.1.2.4/128": ((), "block"),
            "::ffff:10.1.2.128/121": ((80, 443), "block"),
            "64:ff9b::a01:0/112": ((), "block"),
            "64:ff9b::a01:204/128": ((), "block"),
            "2002:a01::/32": ((), "block"),
            "2002:a01:204::/48": ((), "block"),
        }

    def test_a_block_holds_behind_a_translator_too(self) -> None:
        """NAT64 and 6to4; the exception has to be said for the IPv6 address."""
        made = policy("64:ff9b::a01:203", "2001:db8::/32", block=("10.1.2.0/24",))
        assert flat(made) == {
            "2001:db8::/32": ((), "allow"),
            "::ffff:10.1.2.0/120": ((), "block"),
            "64:ff9b::a01:200/120": ((), "block"),
            "64:ff9b::a01:203/128": ((), "allow"),
            "2002:a01:200::/40": ((), "block"),
        }

    def test_the_first_and_the_last_address_of_a_prefix_are_within(self) -> None:
        made = policy("10.0.0.0/8", "10.0.0.0:443", "10.255.255.255:443", "11.0.0.0:443")
        assert flat(made) == {
            "::ffff:10.0.0.0/104": ((), "allow"),
            "::ffff:10.0.0.0/128": ((), "allow"),
            "::ffff:10.255.255.255/128": ((), "allow"),
            "::ffff:11.0.0.0/128": ((443,), "none"),
        }

    def test_of_the_same_prefix_the_block_counts(self) -> None:
        made = policy("10.0.0.0/8:443", "::/0", block=("10.0.0.0/8", "::/0"))
        assert flat(made) == {
            "::/0": ((), "block"),
            "::ffff:0.0.0.0/96": ((), "none"),
            "::ffff:10.0.0.0/104": ((), "block"),
            "64:ff9b::a00:0/104": ((), "block"),
            "2002:a00::/24": ((), "block"),
        }

    @pytest.mark.parametrize(
        "around", ["::/0", "::/64", "::/80", "::ffff:0:0:0/80", "::fffe:0:0/95"]
    )
    def test_ipv6_says_nothing_about_ipv4(self, around: str) -> None:
        made = flat(policy(around, "10.0.0.0/8:443"))
        covers = around != "::ffff:0:0:0/80"
        assert made.pop("::ffff:0.0.0.0/96", None) == (((), "none") if covers else None)
        assert made == {around: ((), "allow"), "::ffff:10.0.0.0/104": ((443,), "none")}

    def test_all_of_ipv4_and_all_of_ipv6_are_two(self) -> None:
        made = policy("0.0.0.0/0:443", "10.0.0.0/8:80", block=("::/0",))
        assert flat(made) == {
            "::/0": ((), "block"),
            "::ffff:0.0.0.0/96": ((443,), "none"),
            "::ffff:10.0.0.0/104": ((80, 443), "none"),
        }
        assert flat(policy("0.0.0.0/0")) == {"::ffff:0.0.0.0/96": ((), "allow")}

    def test_a_prefix_made_by_hand_of_mapped_addresses_is_ipv4(self) -> None:
        by_hand = PrefixEntry(Prefix.parse("::ffff:10.0.0.0/104"))
        assert Policy(allow=(by_hand,)).flatten() == policy("10.0.0.0/8").flatten()

    def test_so_many_ports_and_no_more(self) -> None:
        ports = tuple(f"10.0.0.0/8:{port}" for port in range(1, MAX_PORTS))
        within = policy(*ports, "10.0.0.0/8:1", "10.1.0.0/16:62", "10.2.0.0/16:63")
        assert flat(within)["::ffff:10.2.0.0/112"] == ((*range(1, 62), 63), "none")
        with pytest.raises(UsageError) as raised:
            policy(*ports, "10.1.0.0/16:62", "10.1.2.0/24:63").flatten()
        assert raised.value.message == (
            "10.1.2.0/24: allowed on 63 ports, with those of the prefixes around it; 62 at most"
        )
        with pytest.raises(UsageError, match=r"^2001:db8::/32: allowed on 100 ports"):
            policy(*(f"[2001:db8::/32]:{port}" for port in range(1, 101))).flatten()

    def test_ports_that_are_open_anyhow_are_not_counted(self) -> None:
        ports = tuple(f"10.1.0.0/16:{port}" for port in range(1, 101))
        assert flat(policy("10.0.0.0/8", *ports))["::ffff:10.1.0.0/112"] == ((), "allow")
        assert flat(policy("10.1.0.0/16", *ports)) == {"::ffff:10.1.0.0/112": ((), "allow")}
        blocked = policy(*ports, block=("10.1.0.0/16",))
        assert flat(blocked)["::ffff:10.1.0.0/112"] == ((), "block")

    def test_docker_s_dns_is_allowed_by_entries_alone(self) -> None:
        key = Prefix.parse("127.0.0.11").mapped
        for allow, expected in (
            ((), Reach((), "none")),
            (("127.0.0.11",), Reach((), "allow")),
            (("127.0.0.0/8",), Reach((), "allow")),
            (("0.0.0.0/0:80", "127.0.0.11:5353"), Reach((80, 5353), "none")),
            (("::/0",), Reach((), "none")),
        ):
            assert policy(*allow).flatten()[key] == expected

    def test_a_hundred_thousand(self) -> None:
        addresses = [Prefix(4, index.to_bytes(4, "big"), 32) for index in range(0, 10**6, 10)]
        made = Policy(
            allow=tuple(PrefixEntry(prefix, 443) for prefix in addresses),
            block=(PrefixEntry(Prefix.parse("0.1.0.0/16")),),
        ).flatten()
        assert len(made) == 100_001 + 3 + 2  # loopback, and the block behind NAT64 and 6to4
        assert made[addresses[0].mapped] == Reach((443,), "none")
        assert made[Prefix.parse("0.1.0.4").mapped] == Reach((443,), "block")
        assert made[addresses[-1].mapped] == Reach((443,), "none")


class TestMerged:
    def test_has_the_entries_of_both(self) -> None:
        file = policy("a.example", "10.0.0.0/8", block=("b.example",))
        line = policy("c.example:443", "10.0.0.0/8", block=("10.0.0.1", "b.example"))
        assert file.merged(line) == policy(
            "a.example", "10.0.0.0/8", "c.example:443", block=("b.example", "10.0.0.1")
        )

    def test_with_an_empty_one_is_itself(self) -> None:
        made = policy(
            "a.example",
            block=("b.example",),
            default="allow",
            has_loopback=False,
            is_log_only=True,
            dns_upstreams=(parse_server("::1", ""),),
            refuse="refused",
        )
        assert made.merged(Policy()) == made
        assert Policy().merged(made) == made

    def test_an_allow_entry_ends_the_default_of_blocks_alone(self) -> None:
        blocks = policy(block=("a.example",))
        assert blocks.is_allowed_by_default
        assert not blocks.merged(policy("b.example")).is_allowed_by_default
        given = policy(block=("a.example",), default="allow")
        assert given.merged(policy("b.example")).is_allowed_by_default

    def test_what_can_be_had_once_only(self) -> None:
        one, other = parse_server("::1", ""), parse_server("127.0.0.1", "")
        file = Policy(default="allow", dns_upstreams=(one,), is_log_only=True)
        line = Policy(default="deny", dns_upstreams=(other,), has_loopback=False)
        made = Policy(default="deny", dns_upstreams=(other,), has_loopback=False, is_log_only=True)
        assert file.merged(line) == made


GOOD: dict[str, Any] = {
    "default": "deny",
    "allow": ["example.com:443", "10.0.0.0/8", "[2001:db8::1]:53", "."],
    "block": ["b\u00fccher.example.", "::ffff:10.9.0.0/112"],
    "dns_upstream": ["192.0.2.53", "[2001:db8::53]:5353"],
    "refuse": "refused",
    "min_ttl": 600,
    "loopback": False,
    "log_only": True,
}
MEANT = Policy(
    allow=entries("example.com:443", "10.0.0.0/8", "[2001:db8::1]:53", "."),
    block=entries("xn--bcher-kva.example", "10.9.0.0/16"),
    default="deny",
    has_loopback=False,
    is_log_only=True,
    dns_upstreams=(
        Server(4, b"\xc0\0\2\x35"),
        Server(6, Prefix.parse("2001:db8::53").address, 5353),
    ),
    refuse="refused",
    min_ttl=600,
)

error_of = partial(refusal, decode)


BAD: dict[str, tuple[str, object, str]] = {
    "unknown": ("allowed", [], "allowed: no such field"),
    "default": ("default", "drop", "default: invalid enum value 'drop'"),
    "default of another type": ("default", True, "default: expected str, got bool"),
    "allow": ("allow", "example.com", "allow: expected array, got str"),
    "allow of numbers": ("allow", ["a.example", 10], "allow[1]: expected str, got int"),
    "an entry": (
        "allow",
        ["a", "b", "c", "1.2.3"],
        "allow[3]: not an IPv4 or IPv6 address: '1.2.3'",
    ),
    "an empty entry": ("allow", [""], "allow[0]: empty"),
    "a prefix": (
        "block",
        ["10.0.0.1/8"],
        "block[0]: host bits are set in '10.0.0.1/8'; the prefix is 10.0.0.0/8",
    ),
    "a block with a port": (
        "block",
        ["a.example", "a.example:443"],
        "block[1]: a block is for all ports, and takes no port: 'a.example:443'",
    ),
    "block": ("block", {}, "block: expected array, got object"),
    "dns_upstream": ("dns_upstream", "::1", "dns_upstream: expected array, got str"),
    "a server": (
        "dns_upstream",
        ["192.0.2.53", "dns.example"],
        "dns_upstream[1]: not an IPv4 or IPv6 address: 'dns.example'",
    ),
    "refuse": ("refuse", "drop", "refuse: invalid enum value 'drop'"),
    "min_ttl": ("min_ttl", "300", "min_ttl: expected int, got str"),
    "a short min_ttl": ("min_ttl", 4, "min_ttl: not from 5 to 604800: 4"),
    "a long min_ttl": ("min_ttl", 604801, "min_ttl: not from 5 to 604800: 604801"),
    "loopback": ("loopback", 1, "loopback: expected bool, got int"),
    "log_only": ("log_only", "no", "log_only: expected bool, got str"),
}


class TestFile:
    @forms
    def test_is_read(self, form: Format) -> None:
        assert decode(written(GOOD, form), form) == MEANT

    def test_that_is_documented_is_one(self) -> None:
        _, _, text = (policy_file.__doc__ or "").partition("::\n")
        text = text.partition("Every field")[0].replace("\n    ", "\n")
        made = decode(text.encode(), "toml")
        assert set(made.as_object()) == set(msgspec.structs.asdict(policy_file._PolicyFile()))
        assert made == policy(
            "example.com:443",
            "10.0.0.0/8",
            block=("10.9.0.0/16",),
            default="deny",
            dns_upstreams=MEANT.dns_upstreams,
            refuse="nxdomain",
            min_ttl=300,
        )

    def test_may_be_empty(self) -> None:
        assert decode(b"", "toml") == decode(b"{}", "json") == Policy()

    def test_is_written_in_its_canonical_form(self) -> None:
        assert MEANT.as_object() == {
            "default": "deny",
            "allow": ["example.com:443", "10.0.0.0/8", "[2001:db8::1]:53", "."],
            "block": ["xn--bcher-kva.example", "10.9.0.0/16"],
            "dns_upstream": ["192.0.2.53:53", "[2001:db8::53]:5353"],
            "refuse": "refused",
            "min_ttl": 600,
            "loopback": False,
            "log_only": True,
        }
        # A guard of an older build has no such field, and still is the same policy.
        assert not {"default", "refuse", "min_ttl"} & set(Policy().as_object())

    @forms
    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_value_gives_its_path(self, name: str, form: Format) -> None:
        field, value, message = BAD[name]
        error = error_of(written({**GOOD, field: value}, form), form)
        assert error.message == message
        assert error.line is None
        assert message.startswith(error.path)
        assert error.path

    def test_every_field_has_a_bad_value_here(self) -> None:
        fields = {field.name for field in msgspec.structs.fields(policy_file._PolicyFile)}
        assert fields == {field for field, _, _ in BAD.values()} - {"allowed"} == set(GOOD)

    @pytest.mark.parametrize(
        ("form", "data", "line"),
        [
            ("toml", b"allow = []\nblock = [\n", 3),
            ("toml", b"allow = []\nallow = []\n", 2),
            ("json", b'{"allow": [],\n"block": }', 2),
            ("json", b'{"allow": ["\xff"]}', 1),
        ],
    )
    def test_bad_syntax_gives_its_line(self, form: Format, data: bytes, line: int) -> None:
        assert error_of(data, form).line == line

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'{"allow": [], "allow": []}', "allow: duplicate key"),
            (b'{"default": null}', "default: expected str, got null"),
            (b"[]", "expected object, got array"),
            (b'{"allow": ["\\ud800"]}', "allow[0]: "),
            (b'{"allow": ["' + b"x" * 100_000 + b'"]}', "allow[0]: longer than 1024 characters"),
            (b'{"allow": ["' + b"." * 1024 + b'"]}', "allow[0]: an empty label in"),
        ],
    )
    def test_what_only_json_can_get_wrong(self, data: bytes, message: str) -> None:
        error = error_of(data, "json")
        assert error.message.startswith(message)
        assert len(error.message) < 1000

    @forms
    def test_the_size_is_bounded(self, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
        assert policy_file.MAX_BYTES == 16 * 1024 * 1024
        data = written(GOOD, form)
        monkeypatch.setattr(policy_file, "MAX_BYTES", len(data))
        assert decode(data, form) == MEANT
        assert "larger than" in error_of(data + b"\n", form).message


def test_a_name_is_blocked_by_an_entry_and_not_by_the_default() -> None:
    policy = Policy(
        allow=(parse_entry("a.bad.example", "allow"),),
        block=(parse_entry("bad.example", "block", is_block=True),),
    )
    assert policy.is_blocked_name("www.bad.example")
    assert not policy.is_blocked_name("www.a.bad.example")
    assert not policy.is_blocked_name("other.example")
    assert policy.ports_of_name("other.example") is None
    assert Policy(block=(parse_entry(".", "block", is_block=True),)).is_blocked_name("any.example")
