# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes, keys and rules: what they accept, what they refuse, what they compare as."""

from __future__ import annotations

import pytest

from zfw_py.errors import UsageError
from zfw_py.firewall.model import (
    FIELDS,
    OWN4,
    OWN6,
    Rule,
    RuleKey,
    RuleText,
    check_interface_name,
    check_service_id,
    parse_destination,
    parse_length,
    parse_port,
    parse_protocol,
)
from zfw_py.values.prefix import Prefix, parse_address

HERE = Prefix.parse("192.0.2.1")
HERE_IPV6 = Prefix.parse("2001:db8::1")


def key(low_port: int = 80, **others: object) -> RuleKey:
    return RuleKey(HERE, "tcp", low_port, **others)  # type: ignore[arg-type]


class TestOwnAddresses:
    @pytest.mark.parametrize(("text", "own"), [("own4", OWN4), ("own6", OWN6)])
    def test_are_read_and_written(self, text: str, own: Prefix) -> None:
        assert parse_destination(text, None, "-c", "-m") is own
        assert str(own) == text
        assert own.family == int(text[-1])

    def test_are_equal_to_themselves_alone(self) -> None:
        others = [OWN4, OWN6, Prefix.parse("0.0.0.0"), Prefix.parse("::"), Prefix.any(4)]
        assert [[a == b for b in others] for a in others] == [
            [place == number for number in range(5)] for place in range(5)
        ]
        assert len({*others}) == 5
        assert RuleKey(OWN4, "tcp", 1) == RuleKey(OWN4, "tcp", 1)

    @pytest.mark.parametrize("text", ["own", "own5", "OWN4", "own4/32", "own4 ", "local"])
    def test_have_no_other_name(self, text: str) -> None:
        with pytest.raises(UsageError, match="-c: not an IPv4 or IPv6 address"):
            parse_destination(text, None, "-c", "-m")

    def test_take_no_length(self) -> None:
        with pytest.raises(UsageError, match="-m: not together with own4"):
            parse_destination("own4", 32, "-c", "-m")

    def test_have_rules_of_ingress_alone(self) -> None:
        with pytest.raises(UsageError, match="destination: nothing leaves for own6"):
            RuleKey(OWN6, "tcp", 1, direction="egress")

    def test_have_a_source_of_their_family(self) -> None:
        assert str(RuleKey(OWN6, "tcp", 1)) == "ingress tcp own6 port 1"
        with pytest.raises(UsageError, match=r"source: 192\.0\.2\.1/32 is not IPv6"):
            RuleKey(OWN6, "tcp", 1, source=HERE)

    def test_are_no_words_of_the_classic_grammar(self) -> None:
        with pytest.raises(UsageError, match="not an IPv4 or IPv6 address: 'own4'"):
            RuleText({"destination": "own4"}, FIELDS).destination()


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "family", "packed"),
        [
            ("192.0.2.1", 4, b"\xc0\0\2\1"),
            ("0.0.0.0", 4, bytes(4)),
            ("2001:db8::1", 6, bytes.fromhex("20010db8000000000000000000000001")),
            ("::", 6, bytes(16)),
            ("::ffff:192.0.2.1", 6, bytes(10) + b"\xff\xff\xc0\0\2\1"),
        ],
    )
    def test_is_read(self, text: str, family: int, packed: bytes) -> None:
        assert parse_address(text, "-c") == (family, packed)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "1.2.3",  # inet_aton takes these four
            "0x7f000001",
            "2130706433",
            "010.0.0.1",
            "1.2.3.4.5",
            "300.1.1.1",
            " 1.2.3.4",
            "1.2.3.4\n",
            "1.2.3.4\0",
            "fe80::1%lo",
            ":::",
            "host.example",
            "\u0661.2.3.4",
            "\udcff",
        ],
    )
    def test_that_is_none_is_refused_and_the_option_named(self, text: str) -> None:
        with pytest.raises(UsageError, match="-c, --dcidr-block"):
            parse_address(text, "-c, --dcidr-block")


class TestPrefix:
    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.73.0.4/24", "10.73.0.0/24"),
            ("255.255.255.255/0", "0.0.0.0/0"),
            ("255.255.255.255/1", "128.0.0.0/1"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/31", "10.1.2.2/31"),
            ("fd00::1/64", "fd00::/64"),
            ("fd00::1", "fd00::1/128"),
            ("ffff::/3", "e000::/3"),
            ("FD00:0::1/128", "fd00::1/128"),
            ("::/0", "::/0"),
        ],
    )
    def test_is_canonical(self, text: str, canonical: str) -> None:
        prefix = Prefix.parse(text)
        assert str(prefix) == canonical
        assert prefix == Prefix.parse(canonical)
        assert hash(prefix) == hash(Prefix.parse(canonical))

    def test_takes_a_length_given_apart(self) -> None:
        assert str(Prefix.parse("10.1.2.3", 8)) == "10.0.0.0/8"

    def test_takes_two_lengths_that_agree(self) -> None:
        assert str(Prefix.parse("10.1.2.3/8", 8)) == "10.0.0.0/8"

    def test_refuses_two_lengths_that_differ(self) -> None:
        with pytest.raises(UsageError, match=r"-c.*contradicts"):
            Prefix.parse("10.1.2.3/8", 16, "-c")

    @pytest.mark.parametrize(
        "text",
        [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0.0/8 ",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/\u0668",
            pytest.param("10.0.0.0/" + "8" * 5000, id="more digits than int() takes"),
            "fd00::/129",
            "fd00::/x",
            "/8",
        ],
    )
    def test_refuses_a_length_that_is_none(self, text: str) -> None:
        with pytest.raises(UsageError, match="-c"):
            Prefix.parse(text, option="-c")

    @pytest.mark.parametrize(("text", "length"), [("10.0.0.0", 33), ("fd00::", 129), ("::", -1)])
    def test_refuses_a_length_apart_that_its_family_has_not(self, text: str, length: int) -> None:
        with pytest.raises(UsageError, match="-m"):
            Prefix.parse(text, length, "-m")

    @pytest.mark.parametrize(("family", "length"), [(4, 33), (4, -1), (6, 129)])
    def test_cannot_be_made_with_a_length_that_its_family_has_not(
        self, family: int, length: int
    ) -> None:
        with pytest.raises(UsageError):
            Prefix(family, bytes(4 if family == 4 else 16), length)

    def test_of_any_address_has_length_zero(self) -> None:
        assert (str(Prefix.any(4)), str(Prefix.any(6))) == ("0.0.0.0/0", "::/0")

    def test_is_mapped_as_the_kernel_maps_have_it(self) -> None:
        assert Prefix.parse("10.0.0.0/8").mapped == (bytes(10) + b"\xff\xff\x0a\0\0\0", 104)
        assert Prefix.parse("fd00::/8").mapped == (b"\xfd" + bytes(15), 8)

    def test_of_a_mapped_address_is_not_the_ipv4_prefix(self) -> None:
        assert Prefix.parse("::ffff:192.0.2.1") != HERE
        assert len({Prefix.parse("::ffff:192.0.2.1"), HERE}) == 2
        assert Prefix.any(4) != Prefix.any(6)

    def test_is_equal_to_nothing_else(self) -> None:
        assert HERE != "192.0.2.1/32"

    def test_shows_how_to_make_it(self) -> None:
        assert repr(HERE) == "Prefix.parse('192.0.2.1/32')"


class TestWords:
    @pytest.mark.parametrize(("text", "port"), [("0", 0), ("22", 22), ("65535", 65535)])
    def test_port(self, text: str, port: int) -> None:
        assert parse_port(text, "-l") == port

    @pytest.mark.parametrize(
        "text",
        ["", "65536", "70000", "4294967318", "-1", "+1", "x", "0x16", "2 2", "22\n", "\u0662"],
    )
    def test_port_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="-l"):
            parse_port(text, "-l")

    @pytest.mark.parametrize(("text", "length"), [("0", 0), ("32", 32), ("128", 128)])
    def test_length(self, text: str, length: int) -> None:
        assert parse_length(text, "-m") == length

    @pytest.mark.parametrize("text", ["", "129", "-1", "+8", "255.0.0.0", "0x8", " 8", "1e1"])
    def test_length_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="-m"):
            parse_length(text, "-m")

    @pytest.mark.parametrize("text", ["tcp", "TCP", "Tcp"])
    def test_protocol(self, text: str) -> None:
        assert parse_protocol(text, "-p") == "tcp"

    @pytest.mark.parametrize("text", ["", "6", "17", "sctp", "tcp ", "icmp"])
    def test_protocol_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="-p"):
            parse_protocol(text, "-p")

    @pytest.mark.parametrize("name", ["eth0", "a" * 15, "eth0.100", "tun-x", "\u00e9th0", "wg@1"])
    def test_interface_name(self, name: str) -> None:
        assert check_interface_name(name, "-N") == name

    @pytest.mark.parametrize(
        "name",
        ["", "a" * 16, "\u00e9" * 8, "a/b", ".", "..", "a b", "a\tb", "a\0b", "a\x7f", "eth0:1"],
    )
    def test_interface_name_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="-N"):
            check_interface_name(name, "-N")

    @pytest.mark.parametrize(
        "text",
        ["", "5XzC8mf1RrFO2vmfHGG5GL", "-foo123", ".foo123", "x" * 64, "\u00fc" * 32, "\udcff"],
    )
    def test_service_id(self, text: str) -> None:
        assert check_service_id(text, "-s") == text

    @pytest.mark.parametrize(
        "text", ["x" * 65, "\u00fc" * 33, "a b", "a\nb", "\x1b[31m", "a\0", "a\x7f", "\u00fc\n"]
    )
    def test_service_id_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="-s"):
            check_service_id(text, "-s")


class TestRuleKey:
    def test_means_ingress_from_anywhere_if_not_said_otherwise(self) -> None:
        assert key().direction == "ingress"
        assert key().source == Prefix.any(4)
        assert RuleKey(HERE_IPV6, "tcp", 80).source == Prefix.any(6)

    def test_takes_any_ipv4_source_for_any_ipv6_source_as_routers_say_it(self) -> None:
        assert RuleKey(HERE_IPV6, "tcp", 80, source=Prefix.any(4)).source == Prefix.any(6)

    @pytest.mark.parametrize(
        ("destination", "source"),
        [(HERE_IPV6, Prefix.parse("10.0.0.0/8")), (HERE, HERE_IPV6), (HERE, Prefix.any(6))],
    )
    def test_refuses_two_families(self, destination: Prefix, source: Prefix) -> None:
        with pytest.raises(UsageError, match=r"^source: .* is not IPv[46] as the destination is$"):
            RuleKey(destination, "tcp", 80, source=source)

    @pytest.mark.parametrize(
        ("protocol", "low_port", "direction"),
        [
            ("icmp", 80, "ingress"),
            ("TCP", 80, "ingress"),
            ("tcp", 80, "both"),
            ("tcp", 80, ""),
            ("tcp", -1, "ingress"),
            ("tcp", 65536, "ingress"),
        ],
    )
    def test_refuses_what_it_does_not_know(
        self, protocol: str, low_port: int, direction: str
    ) -> None:
        with pytest.raises(UsageError):
            RuleKey(HERE, protocol, low_port, direction=direction)

    def test_is_equal_by_value(self) -> None:
        same = RuleKey(Prefix.parse("192.0.2.1/32"), "tcp", 80, source=Prefix.any(4))
        assert key() == same
        assert hash(key()) == hash(same)

    @pytest.mark.parametrize(
        "other",
        [
            RuleKey(HERE, "udp", 80),
            RuleKey(HERE, "tcp", 81),
            RuleKey(HERE, "tcp", 80, direction="egress"),
            RuleKey(HERE, "tcp", 80, source=HERE),
            RuleKey(Prefix.parse("192.0.2.0/31"), "tcp", 80),
            "ingress tcp 192.0.2.1/32 port 80",
        ],
    )
    def test_differs_in_every_part(self, other: object) -> None:
        assert key() != other

    def test_reads_as_a_sentence(self) -> None:
        assert str(key()) == "ingress tcp 192.0.2.1/32 port 80"
        assert str(key(source=HERE)) == "ingress tcp 192.0.2.1/32 from 192.0.2.1/32 port 80"
        assert repr(key()) == "<RuleKey ingress tcp 192.0.2.1/32 port 80>"

    def test_knows_its_family(self) -> None:
        assert (key().family, RuleKey(HERE_IPV6, "tcp", 1).family) == (4, 6)


class TestRule:
    def test_is_for_one_port_if_not_said_otherwise(self) -> None:
        assert Rule(key(80)).high_port == 80

    @pytest.mark.parametrize(
        ("options", "action"),
        [({}, "pass"), ({"tproxy_port": 1}, "intercept"), ({"deny": True}, "deny")],
    )
    def test_action_follows_from_port_and_deny(
        self, options: dict[str, int | bool], action: str
    ) -> None:
        assert Rule(key(), **options).action == action  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("low_port", "high_port"), [(0, 65535), (0, 0), (65535, 65535), (22, 30)]
    )
    def test_takes_a_range(self, low_port: int, high_port: int) -> None:
        assert Rule(key(low_port), high_port).high_port == high_port

    @pytest.mark.parametrize(("low_port", "high_port"), [(10, 5), (10, 65536), (1, 0), (0, -1)])
    def test_refuses_a_range_that_is_none(self, low_port: int, high_port: int) -> None:
        with pytest.raises(UsageError, match="high port"):
            Rule(key(low_port), high_port)

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_refuses_a_tproxy_port_that_is_none(self, port: int) -> None:
        with pytest.raises(UsageError, match="tproxy port"):
            Rule(key(), tproxy_port=port)

    def test_refuses_to_deny_and_to_intercept(self) -> None:
        with pytest.raises(UsageError, match="deny"):
            Rule(key(), tproxy_port=1, deny=True)

    def test_refuses_to_intercept_on_egress(self) -> None:
        with pytest.raises(UsageError, match="egress"):
            Rule(key(direction="egress"), tproxy_port=1)

    def test_names_each_interface_once_in_order(self) -> None:
        assert Rule(key(), interfaces=["eth1", "eth0", "eth1"]).interfaces == ("eth0", "eth1")

    def test_refuses_interfaces_and_service_ids_that_are_none(self) -> None:
        with pytest.raises(UsageError, match="interface"):
            Rule(key(), interfaces=("a/b",))
        with pytest.raises(UsageError, match="service id"):
            Rule(key(), service_id="x" * 65)

    def test_reads_as_a_sentence(self) -> None:
        assert str(Rule(key())) == "ingress tcp 192.0.2.1/32 port 80 pass"
        assert (
            repr(Rule(key(), 90, tproxy_port=5))
            == "<Rule ingress tcp 192.0.2.1/32 port 80-90 intercept>"
        )

    def test_takes_no_attribute_that_it_does_not_have(self) -> None:
        with pytest.raises(AttributeError):
            Rule(key()).hihg_port = 1  # type: ignore[attr-defined]
