# SPDX-License-Identifier: GPL-2.0-only
"""Save and restore on a live firewall: equal afterwards, or on an error as before."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from socket import if_nametoindex
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.contents import Contents
from tests.firewall.support.faults import can_fail, fail_at, is_killed_at
from tests.firewall.support.frames import SERVICE, SOME, exchange, is_silent, listening
from tests.support.command import ZFW
from zfw_py import (
    Document,
    Firewall,
    KernelError,
    MapFull,
    NotInstalled,
    Prefix,
    Rule,
    RuleKey,
    UsageError,
    ZfwError,
)
from zfw_py.firewall import layout, programs
from zfw_py.firewall.document import (
    AttachmentEntry,
    FlowEntry,
    Format,
    RuleEntry,
    Settings,
    decode,
    encode,
)
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.maps import Maps
from zfw_py.lifecycle.attachment import Tcx
from zfw_py.systemd.firewall import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.firewall.support.frames import Gateway
    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel


def entry(low: int, destination: str = "192.0.2.1/32", **fields: object) -> RuleEntry:
    fields = {"action": "pass", "protocol": "udp", **fields}
    return RuleEntry(destination=destination, low_port=low, **fields)  # type: ignore[arg-type]


def document(*rules: RuleEntry, **fields: object) -> Document:
    """Of the gateway as it is between two tests: attached, IPv6 on."""
    fields = {
        "settings": {"gw0": Settings(ipv6=True)},
        "attachments": (AttachmentEntry(interface="gw0"),),
        **fields,
    }
    return Document(version=1, rules=rules, **fields)  # type: ignore[arg-type]


@pytest.fixture
def gateway(running: Gateway) -> Iterator[Gateway]:
    """The test is inside the gateway, which has no rule, and no settings but IPv6 on gw0."""
    with running.gateway.entered():
        running.firewall.restore(document())
        assert running.firewall.rules() == []
        yield running


def raw() -> dict[str, object]:
    """All maps that hold what was asked for, byte for byte but for stamps, and the programs."""
    found: dict[str, object] = {}
    with Maps(is_writer=False) as maps:
        for name in layout.MAPS:
            if name in ("reasons", "added_reasons", "fragments", "cpus", "listeners"):
                continue
            if name not in layout.INNER_MAPS:
                found[name] = {
                    key: _without_stamp(name, value) for key, value in maps.map(name).items(64)
                }
                continue
            for index in range(layout.MAPS[name][3]):
                inner = maps.inner(name, index)
                if inner is None:
                    break
                found[f"{name} {index}"] = {
                    key: _without_stamp(name, value) for key, value in inner.items()
                }
        found["attachments"] = programs.attachments(maps)
    return found


def _without_stamp(name: str, value: bytes) -> bytes:
    if name in ("prefixes", "ports_medium", "ports_large"):
        return value[:36] + value[40:]
    return value[:8] + value[12:] if name == "state" else value


def counters() -> dict[str, int]:
    return {str(rule.key): rule.packets for rule in Firewall().rules()}


def everything() -> tuple[RuleEntry, ...]:
    """Rules of every kind: more than a small prefix holds, both families and directions."""
    many = [entry(port, "198.51.100.0/24", service_id=f"s{port}") for port in range(40, 20, -1)]
    return (
        entry(22, "100.72.0.4/32", protocol="tcp", action="intercept", tproxy_port=4000),
        entry(0, "100.72.0.0/16", high_port=65535, action="deny", source="10.9.0.0/24"),
        entry(53, "fd72::4/128", action="intercept", tproxy_port=4001, service_id="dns-ä"),
        entry(1, "fd72::/16", high_port=9, interfaces=("gw0", "lo"), service_id="bad-\udcff"),
        entry(10, "fd72::/16", high_port=19, interfaces=("gw0", "lo"), limited=True),
        entry(443, "203.0.113.9/32", direction="egress", action="deny", protocol="tcp"),
        entry(7, "172.31.0.0/16", route=True),
        *many,
    )


def test_a_round_trip_through_a_file_and_nothing(gateway: Gateway) -> None:
    first = document(
        *everything(),
        settings={"gw0": Settings(ipv6=True, ssh=False), "lo": Settings(icmp_echo=True)},
        attachments=(
            AttachmentEntry(interface="gw0"),
            AttachmentEntry(interface="gw0", direction="egress"),
            AttachmentEntry(interface="lo", mode="clsact"),
        ),
    )
    gateway.firewall.restore(first)
    saved = gateway.firewall.save()
    assert sorted(map(repr, saved.rules)) == sorted(map(repr, first.rules))
    assert saved.settings == first.settings
    assert [(a.interface, a.direction) for a in saved.attachments] == [
        ("gw0", "egress"),
        ("gw0", "ingress"),
        ("lo", "ingress"),
    ]
    assert saved.attachments[2].mode == "clsact"
    # The order of entry is kept: 40 came first.
    assert [e.low_port for e in saved.rules if e.destination == "198.51.100.0/24"] == list(
        range(40, 20, -1)
    )
    with pytest.raises(UsageError, match=r"^rules\[\d+\].service_id: not UTF-8, .* JSON can$"):
        encode(saved, "toml")
    data = encode(saved, "json")
    gateway.firewall.detach_all()
    with pytest.raises(NotInstalled):
        gateway.firewall.save()
    restored = gateway.firewall.restore(decode(data, "json"))
    assert restored.is_new
    assert (restored.inserted, len(restored.attached)) == (len(first.rules), 3)
    assert encode(gateway.firewall.save(), "json") == data
    Contents().check()


@pytest.mark.parametrize("form", ["toml", "json"])
def test_the_same_document_again_changes_nothing(gateway: Gateway, form: Format) -> None:
    gateway.firewall.restore(document(*[e for e in everything() if "\udcff" not in e.service_id]))
    before = raw()
    data = encode(gateway.firewall.save(), form)
    for _ in range(2):
        restored = gateway.firewall.restore(decode(data, form))
        assert not restored.is_changed, restored
        assert raw() == before
    assert encode(gateway.firewall.save(), form) == data


def test_traffic_before_and_after(gateway: Gateway) -> None:
    """A connection outlives the change of its rule; what comes new meets the new rules."""
    with listening("tcp", 4) as old, listening("tcp", 4) as new, listening("tcp", 6) as six:

        def rules(port: int) -> tuple[RuleEntry, ...]:
            tcp = {"protocol": "tcp", "action": "intercept"}
            return (
                entry(22, f"{SERVICE[4]}/32", tproxy_port=port, **tcp),
                entry(22, f"{SERVICE[6]}/128", tproxy_port=six.port, **tcp),
            )

        gateway.firewall.restore(document(*rules(old.port)))
        with gateway.connects(old, SERVICE[4], 22) as (client, connection):
            restored = gateway.firewall.restore(document(*rules(new.port)))
            assert (restored.inserted, restored.changed, restored.deleted) == (0, 1, 0)
            with gateway.counts(established=SOME):
                exchange(client, connection)
        gateway.talks(new, SERVICE[4], 22)
        gateway.talks(six, SERVICE[6], 22)
        assert is_silent(old.socket)
        gateway.firewall.restore(document(rules(new.port)[1]))
        gateway.is_dropped("tcp", SERVICE[4], 22, "no_rule")
        gateway.talks(six, SERVICE[6], 22)


def test_rules_that_stay_keep_their_counters(gateway: Gateway) -> None:
    stays, renamed, goes = (f"192.0.2.{n}/32" for n in (1, 2, 3))
    first = document(entry(53, stays), entry(53, renamed, service_id="a"), entry(53, goes))
    gateway.firewall.restore(first)
    for address in (stays, renamed, goes):
        with gateway.counts(rule_pass=1):
            gateway.send(frames.datagram(address[:-3], 53))
    gateway.firewall.restore(
        document(entry(53, stays), entry(53, renamed, service_id="b"), entry(54, stays))
    )
    assert counters() == {
        "ingress udp 192.0.2.1/32 port 53": 1,
        "ingress udp 192.0.2.1/32 port 54": 0,
        "ingress udp 192.0.2.2/32 port 53": 1,
    }
    assert gateway.firewall.save().rules[2].service_id == "b"


@pytest.mark.parametrize("more", [0, 10], ids=["inline", "medium"])
def test_the_order_within_a_prefix_is_the_documents(gateway: Gateway, more: int) -> None:
    """Of rules that overlap the first wins: another order is another firewall."""
    address = f"{SERVICE[4]}/32"
    rest = [entry(10 + n, address) for n in range(more)]
    with listening("udp", 4) as narrow, listening("udp", 4) as wide:
        to_narrow = entry(53, address, action="intercept", tproxy_port=narrow.port)
        to_wide = entry(50, address, high_port=60, action="intercept", tproxy_port=wide.port)
        gateway.firewall.restore(document(to_narrow, to_wide, *rest))
        gateway.talks(narrow, SERVICE[4], 53)
        restored = gateway.firewall.restore(document(to_wide, to_narrow, *rest))
        assert restored.reordered == 1
        assert (restored.inserted, restored.changed, restored.deleted) == (0, 0, 0)
        assert restored.is_changed
        assert restored.warnings == [
            f"rule ingress udp {address} port 53 intercept can never match:"
            " earlier rules of its prefix cover it"
        ]
        gateway.talks(wide, SERVICE[4], 53)
        assert is_silent(narrow.socket)
        assert counters()[f"ingress udp {address} port 53"] == 1, "counted before the change"
        Contents().check()


def test_an_insert_in_front_of_those_that_stay(gateway: Gateway) -> None:
    gateway.firewall.restore(document(entry(2), entry(3)))
    restored = gateway.firewall.restore(document(entry(1), entry(2), entry(3)))
    assert (restored.inserted, restored.changed, restored.reordered) == (1, 0, 0)
    assert [e.low_port for e in gateway.firewall.save().rules] == [1, 2, 3]


def test_interfaces_of_a_rule_become_those_of_the_document(gateway: Gateway) -> None:
    """An insert adds interfaces; a restore is not an insert."""
    gateway.firewall.restore(document(entry(1, interfaces=("gw0", "lo"))))
    gateway.firewall.restore(document(entry(1, interfaces=("lo",))))
    assert gateway.firewall.save().rules[0].interfaces == ("lo",)
    gateway.firewall.restore(document(entry(1)))
    assert gateway.firewall.save().rules[0].interfaces == ()


def test_whether_a_rule_is_limited_becomes_that_of_the_document(gateway: Gateway) -> None:
    for limited in (False, True, False):
        wanted = document(entry(1, interfaces=("lo",), limited=limited))
        restored = gateway.firewall.restore(wanted)
        assert (restored.inserted + restored.changed, gateway.firewall.save().rules) == (
            1,
            wanted.rules,
        )
        assert not gateway.firewall.restore(wanted).is_changed


def test_an_interface_that_does_not_exist_yet(gateway: Gateway) -> None:
    wanted = document(
        entry(1, interfaces=("later0", "gw0")),
        settings={"gw0": Settings(ipv6=True), "later0": Settings(ipv6=True, icmp_echo=True)},
        attachments=(
            AttachmentEntry(interface="gw0"),
            AttachmentEntry(interface="later0"),
            AttachmentEntry(interface="later0", direction="egress"),
        ),
    )
    restored = gateway.firewall.restore(wanted)
    assert restored.missing == ["later0"]
    saved = gateway.firewall.save()
    assert saved.settings == wanted.settings
    assert saved.rules[0].interfaces == ("gw0", "later0")
    # What is wanted is saved, also where there is nothing to attach to.
    assert [(a.interface, a.direction) for a in saved.attachments] == [
        ("gw0", "ingress"),
        ("later0", "egress"),
        ("later0", "ingress"),
    ]
    gateway.gateway.add_veth("later0", "later1")
    try:
        restored = gateway.firewall.restore(wanted)
        assert (restored.missing, restored.settings) == ([], [])
        assert [a.direction for a in restored.attached] == ["ingress", "egress"]
        later = next(i for i in gateway.firewall.status().interfaces if i.name == "later0")
        assert later.settings["icmp_echo"]
    finally:
        gateway.gateway.run("ip", "link", "del", "later0")


def test_alternative_names(gateway: Gateway) -> None:
    gateway.gateway.run("ip", "link", "property", "add", "dev", "gw0", "altname", "uplink0")
    try:
        restored = gateway.firewall.restore(
            document(
                entry(1, interfaces=("uplink0",)),
                settings={"uplink0": Settings(ipv6=True)},
                attachments=(AttachmentEntry(interface="uplink0"),),
            )
        )
        assert (restored.attached, restored.detached, restored.settings) == ([], [], [])
        assert gateway.firewall.save().rules[0].interfaces == ("gw0",)
        before = raw()
        for fields in (
            {"settings": {"uplink0": Settings(), "gw0": Settings()}},
            {"attachments": tuple(AttachmentEntry(interface=n) for n in ("gw0", "uplink0"))},
        ):
            with pytest.raises(UsageError, match=r"(settings|attachments).*another name of gw0"):
                gateway.firewall.restore(document(**fields))
            assert raw() == before
    finally:
        gateway.gateway.run("ip", "link", "property", "del", "dev", "gw0", "altname", "uplink0")


def test_what_the_document_has_not_goes(gateway: Gateway) -> None:
    gateway.firewall.restore(
        document(
            *everything(),
            settings={
                "gw0": Settings(ipv6=True),
                "lo": Settings(verbose=True),
                "x": Settings(ssh=False),
            },
            attachments=tuple(AttachmentEntry(interface=n) for n in ("gw0", "lo")),
        )
    )
    restored = gateway.firewall.restore(document(attachments=()))
    assert restored.deleted == len(everything())
    assert restored.settings == [("lo", "verbose", False), ("x", "ssh", True)]
    assert len(restored.detached) == 2
    saved = gateway.firewall.save()
    assert (saved.rules, saved.attachments) == ((), ())
    assert saved.settings == {"gw0": Settings(ipv6=True)}
    Contents().check()


def test_a_mode_is_changed_without_a_gap(gateway: Gateway) -> None:
    ifindex = if_nametoindex("gw0")
    seen = []
    detach = programs._detach

    def watched(maps: Maps, attachment: programs.Attachment) -> None:
        seen.append(sorted(a.mode for a in programs.attachments(maps) if a.ifindex == ifindex))
        detach(maps, attachment)

    for mode in ("clsact", "tcx"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(programs, "_detach", watched)
            gateway.firewall.restore(
                document(attachments=(AttachmentEntry(interface="gw0", mode=mode),))  # type: ignore[arg-type]
            )
        assert [a.mode for a in gateway.firewall.save().attachments] == [mode]
    assert seen == [["clsact", "tcx"]] * 2


def local_routes(gateway: Gateway, prefix: str) -> bool:
    return prefix in gateway.gateway.run("ip", "address", "show", "dev", "lo").stdout


def test_local_routes_follow_the_document(gateway: Gateway) -> None:
    routed, plain = entry(7, "172.31.0.0/16", route=True), entry(7, "172.31.0.0/16")
    other = entry(8, "172.31.0.0/16", protocol="tcp", route=True)
    gateway.firewall.restore(document(routed, other))
    assert local_routes(gateway, "172.31.0.0/16")
    restored = gateway.firewall.restore(document(plain, other))
    assert restored.changed == 1
    assert local_routes(gateway, "172.31.0.0/16"), "the other one holds it"
    gateway.firewall.restore(document(plain))
    assert not local_routes(gateway, "172.31.0.0/16")
    gateway.firewall.restore(document(routed))
    gateway.firewall.restore(document())
    assert not local_routes(gateway, "172.31.0.0/16")


def test_no_route_into_the_subnet_of_an_interface(gateway: Gateway) -> None:
    wanted = document(entry(7, "10.9.0.0/28", route=True))
    for _ in range(2):
        restored = gateway.firewall.restore(wanted)
        assert restored.warnings == [
            "rule ingress udp 10.9.0.0/28 port 7 pass: no local route is made:"
            " 10.9.0.0/28 shares addresses with the subnet 10.9.0.0/24"
        ]
    assert not restored.is_changed
    assert not local_routes(gateway, "10.9.0.0/28")


def test_flow_limits(gateway: Gateway) -> None:
    gateway.firewall.set_flow_limits(tcp_idle=60)
    restored = gateway.firewall.restore(document(entry(1), flows=FlowEntry(udp_idle=5)))
    assert restored.flow_limits == FlowLimits(udp_idle=5)
    assert gateway.firewall.flow_limits() == FlowLimits(udp_idle=5)
    assert gateway.firewall.save().flows == FlowEntry(udp_idle=5)
    assert not gateway.firewall.restore(document(entry(1), flows=FlowEntry(udp_idle=5))).is_changed


# Whole or not at all

OLD = document(
    entry(1, service_id="stays"),
    entry(2, service_id="goes"),
    *[entry(port, "198.51.100.0/24") for port in range(20)],
    entry(9, "172.31.0.0/16", route=True),
    settings={"gw0": Settings(ipv6=True), "lo": Settings(icmp_echo=True)},
)
NEW = document(
    entry(1, service_id="other"),
    entry(3, "203.0.113.0/30", action="deny"),
    entry(9, "172.30.0.0/16", route=True),
    entry(19, "198.51.100.0/24"),
    settings={"gw0": Settings(ipv6=True, ssh=False)},
    attachments=(AttachmentEntry(interface="gw0"), AttachmentEntry(interface="lo")),
)


def known(saved: Document) -> tuple[object, ...]:
    return saved.rules, saved.settings, [(a.interface, a.direction) for a in saved.attachments]


@pytest.fixture
def both(gateway: Gateway) -> tuple[Document, Document]:
    """What is saved after NEW and after OLD, which is in force and has counted a packet."""
    gateway.firewall.restore(NEW)
    new = gateway.firewall.save()
    gateway.firewall.restore(OLD)
    with gateway.counts(rule_pass=1):
        gateway.send(frames.datagram("192.0.2.1", 2))
    return gateway.firewall.save(), new


@pytest.mark.parametrize("what", ["attach", "_detach", "clsact"])
def test_an_attachment_that_fails_undoes_all(
    gateway: Gateway,
    both: tuple[Document, Document],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    old, wanted = both[0], NEW
    if what == "_detach":
        # lo has a program already and is to lose it; only the first attempt fails.
        old = document(*OLD.rules, settings=OLD.settings, attachments=NEW.attachments)
        gateway.firewall.restore(old)
        wanted = document(*NEW.rules, settings=NEW.settings)
    hits = counters()
    attached = raw()["attachments"]
    saved = gateway.firewall.save()
    with monkeypatch.context() as patched:
        if what == "clsact":
            # Somebody's ingress qdisc leaves no room for clsact.
            gateway.gateway.run("tc", "qdisc", "del", "dev", "lo", "clsact", check=False)
            gateway.gateway.run("tc", "qdisc", "add", "dev", "lo", "ingress")
            mode = AttachmentEntry(interface="lo", direction="egress", mode="clsact")
            wanted = document(
                *NEW.rules,
                settings=NEW.settings,
                attachments=(AttachmentEntry(interface="gw0"), mode),
            )
        else:
            patched.setattr(Tcx if what == "attach" else programs, what, fails)
        try:
            with pytest.raises(ZfwError) as raised:
                gateway.firewall.restore(wanted)
        finally:
            if what == "clsact":
                gateway.gateway.run("tc", "qdisc", "del", "dev", "lo", "ingress")
    assert "write the rules" not in raised.value.message
    assert gateway.firewall.save() == saved
    assert raw()["attachments"] == attached
    assert counters() == hits, "the counters of rules that were to go as well"
    Contents().check()
    assert local_routes(gateway, "172.31.0.0/16")
    assert not local_routes(gateway, "172.30.0.0/16")


def test_a_program_that_was_taken_off_is_put_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are to go; the second does not."""
    attachments = (AttachmentEntry(interface="gw0"), AttachmentEntry(interface="lo"))
    gateway.firewall.restore(document(attachments=attachments))
    before = raw()["attachments"]
    original = programs._detach
    calls: list[programs.Attachment] = []

    def fails_once(maps: Maps, attachment: programs.Attachment) -> None:
        calls.append(attachment)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        original(maps, attachment)

    with monkeypatch.context() as patched:
        patched.setattr(programs, "_detach", fails_once)
        with pytest.raises(KernelError):
            gateway.firewall.restore(document(entry(1), attachments=()))
    assert raw()["attachments"] == before
    assert gateway.firewall.rules() == []


@pytest.mark.parametrize("number_of_error", [errno.E2BIG, errno.ENOMEM])
def test_a_write_that_fails_leaves_all_as_it_was(
    gateway: Gateway,
    both: tuple[Document, Document],
    monkeypatch: pytest.MonkeyPatch,
    number_of_error: int,
) -> None:
    old, new = both
    hits = counters()
    unraised: list[int] = []

    def fails() -> None:
        raise OSError(number_of_error, os.strerror(number_of_error))

    for number in range(200):
        with monkeypatch.context() as patched:
            left = fail_at(patched, number, fails, can_fail)
            try:
                gateway.firewall.restore(NEW)
                is_raised = False
            except (MapFull, KernelError):
                is_raised = True
        Contents().check()
        if left[0] >= 0:
            assert not is_raised
            assert number > 5, "nothing was written"
            break
        assert known(gateway.firewall.save()) == known(old if is_raised else new), number
        if is_raised:
            assert counters() == hits
        else:
            # A full map is made larger, and a free list that is not written is rebuilt.
            unraised.append(number)
            gateway.firewall.restore(OLD)
            hits = counters()
    else:
        raise AssertionError("it never ends")
    if number_of_error == errno.ENOMEM:
        assert len(unraised) <= 2


def test_a_kill_at_any_moment_leaves_what_any_command_works_on(
    gateway: Gateway, both: tuple[Document, Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prefix is the old or the new; the next writer repairs, the next restore completes."""
    old, new = both
    of_both = {*old.rules, *new.rules}
    for number in range(300):
        gateway.firewall.restore(OLD)
        is_over = not is_killed_at(monkeypatch, number, lambda: gateway.firewall.restore(NEW))
        assert set(gateway.firewall.save().rules) <= of_both, f"killed before write {number}"
        gateway.firewall.insert(Rule(RuleKey(Prefix.parse("10.77.0.1"), "udp", 5)))
        gateway.firewall.delete(RuleKey(Prefix.parse("10.77.0.1"), "udp", 5))
        Contents().check()
        gateway.firewall.restore(NEW)
        assert known(gateway.firewall.save()) == known(new)
        assert local_routes(gateway, "172.30.0.0/16")
        assert not local_routes(gateway, "172.31.0.0/16")
        Contents().check()
        if is_over:
            assert number > 10, "nothing was written"
            break
    else:
        raise AssertionError("it never ends")


def test_too_many_rules_for_a_prefix_change_nothing(gateway: Gateway) -> None:
    gateway.firewall.restore(document(entry(1), settings={"gw0": Settings(ipv6=True)}))
    before = gateway.firewall.save()
    too_many = [entry(port) for port in range(layout.LARGE_RULES + 1)]
    with pytest.raises(MapFull, match=r"192\.0\.2\.1/32 udp: 2041 port ranges"):
        gateway.firewall.restore(document(*too_many, settings={"lo": Settings(ipv6=True)}))
    assert gateway.firewall.save() == before
    Contents().check()


# Where there is none


def test_rules_alone_install_a_firewall(namespace: Namespace) -> None:
    wanted = Document(version=1, rules=(entry(1),))
    restored = Firewall().restore(wanted)
    assert restored.is_new
    assert Firewall().save() == wanted
    assert not Firewall().restore(wanted).is_changed


def test_an_install_that_fails_leaves_none(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Tcx, "attach", fails)
    wanted = Document(
        version=1,
        settings={"lo": Settings(ipv6=True)},
        attachments=(AttachmentEntry(interface="lo"),),
        rules=(entry(1, "172.31.0.0/16", route=True),),
    )
    with pytest.raises(KernelError, match="attach to lo"):
        Firewall().restore(wanted)
    assert not Firewall().is_installed()
    assert "172.31" not in namespace.run("ip", "address", "show", "dev", "lo").stdout


# With no more than the unit grants

COMPLETE = """\
version = 1

[settings.lo]
ipv6 = true
verbose = true

[[attachments]]
interface = "lo"

[[attachments]]
interface = "lo"
direction = "egress"
mode = "clsact"

[[rules]]
destination = "172.31.0.0/16"
protocol = "tcp"
low_port = 22
action = "pass"
route = true
"""


@pytest.fixture
def restore_with(namespace: Namespace, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the installed zfw restore as root with these capabilities, and nothing else."""
    path = tmp_path / "zfw.toml"
    path.write_text(COMPLETE)

    def run(*capabilities: str) -> tuple[int, str]:
        names = ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)]
        done = namespace.run(
            "setpriv",
            f"--bounding-set={','.join(names)}",
            f"--inh-caps={','.join(names)}",
            "--no-new-privs",
            "--",
            str(ZFW),
            "restore",
            str(path),
            check=False,
        )
        return done.returncode, done.stderr

    return run


def test_the_capabilities_of_the_unit_suffice(
    restore_with: Callable[..., tuple[int, str]], namespace: Namespace
) -> None:
    assert restore_with(*CAPABILITIES) == (0, "")
    saved = Firewall().save()
    assert len(saved.rules) == 1
    assert [(a.interface, a.direction) for a in saved.attachments] == [
        ("lo", "egress"),
        ("lo", "ingress"),
    ]
    assert "172.31" in namespace.run("ip", "address", "show", "dev", "lo").stdout
    # Again, on what is there.
    assert restore_with(*CAPABILITIES) == (0, "")


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_each_capability_of_the_unit_is_needed(
    restore_with: Callable[..., tuple[int, str]], missing: str
) -> None:
    others = [name for name in CAPABILITIES if name != missing]
    code, message = restore_with(*others, "CAP_BPF", "CAP_PERFMON")
    assert code == 77, message
    assert not Firewall().is_installed()
