# SPDX-License-Identifier: GPL-2.0-only
"""A document that is written and read again is the same."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from zfw_py.errors import UsageError
from zfw_py.firewall.document import (
    AttachmentEntry,
    Document,
    DocumentError,
    FlowEntry,
    Format,
    RuleEntry,
    Settings,
    decode,
    encode,
)
from zfw_py.firewall.flow_limits import LIMITS
from zfw_py.firewall.model import MAX_INTERFACE_NAME, MAX_SERVICE_ID, check_interface_name
from zfw_py.values.prefix import Prefix

FORMS: tuple[Format, ...] = ("toml", "json")
ports = st.integers(0, 0xFFFF)
directions = st.sampled_from(("ingress", "egress"))
# Every byte that the kernel takes, and UTF-8 or not.
visible = st.binary(max_size=MAX_SERVICE_ID).map(
    lambda data: bytes(c for c in data if c > 32 and c != 127)
)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs")), max_size=16)
raw_texts = visible.map(lambda data: data.decode("utf-8", "surrogateescape"))
service_ids = texts | raw_texts


def is_name(text: str) -> bool:
    try:
        check_interface_name(text, "")
    except UsageError:
        return False
    return True


names = (texts | raw_texts.map(lambda text: text[:MAX_INTERFACE_NAME])).filter(
    is_name
) | st.sampled_from(("eth0", "eth0.100", "a=b", '"', "#"))


@st.composite
def entries(draw: st.DrawFn) -> RuleEntry:
    family = draw(st.sampled_from((4, 6)))

    def prefix() -> str:
        size = 4 if family == 4 else 16
        address = draw(st.binary(min_size=size, max_size=size))
        return str(Prefix(family, address, draw(st.integers(0, 8 * size))))

    low = draw(ports)
    direction = draw(directions)
    actions = ("pass", "deny") if direction == "egress" else ("intercept", "pass", "deny")
    action = draw(st.sampled_from(actions))
    return RuleEntry(
        destination=f"own{family}" if direction == "ingress" and draw(st.booleans()) else prefix(),
        source=prefix() if draw(st.booleans()) else UNSET,
        direction=direction,
        protocol=draw(st.sampled_from(("tcp", "udp"))),
        low_port=low,
        high_port=draw(st.integers(low, 0xFFFF)) if draw(st.booleans()) else UNSET,
        action=action,
        tproxy_port=draw(st.integers(1, 0xFFFF)) if action == "intercept" else 0,
        service_id=draw(service_ids),
        interfaces=(interfaces := tuple(draw(st.lists(names, max_size=3)))),
        limited=bool(interfaces) and draw(st.booleans()),
        route=draw(st.booleans()),
    )


def _key(entry: RuleEntry) -> object:
    only = Document(version=1, rules=(entry,))
    return only.parsed_rules[0].key


documents = st.builds(
    Document,
    version=st.just(1),
    flows=st.builds(
        FlowEntry,
        **{name: st.integers(least, most) for name, (least, most, _, _) in LIMITS.items()},
    ),
    settings=st.dictionaries(
        names, st.builds(Settings, **dict.fromkeys(Settings.__struct_fields__, st.booleans()))
    ),
    attachments=st.lists(
        st.builds(
            AttachmentEntry,
            interface=names,
            direction=directions,
            mode=st.sampled_from(("auto", "tcx", "clsact")),
        ),
        unique_by=lambda entry: (entry.interface, entry.direction),
        max_size=4,
    ).map(tuple),
    rules=st.lists(entries(), unique_by=_key, max_size=4).map(tuple),
)


def attempt(data: bytes, form: Format) -> Document | DocumentError:
    """What comes of reading it; any other exception is a fault."""
    try:
        return decode(data, form)
    except DocumentError as error:
        return error


@given(documents)
def test_a_document_round_trips(document: Document) -> None:
    for form in FORMS:
        text = json.dumps(msgspec.to_builtins(document), ensure_ascii=False)
        if form == "toml" and any("\udc80" <= c <= "\udcff" for c in text):
            with pytest.raises(DocumentError, match="not UTF-8"):
                encode(document, form)
            continue
        data = encode(document, form)
        assert decode(data, form) == document
        assert encode(decode(data, form), form) == data


@given(entries())
def test_an_entry_of_the_rule_of_an_entry_means_the_same(entry: RuleEntry) -> None:
    rule = Document(version=1, rules=(entry,)).parsed_rules[0]
    again = Document(version=1, rules=(RuleEntry.of(rule),)).parsed_rules[0]
    for name in ("key", "high_port", "action", "tproxy_port", "service_id", "interfaces"):
        assert getattr(rule, name) == getattr(again, name)
    assert rule.is_routed == again.is_routed


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore"))
)
def test_whatever_is_read_is_a_document_or_a_document_error(data: bytes) -> None:
    for form in FORMS:
        assert attempt(data, form)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("version", "rules", "settings", "attachments", "destination", "eth0", "x")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"version": st.just(1)},
        optional={"rules": _json, "settings": _json, "attachments": _json, "flows": _json},
    )
)
def test_whatever_json_is_read_is_a_document_or_a_document_error(raw: dict[str, object]) -> None:
    made = attempt(json.dumps(raw).encode(), "json")
    assert isinstance(made, Document) or made.path
