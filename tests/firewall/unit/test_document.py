# SPDX-License-Identifier: GPL-2.0-only
"""Documents: every bad value gives its path, bad syntax its line; what is written is stable."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.command import captured
from tests.support.documents import forms, refusal, written
from zfw_py.firewall import document as module
from zfw_py.firewall import layout
from zfw_py.firewall.document import (
    MAX_RULES,
    Document,
    DocumentError,
    FlowEntry,
    Format,
    RuleEntry,
    Settings,
    decode,
    encode,
)
from zfw_py.firewall.interfaces import settings_of
from zfw_py.firewall.model import Rule, RuleKey
from zfw_py.firewall.settings import SETTINGS
from zfw_py.values.prefix import Prefix

ROOT = Path(__file__).resolve().parents[3]

GOOD: dict[str, Any] = {
    "version": 1,
    "flows": {"udp_idle": 31, "tcp_idle": 3601, "max_flows": 65536},
    "settings": {"eth0": {"ipv6": True}, "eth0.100": {"ssh": False}},
    "attachments": [
        {"interface": "eth0"},
        {"interface": "eth0", "direction": "egress", "mode": "tcx"},
    ],
    "rules": [
        {
            "destination": "100.72.0.4/32",
            "protocol": "tcp",
            "low_port": 22,
            "action": "intercept",
            "tproxy_port": 43321,
            "service_id": "wiki",
            "interfaces": ["eth0"],
            "limited": True,
            "route": True,
        },
        {
            "destination": "fd72::/16",
            "source": "fd00::/8",
            "direction": "egress",
            "protocol": "udp",
            "low_port": 1,
            "high_port": 9,
            "action": "deny",
        },
    ],
}

TEXT = """\
# A firewall, as zfw save writes it (document version 1).
# zfw restore makes the firewall equal to it; docs/PERSISTENCE.md says what each field is.
# Of rules with the same prefixes and protocol the first that matches wins.
version = 1

[flows]
udp_idle = 31
tcp_idle = 3601
max_flows = 65536

[settings.eth0]
ipv6 = true

[settings."eth0.100"]
ssh = false

[[attachments]]
interface = "eth0"

[[attachments]]
interface = "eth0"
direction = "egress"
mode = "tcx"

[[rules]]
destination = "100.72.0.4/32"
protocol = "tcp"
low_port = 22
action = "intercept"
tproxy_port = 43321
service_id = "wiki"
interfaces = [
    "eth0",
]
limited = true
route = true

[[rules]]
destination = "fd72::/16"
source = "fd00::/8"
direction = "egress"
protocol = "udp"
low_port = 1
high_port = 9
action = "deny"
"""

JSON_TEXT = """\
{
  "version": 1,
  "flows": {"udp_idle": 31, "tcp_idle": 3601, "max_flows": 65536},
  "settings": {
    "eth0": {"ipv6": true},
    "eth0.100": {"ssh": false}
  },
  "attachments": [
    {"interface": "eth0"},
    {"interface": "eth0", "direction": "egress", "mode": "tcx"}
  ],
  "rules": [
    {"destination": "100.72.0.4/32", "protocol": "tcp", "low_port": 22, "action": "intercept", \
"tproxy_port": 43321, "service_id": "wiki", "interfaces": ["eth0"], \
"limited": true, "route": true},
    {"destination": "fd72::/16", "source": "fd00::/8", "direction": "egress", "protocol": "udp", \
"low_port": 1, "high_port": 9, "action": "deny"}
  ]
}
"""


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """GOOD with another value at a path; ``...`` takes the value away."""
    raw: Any = deepcopy(GOOD)
    place = raw
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return raw  # type: ignore[no-any-return]


error_of = partial(refusal, decode)


def test_what_is_written() -> None:
    made = decode(written(GOOD, "json"), "json")
    assert encode(made, "toml").decode() == TEXT
    assert encode(made, "json").decode() == JSON_TEXT
    assert decode(TEXT.encode(), "toml") == decode(JSON_TEXT.encode(), "json") == made


@forms
def test_an_empty_one(form: Format) -> None:
    empty = Document(version=1)
    assert decode(encode(empty, form), form) == empty
    assert decode(b"version = 1", "toml") == decode(b'{"version": 1}', "json") == empty


def test_the_rules_that_it_means() -> None:
    first, second = decode(TEXT.encode(), "toml").parsed_rules
    assert first.key == RuleKey(Prefix.parse("100.72.0.4/32"), "tcp", 22)
    assert (first.high_port, first.action, first.tproxy_port) == (22, "intercept", 43321)
    assert (first.service_id, first.interfaces, first.is_routed) == ("wiki", ("eth0",), True)
    assert second.key.source == Prefix.parse("fd00::/8")
    assert (second.key.direction, second.high_port, second.action) == ("egress", 9, "deny")
    assert not second.is_routed


def test_an_entry_leaves_out_what_goes_without_saying() -> None:
    rule = Rule(RuleKey(Prefix.parse("10.0.0.0/8"), "udp", 53))
    assert msgspec.to_builtins(RuleEntry.of(rule)) == {
        "destination": "10.0.0.0/8",
        "protocol": "udp",
        "low_port": 53,
        "action": "pass",
    }


@forms
def test_defaults_are_left_out_however_they_came_about(form: Format) -> None:
    direction = "".join(["in", "gress"])
    mode = "".join(["au", "to"])
    made = [
        Document(
            version=1,
            attachments=(module.AttachmentEntry(interface="a", direction=one, mode=other),),  # type: ignore[arg-type]
            rules=(
                RuleEntry(
                    destination="::/0",
                    protocol="tcp",
                    low_port=1,
                    action="pass",
                    direction=one,  # type: ignore[arg-type]
                ),
            ),
        )
        for one, other in (("ingress", "auto"), (direction, mode))
    ]
    assert encode(made[0], form) == encode(made[1], form)
    assert b"ingress" not in encode(made[0], form)


LONG = "x" * 65
BAD: dict[str, tuple[tuple[str | int, ...], object, str]] = {
    "version of another time": (
        ("version",),
        2,
        "version: 2 is unknown; this zfw reads documents of version 1",
    ),
    "version 0": (("version",), 0, "version: 0 is unknown"),
    "version text": (("version",), "1", "version: expected int, got str"),
    "version bool": (("version",), True, "version: expected int, got bool"),
    "version float": (("version",), 1.0, "version: expected int, got float"),
    "version missing": (("version",), ..., "version: missing"),
    "top": (("wat",), 1, "wat: no such field"),
    "flows": (("flows",), [], "flows: expected object, got array"),
    "udp_idle": (("flows", "udp_idle"), 0, "flows.udp_idle: expected int >= 1"),
    "tcp_idle": (("flows", "tcp_idle"), "1h", "flows.tcp_idle: expected int, got str"),
    "max_flows": (("flows", "max_flows"), 2**32, "flows.max_flows: expected int <= 16777216"),
    "flows other": (("flows", "icmp"), 1, "flows.icmp: no such field"),
    "settings": (("settings",), [], "settings: expected object, got array"),
    "settings name": (
        ("settings", "a b"),
        {},
        "settings.a b: not an interface name: 'a b'",
    ),
    "settings of": (("settings", "eth0"), True, "settings.eth0: expected object, got bool"),
    "settings other": (
        ("settings", "eth0.100", "sssh"),
        True,
        "settings.eth0.100.sssh: no such field",
    ),
    **{
        f"setting {name}": (
            ("settings", "eth0", name),
            "on",
            f"settings.eth0.{name}: expected bool, got str",
        )
        for name in SETTINGS
    },
    "attachments": (("attachments",), {}, "attachments: expected array, got object"),
    "attachment": (("attachments", 1), "eth0", "attachments[1]: expected object, got str"),
    "attachment interface": (
        ("attachments", 1, "interface"),
        "sixteen-letters-",
        "attachments[1].interface: not an interface name: 'sixteen-letters-'",
    ),
    "attachment interface missing": (
        ("attachments", 0, "interface"),
        ...,
        "attachments[0].interface: missing",
    ),
    "attachment direction": (
        ("attachments", 1, "direction"),
        "both",
        "attachments[1].direction: invalid enum value 'both'",
    ),
    "attachment mode": (
        ("attachments", 1, "mode"),
        "xdp",
        "attachments[1].mode: invalid enum value 'xdp'",
    ),
    "attachment twice": (
        ("attachments", 1, "direction"),
        "ingress",
        "attachments[1]: same interface and direction as attachments[0]",
    ),
    "attachment other": (("attachments", 0, "prio"), 1, "attachments[0].prio: no such field"),
    "rules": (("rules",), {}, "rules: expected array, got object"),
    "rule": (("rules", 1), 1, "rules[1]: expected object, got int"),
    "rule other": (("rules", 1, "packets"), 1, "rules[1].packets: no such field"),
    **{
        f"{field} missing": (("rules", 1, field), ..., f"rules[1].{field}: missing")
        for field in ("destination", "protocol", "low_port", "action")
    },
    "destination": (
        ("rules", 1, "destination"),
        "10.0.0.300",
        "rules[1].destination: not an IPv4 or IPv6 address: '10.0.0.300'",
    ),
    "destination length": (
        ("rules", 0, "destination"),
        "10.0.0.0/33",
        "rules[0].destination: prefix length of '10.0.0.0/33' is not within 0 to 32",
    ),
    "destination number": (
        ("rules", 1, "destination"),
        7,
        "rules[1].destination: expected str, got int",
    ),
    "source": (
        ("rules", 1, "source"),
        "any",
        "rules[1].source: not an IPv4 or IPv6 address: 'any'",
    ),
    "source family": (
        ("rules", 1, "source"),
        "10.0.0.0/8",
        "rules[1].source: 10.0.0.0/8 is not IPv6 as the destination is",
    ),
    "direction": (
        ("rules", 1, "direction"),
        "out",
        "rules[1].direction: invalid enum value 'out'",
    ),
    "protocol": (("rules", 1, "protocol"), "icmp", "rules[1].protocol: invalid enum value 'icmp'"),
    "low_port": (("rules", 1, "low_port"), 65536, "rules[1].low_port: expected int <= 65535"),
    "low_port below": (("rules", 1, "low_port"), -1, "rules[1].low_port: expected int >= 0"),
    "low_port text": (("rules", 1, "low_port"), "22", "rules[1].low_port: expected int, got str"),
    "high_port": (("rules", 1, "high_port"), 70000, "rules[1].high_port: expected int <= 65535"),
    "high_port below": (
        ("rules", 1, "high_port"),
        0,
        "rules[1].high_port: 0 is below the low port 1",
    ),
    "own egress": (
        ("rules", 1, "destination"),
        "own6",
        "rules[1].destination: nothing leaves for own6: a rule for it is one of ingress",
    ),
    "own": (
        ("rules", 0, "destination"),
        "own",
        "rules[0].destination: not an IPv4 or IPv6 address: 'own'",
    ),
    "action": (("rules", 1, "action"), "drop", "rules[1].action: invalid enum value 'drop'"),
    "action egress": (
        ("rules", 0, "direction"),
        "egress",
        "rules[0].tproxy_port: an egress rule cannot intercept; use 0",
    ),
    "tproxy_port": (
        ("rules", 0, "tproxy_port"),
        1e5,
        "rules[0].tproxy_port: expected int, got float",
    ),
    "tproxy_port 0": (
        ("rules", 0, "tproxy_port"),
        0,
        "rules[0].tproxy_port: has to be 1 to 65535 for intercept: 0",
    ),
    "tproxy_port of deny": (
        ("rules", 1, "tproxy_port"),
        80,
        "rules[1].tproxy_port: has to be 0 for deny: 80",
    ),
    "service_id": (
        ("rules", 1, "service_id"),
        LONG,
        f"rules[1].service_id: longer than 64 bytes: '{LONG}'",
    ),
    "service_id blank": (
        ("rules", 1, "service_id"),
        "a b",
        "rules[1].service_id: blanks or control characters in 'a b'",
    ),
    "interfaces": (
        ("rules", 0, "interfaces"),
        "eth0",
        "rules[0].interfaces: expected array, got str",
    ),
    "interface": (
        ("rules", 0, "interfaces"),
        ["eth0", "a/b"],
        "rules[0].interfaces[1]: not an interface name: 'a/b'",
    ),
    "interface number": (
        ("rules", 0, "interfaces"),
        ["eth0", 1],
        "rules[0].interfaces[1]: expected str, got int",
    ),
    "limited": (("rules", 0, "limited"), 1, "rules[0].limited: expected bool, got int"),
    "limited to nothing": (
        ("rules", 1, "limited"),
        True,
        "rules[1].limited: a rule without interfaces counts on all of them",
    ),
    "interfaces many": (
        ("rules", 0, "interfaces"),
        ["eth0"] * 1025,
        "rules[0].interfaces: expected array of length <= 1024",
    ),
    "route": (("rules", 0, "route"), "yes", "rules[0].route: expected bool, got str"),
    "settings many": (
        ("settings",),
        {f"eth{n}": {} for n in range(1025)},
        "settings: expected object of length <= 1024",
    ),
}


@forms
@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_gives_its_path(name: str, form: Format) -> None:
    path, value, message = BAD[name]
    error = error_of(written(changed(path, value), form), form)
    assert error.message.startswith(message)
    assert error.line is None
    assert error.message.startswith(error.path)


def test_every_field_has_a_bad_value_here() -> None:
    def fields(kind: type[msgspec.Struct]) -> set[str]:
        return {field.encode_name for field in msgspec.structs.fields(kind)}

    tried = {path[0] for path, _, _ in BAD.values() if len(path) == 1}
    assert fields(Document) <= tried
    for place, kind in (
        ("flows", FlowEntry),
        ("settings", Settings),
        ("attachments", module.AttachmentEntry),
        ("rules", RuleEntry),
    ):
        assert fields(kind) <= {path[-1] for path, _, _ in BAD.values() if path[0] == place}


@forms
def test_the_key_of_a_rule_stands_once(form: Format) -> None:
    """However it is spelled."""
    raw = deepcopy(GOOD)
    raw["rules"].append(
        {
            "destination": "100.72.0.4",
            "source": "0.0.0.0/0",
            "protocol": "tcp",
            "low_port": 22,
            "action": "deny",
        }
    )
    assert error_of(written(raw, form), form).message == "rules[2]: same key as rules[0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1, "version": 1}', "version: duplicate key"),
        ('{"version": 1, "rules": [], "rules": []}', "rules: duplicate key"),
        ('{"version": 1, "settings": {"eth0": {}, "eth0": {}}}', "settings.eth0: duplicate key"),
        (
            '{"version": 1, "settings": {"eth0": {"ssh": true, "ssh": true}}}',
            "settings.eth0.ssh: duplicate key",
        ),
        (
            '{"version": 1, "rules": [{"low_port": 1, "low_port": 2}]}',
            "rules[0].low_port: duplicate key",
        ),
        ('{"version": 1, "flows": null}', "flows: expected object, got null"),
        ("[1]", "expected object, got array"),
        ("null", "expected object, got null"),
        ('{"version": 1, "settings": {"\\ud800": {}}}', "settings.\ud800: not an interface name"),
        (
            '{"version": 1, "rules": [{"destination": "::", "protocol": "tcp", "low_port": 1,'
            ' "action": "pass", "service_id": "\\ud800"}]}',
            "rules[0].service_id: not text",
        ),
        ('{"version": 1, "\\ud800": 1}', "?: no such field"),
        ('{"version": 1, "settings": {"a": {"\\ud800": 1}}}', "settings.a.?: no such field"),
        (
            '{"version": 1, "attachments": [{"interface": "\\udcff", "mode": "\\ud800"}]}',
            "attachments[0].mode: invalid enum value '?'",
        ),
    ],
)
def test_what_only_json_can_get_wrong(text: str, message: str) -> None:
    assert error_of(text.encode(), "json").message.startswith(message)


@pytest.mark.parametrize(
    ("form", "data", "line"),
    [
        ("toml", b"version = 1\n[rules\n", 2),
        ("toml", b"version = 1\n\n\nversion = 1\n", 4),
        ("toml", b"version = 1\nx = \n", 2),
        ("toml", b'version = 1\nx = "', 2),
        ("toml", b"version = 1\n# \xff\n", 2),
        ("toml", b"version = 1\n[settings.a]\n[settings.a]\n", 3),
        ("json", b'{"version": 1,\n"rules": [}\n', 2),
        ("json", b'{\n"version": 1\n', 3),
        ("json", b"", 1),
        ("json", b'{"version": 1}\n{}', 2),
        ("json", b'{"version": 1,\n\n"\xff": 1}', 3),
    ],
)
def test_bad_syntax_gives_its_line(form: Format, data: bytes, line: int) -> None:
    error = error_of(data, form)
    assert error.line == line
    assert error.path == ""


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("json", b"[" * 100_000),
        ("json", b'{"version": 1, "rules": [' + b'{"a":' * 100_000),
        ("toml", b"version = " + b"[" * 100_000),
        ("json", b'{"version": ' + b"1" * 5000 + b"}"),
        ("toml", b"version = " + b"1" * 5000),
        ("json", b'{"version": 1, "settings": "' + b"x" * 100_000 + b'"}'),
        ("json", b'{"version": 1, "rules": [{"destination": "' + b"x" * 100_000 + b'"}]}'),
        ("json", b'{"version": 1, "' + b"x" * 100_000 + b'": 1}'),
        ("json", b'{"version": 1, "\\ud800": ' + b'{"a":' * 900 + b"1" + b"}" * 901),
        ("json", b'{"version": NaN}'),
        ("toml", b"version = nan"),
        ("toml", b"version = 1979-05-27"),
        ("toml", b"rules = [[1, 2], {a = 1}]"),
    ],
)
def test_monsters_get_one_short_line(form: Format, data: bytes) -> None:
    assert len(error_of(data, form).message) < 1000


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decode(TEXT.encode(), "toml")
    data = encode(made, "toml")
    monkeypatch.setattr(module, "MAX_BYTES", len(data) - 1)
    with pytest.raises(DocumentError, match="larger than"):
        decode(data, "toml")
    with pytest.raises(DocumentError, match="larger than"):
        encode(made, "toml")


def test_there_may_be_as_many_rules_as_the_tables_hold() -> None:
    assert MAX_RULES == layout.SEGMENTS * layout.SEGMENT_SLOTS
    assert module.MAX_INTERFACES == layout.MAX_INTERFACE_NAMES


def test_the_settings_are_those_of_the_firewall_and_so_are_their_defaults() -> None:
    assert msgspec.structs.asdict(Settings()) == settings_of(0)


def test_names_that_are_no_utf8() -> None:
    made = Document(
        version=1,
        settings={"e\udcff": Settings()},
        rules=(
            RuleEntry(
                destination="::/0", protocol="tcp", low_port=1, action="pass", service_id="\udc80"
            ),
        ),
    )
    data = encode(made, "json")
    assert b'"\\udc80"' in data
    assert decode(data, "json") == made
    with pytest.raises(DocumentError, match=r"rules\[0\].service_id: not UTF-8, which TOML cannot"):
        encode(made, "toml")


def on(*interfaces: str, limited: bool) -> RuleEntry:
    return RuleEntry(
        destination="::/0",
        protocol="tcp",
        low_port=len(interfaces),
        action="pass",
        interfaces=interfaces,
        limited=limited,
    )


def test_a_document_of_before_keeps_the_meaning_of_its_interfaces_and_is_warned_of() -> None:
    attached = tuple(module.AttachmentEntry(interface=name) for name in ("eth0", "eth1", "eth2"))
    made = Document(
        version=1,
        attachments=attached,
        settings={"eth2": Settings(per_interface_rules=True)},
        rules=(on(limited=False), on("eth0", limited=True), on("eth0", "lo", limited=False)),
    )
    assert [rule.is_limited for rule in made.parsed_rules] == [False, True, False]
    assert made.warnings() == ["rules[2]: counts on eth1 too, without limited = true"]
    more = Document(
        version=1, attachments=attached, rules=(*made.rules, on("a", "b", "c", limited=False))
    )
    assert more.warnings() == [
        "rules[2] (and 1 more): counts on eth1, eth2 too, without limited = true"
    ]
    silent = on("eth0", "eth1", "eth2", limited=False)
    assert Document(version=1, attachments=attached, rules=(silent,)).warnings() == []


def test_the_published_schema_is_that_of_the_types() -> None:
    done = captured(sys.executable, ROOT / "scripts/gen-schema", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads((ROOT / "docs/schema/zfw-document.schema.json").read_text())
    assert schema["properties"].keys() == GOOD.keys()
