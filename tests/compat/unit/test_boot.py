# SPDX-License-Identifier: GPL-2.0-only
"""The boot programs' configuration: what is read from it, refused in it, and planned from it."""

from __future__ import annotations

import json

import pytest

from zfw_py import NotFound, Prefix, UsageError, ZfwError
from zfw_py.compat import boot, interfaces_config
from zfw_py.compat.interfaces_config import BootInterface
from zfw_py.compat.report import Report
from zfw_py.compat.router_config import (
    MAX_BYTES,
    MODE,
    Resolver,
    RouterConfig,
    controller_ports,
    salt_ports,
)

ROUTER = b"""\
# kept: this comment
v: 3
ctrl:
  endpoint: tls:ctrl.example:443
link:
  listeners:
    - binding: transport
      bind: tls:0.0.0.0:10080
      advertise: tls:router.example:80
    - binding: other
      bind: tls:0.0.0.0:10081
listeners:
  - binding: edge
    address: tls:[::]:443
    options:
      advertise: router.example:443
  - binding: edge
    address: ws:0.0.0.0:8443
  - binding: tunnel
    options:
      mode: tproxy # and this one
      lanIf:   "eth1"
      resolver: udp://10.1.1.1:53
web:
  - name: health-check
    bindPoints:
      - interface: 0.0.0.0:8082
        address: 0.0.0.0:8081
  - name: other
    bindPoints:
      - interface: 0.0.0.0:9999
"""


def router(text: bytes = ROUTER) -> RouterConfig:
    return RouterConfig(text, "config.yml")


def interfaces(document: object, **options: bool) -> list[BootInterface]:
    return interfaces_config.read(json.dumps(document).encode(), "e.json", **options).interfaces


def rules(plan: boot.Plan) -> list[str]:
    return [f"{insert.rule}{' route' if insert.route else ''}" for insert in plan.rules]


# config.yml


def test_case_41_the_ports_that_a_router_serves() -> None:
    assert router().listener_ports() == [443, 8081, 10080]
    assert router().link_ports() == [10080]


def test_case_46_lan_interface_and_resolver_may_be_a_text_or_a_list() -> None:
    one = router()
    assert one.interfaces() == ["eth1"]
    assert one.resolvers() == [Resolver(Prefix.parse("10.1.1.1/32"), 53)]
    listed = router(
        b"listeners:\n- binding: tunnel\n  options:\n    lanIf: [eth1, eth2, eth1]\n"
        b'    resolver:\n    - udp://10.1.1.1:53\n    - "udp://[fd00::1]:5353"\n    - file:///x\n'
    )
    assert listed.interfaces() == ["eth1", "eth2"]
    assert listed.resolvers() == [
        Resolver(Prefix.parse("10.1.1.1/32"), 53),
        Resolver(Prefix.parse("fd00::1/128"), 5353),
    ]


@pytest.mark.parametrize("name", ["no", "on", "1e3", "0x10", "22:22", "2026-01-01", "1_0"])
def test_case_46_a_name_is_what_stands_there_whatever_yaml_makes_of_it(name: str) -> None:
    if ":" in name:
        with pytest.raises(UsageError, match=r"^config.yml:3: lanIf: not an interface name"):
            router(tunnel(f"lanIf: {name}")).interfaces()
        return
    assert router(tunnel(f"lanIf: {name}")).interfaces() == [name]


def tunnel(option: str) -> bytes:
    return f"listeners:\n- binding: tunnel\n  options: {{{option}}}\n".encode()


@pytest.mark.parametrize("value", ["", "~", "null", "[]"])
def test_a_lan_interface_may_be_missing(value: str) -> None:
    assert router(tunnel(f"lanIf: {value}")).interfaces() == []
    assert router(b"").interfaces() == []
    assert router(b"listeners:\n").interfaces() == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"a: [1\nb: 2\n", "config.yml:2: expected ',' or ']', but got ':'"),
        (b"a: 1\n  b: 2\n", "config.yml:2: mapping values are not allowed here"),
        (b"- a\n", "config.yml:1: not a mapping"),
        (b"a: 1\n---\nb: 2\n", "config.yml:2: but found another document"),
        (b"a: \xff\n", "config.yml:1: not UTF-8"),
        (b"a: 1\nb: \x07\n", "config.yml:2: special characters are not allowed"),
        (b"listeners: 5\n", "config.yml:1: listeners: not a list"),
        (b"listeners:\n- edge\n", "config.yml:2: not a mapping, so it has no binding"),
        (
            b"listeners:\n- binding: edge\n  address: tls:0.0.0.0\n",
            "config.yml:3: address: no port in '0.0.0.0'",
        ),
        (
            b"listeners:\n- binding: edge\n  address: tls:0.0.0.0:70000\n",
            "config.yml:3: address: not a port within 0 to 65535: '70000'",
        ),
        (
            b"listeners:\n- binding: edge\n  address: tls:[::]\n",
            "config.yml:3: address: no port in '[::]'",
        ),
        (
            b"listeners:\n- binding: edge\n  address: [tls]\n",
            "config.yml:3: address: not a single value",
        ),
        (b"a: *b\n", "config.yml:1: found undefined alias 'b'"),
        (b"[" * 100_000, "config.yml: nested too deeply"),
        (b" " * (MAX_BYTES + 1), f"config.yml: larger than {MAX_BYTES} bytes"),
    ],
)
def test_bad_yaml_is_told_by_file_and_line(text: bytes, error: str) -> None:
    with pytest.raises(UsageError) as told:
        router(text).listener_ports()
    assert told.value.message == error


def test_tags_make_no_objects() -> None:
    text = b"listeners:\n- binding: tunnel\n  options:\n    lanIf: !!python/name:os.system eth0\n"
    assert router(text).interfaces() == ["eth0"]


def test_aliases_that_would_grow_without_bounds_are_read_at_once() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 60)]
    assert router("\n".join(lines).encode()).listener_ports() == []


def test_a_resolver_by_name_is_told_and_left_out() -> None:
    found = router(tunnel("resolver: 'udp://localhost:53'"))
    assert found.resolvers() == []
    assert list(found.notes) == [
        "config.yml:3: resolver: not an IPv4 or IPv6 address: 'localhost': no rule for it"
    ]


# mode, edited


def test_case_48_the_mode_is_set_and_set_back_and_nothing_else_changes() -> None:
    zfw = router().with_mode(MODE)
    assert zfw == ROUTER.replace(b"mode: tproxy #", b"mode: tproxy:/opt/openziti/bin/zfw #")
    assert router(zfw).with_mode(MODE) is None
    assert router(zfw).with_mode("tproxy") == ROUTER


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b"listeners:\r\n- binding: tunnel\r\n  options:\r\n    lanIf: a\r\n# \xc3\xa9\r\n",
            b"listeners:\r\n- binding: tunnel\r\n  options:\r\n"
            b"    mode: tproxy:/opt/openziti/bin/zfw\r\n    lanIf: a\r\n# \xc3\xa9\r\n",
        ),
        (
            b"\xef\xbb\xbflisteners: [{binding: tunnel, options: {lanIf: a}}]",
            b"\xef\xbb\xbflisteners: [{binding: tunnel, options: "
            b'{mode: "tproxy:/opt/openziti/bin/zfw", lanIf: a}}]',
        ),
        (
            b"listeners: [{binding: tunnel, options: {mode: 'tproxy', lanIf: a}}]",
            b'listeners: [{binding: tunnel, options: {mode: "tproxy:/opt/openziti/bin/zfw",'
            b" lanIf: a}}]",
        ),
        (
            b"# \xf0\x9f\x8c\x90\nlisteners:\n- binding: tunnel\n  options:\n    mode: &m tproxy\n",
            b"# \xf0\x9f\x8c\x90\nlisteners:\n- binding: tunnel\n  options:\n"
            b"    mode: tproxy:/opt/openziti/bin/zfw\n",
        ),
    ],
)
def test_case_48_the_mode_in_other_spellings(before: bytes, after: bytes) -> None:
    assert router(before).with_mode(MODE) == after


@pytest.mark.parametrize(
    "text",
    [
        b"listeners:\n- binding: tunnel\n  options:\n    a: &m tproxy\n    mode: *m\n",
        b"listeners:\n- binding: tunnel\n  options:\n    mode: >\n      tproxy\n",
        b"listeners:\n- binding: tunnel\n  options: {}\n",
        b"listeners:\n- binding: tunnel\n  options:\n    mode: &m tproxy\n    a: *m\n",
    ],
    ids=["alias", "folded", "empty", "anchor"],
)
def test_a_mode_that_cannot_be_edited_alone_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match=r"^config.yml:\d: "):
        router(text).with_mode(MODE)


def test_without_a_tunnel_listener_there_is_nothing_to_set() -> None:
    assert router(b"listeners:\n- binding: edge\n").with_mode(MODE) is None


# A controller's files


def test_case_43_the_ports_that_a_controller_serves() -> None:
    text = (
        b"edge: {api: {address: 'ctrl.example:1280'}}\n"
        b"web:\n- bindPoints:\n  - interface: 0.0.0.0:443\n  - interface: '[::]:8443'\n"
    )
    assert controller_ports(text, "c.yml") == [443, 1280, 8443]
    assert controller_ports(b"", "c.yml") == []
    assert salt_ports(b"rest_cherrypy:\n  port: 8000\n", "s") == [8000]
    with pytest.raises(UsageError, match=r"^s:2: port: not a port"):
        salt_ports(b"rest_cherrypy:\n  port: x\n", "s")


# ebpf_config.json


def test_case_46_interfaces_with_their_defaults() -> None:
    document = {
        "InternalInterfaces": [{"Name": "a"}, {"Name": "b", "OutboundPassThroughTrack": False}],
        "ExternalInterfaces": [{"Name": "c"}, {"Name": "d", "PerInterfaceRules": False}],
    }
    assert interfaces(document) == [
        BootInterface("a", True, False),
        BootInterface("b", False, False),
        BootInterface("c", True, True),
        BootInterface("d", True, False),
    ]
    assert interfaces(document, tracks_internal=False)[0] == BootInterface("a", False, False)


def test_case_46_a_name_that_is_a_list_is_several_interfaces() -> None:
    document = {"InternalInterfaces": [{"Name": ["a", "b"], "PerInterfaceRules": True}]}
    assert interfaces(document) == [BootInterface("a", True, True), BootInterface("b", True, True)]


def test_case_46_what_is_made_from_lan_interfaces_is_read_back() -> None:
    made = interfaces_config.text(["a", "b"])
    assert interfaces_config.read(made, "e.json").interfaces == [
        BootInterface("a", True, False),
        BootInterface("b", True, False),
    ]


def test_a_misspelt_key_is_told() -> None:
    text = b'{"InternalInterfaces": [{"Name": "a", "PerInterfaceRule": true}], "x": 1}'
    assert interfaces_config.read(text, "e.json").unknown == [
        "x",
        "InternalInterfaces[0].PerInterfaceRule",
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"InternalInterfaces":\n[{]}', "e.json:2: Expecting property name enclosed in double"),
        (b"[]", "e.json: not an object"),
        (b"{}", "e.json: InternalInterfaces is missing"),
        (b'{"InternalInterfaces": []}', "e.json: names no interface"),
        (b'{"InternalInterfaces": {}}', "e.json: InternalInterfaces: not a list"),
        (b'{"InternalInterfaces": ["a"]}', "e.json: InternalInterfaces[0]: not an object"),
        (b'{"InternalInterfaces": [{}]}', "e.json: InternalInterfaces[0].Name: missing"),
        (b'{"InternalInterfaces": [{"Name": 5}]}', "e.json: InternalInterfaces[0].Name: missing"),
        (b'{"InternalInterfaces": [{"Name": "a b"}]}', "e.json: InternalInterfaces[0].Name: not"),
        (b'{"InternalInterfaces": [{"Name": "../x"}]}', "e.json: InternalInterfaces[0].Name: not"),
        (
            b'{"InternalInterfaces": [{"Name": "a", "PerInterfaceRules": "no"}]}',
            "e.json: InternalInterfaces[0].PerInterfaceRules: not true or false: 'no'",
        ),
        (b"\xff", "e.json: not UTF-8"),
        (b"[" * 60_000, "e.json: nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "e.json: nested too deeply, or a number too long"),
    ],
)
def test_bad_json_is_told_by_file_and_place(text: bytes, error: str) -> None:
    with pytest.raises(UsageError) as told:
        interfaces_config.read(text, "e.json")
    assert told.value.message.startswith(error)


# The plan


def test_case_41_and_42_the_rules_of_a_router() -> None:
    plan = boot.plan(
        "router",
        [],
        own_addresses=[Prefix.parse("10.0.0.1/32"), Prefix.parse("10.0.0.2/32")],
        ports=[443, 80, 443],
        resolvers=[
            Resolver(Prefix.parse("10.1.1.1/32"), 53),
            Resolver(Prefix.parse("100.127.255.254/32"), 53),
        ],
    )
    assert rules(plan) == [
        f"{boot._passing(Prefix.parse(prefix), protocol, port)}{route}"
        for prefix, protocol, port, route in [
            ("10.0.0.1/32", "tcp", 80, ""),
            ("10.0.0.2/32", "tcp", 80, ""),
            ("10.0.0.1/32", "tcp", 443, ""),
            ("10.0.0.2/32", "tcp", 443, ""),
            ("10.1.1.1/32", "tcp", 53, ""),
            ("10.1.1.1/32", "udp", 53, ""),
            ("100.127.255.254/32", "tcp", 53, ""),
            ("100.127.255.254/32", "udp", 53, " route"),
        ]
    ]
    assert all(insert.rule.action == "pass" for insert in plan.rules)
    assert plan.flushes_routes
    assert plan.missing == []


def test_case_41_without_an_address_of_the_lan_the_ports_are_open_on_all() -> None:
    (rule,) = boot.plan("router", [], ports=[443]).rules
    assert str(rule.rule.key.destination) == "0.0.0.0/0"


def test_case_40_only_the_router_flushes_the_local_routes() -> None:
    assert [kind for kind in boot.KINDS if boot.plan(kind, []).flushes_routes] == ["router"]


def test_case_43_and_44_what_is_not_there_yet_is_in_the_plan() -> None:
    assert "zfw -T" in boot.plan("tunnel", []).missing[0]
    (missing,) = boot.plan("controller", [], ports=[443], guarded_ports=[443, 80]).missing
    assert missing == "DDoS protection (zfw --ddos-dport-add) of TCP 80, 443"


# The report


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([], 0),
        (["missing"], 69),
        (["missing", NotFound("x")], 5),
        ([NotFound("x"), "missing", ZfwError("y"), UsageError("z")], 1),
        ([UsageError("z"), NotFound("x"), ZfwError("y")], 2),
    ],
)
def test_the_exit_code_tells_the_gravest(steps: list[object], code: int) -> None:
    told: list[str] = []
    report = Report(told.append, told.append)
    for step in steps:
        if isinstance(step, ZfwError):
            report.failed(step)
        else:
            report.missing("x")
    assert report.exit_code == code
    assert len(told) == len(steps)
