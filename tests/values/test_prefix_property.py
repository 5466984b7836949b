# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes against the standard library's idea of them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import example, given
from hypothesis import strategies as st

from zfw_py.errors import UsageError
from zfw_py.values.prefix import Prefix

addresses = st.ip_addresses()


@st.composite
def prefix_texts(draw: st.DrawFn) -> str:
    address = draw(addresses)
    return f"{address}/{draw(st.integers(0, address.max_prefixlen))}"


def network_of(prefix: Prefix) -> IPv4Network | IPv6Network:
    """Through bytes, not text. Strict: host bits that are set are an error."""
    kind = IPv4Network if prefix.family == 4 else IPv6Network
    return kind((int.from_bytes(prefix.address, "big"), prefix.length))


@given(prefix_texts())
@example("::ffff:1.2.3.4/128")
@example("::1.2.3.4/100")
@example("255.255.255.255/0")
def test_host_bits_are_dropped_and_nothing_else(text: str) -> None:
    prefix = Prefix.parse(text)
    assert network_of(prefix) == ip_network(text, strict=False)


@given(prefix_texts())
@example("1::0:0:1:0:0/80")
def test_what_is_printed_is_read_back(text: str) -> None:
    prefix = Prefix.parse(text)
    assert Prefix.parse(str(prefix)) == prefix
    assert ip_network(str(prefix)) == network_of(prefix)
    assert ip_address(prefix.address_text).packed == prefix.address


@given(prefix_texts())
def test_a_length_given_apart_is_the_same(text: str) -> None:
    address, _, length = text.partition("/")
    assert Prefix.parse(address, int(length)) == Prefix.parse(text)


@given(prefix_texts())
def test_the_kernel_s_form_is_read_back(text: str) -> None:
    prefix = Prefix.parse(text)
    address, length = prefix.mapped
    assert len(address) == 16
    assert 0 <= length <= 128
    assert Prefix.from_mapped(prefix.family, address, length) == prefix


@given(prefix_texts(), prefix_texts())
@example("::ffff:1.2.3.4/128", "1.2.3.4/32")
@example("::/0", "0.0.0.0/0")
def test_prefixes_are_equal_where_networks_are(one: str, other: str) -> None:
    is_same = ip_network(one, strict=False) == ip_network(other, strict=False)
    assert (Prefix.parse(one) == Prefix.parse(other)) == is_same
    assert len({Prefix.parse(one), Prefix.parse(other)}) == (1 if is_same else 2)


@given(addresses, st.integers())
def test_a_length_is_one_that_the_family_has_or_an_error(address: object, length: int) -> None:
    text = str(address)
    if 0 <= length <= (128 if ":" in text else 32):
        assert Prefix.parse(text, length).length == length
    else:
        try:
            Prefix.parse(text, length)
        except UsageError:
            return
        raise AssertionError("accepted")


@given(st.text() | st.text("0123456789abcdefx.:/ ", max_size=24))
@example("1.2.3")
@example("0x7f000001")
@example("1.2.3.4/032")
def test_any_text_is_a_prefix_to_both_or_a_usage_error(text: str) -> None:
    try:
        prefix = Prefix.parse(text)
    except UsageError:
        return
    # Not the other way round: Python takes masks and zones as well.
    assert network_of(prefix) == ip_network(text, strict=False)
