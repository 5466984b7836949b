# SPDX-License-Identifier: GPL-2.0-only
"""Attaching and detaching: in both modes and directions, on live traffic, and to new interfaces.

The tests read from the kernel what is attached, and not from zfw.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Any

import pytest

from tests.firewall.support.attached import (
    ALLOWED,
    INTERFACE,
    Stream,
    allow,
    attached,
    directory,
    frame,
    names_in,
    our_program,
    use_object,
)
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py import (
    Firewall,
    KernelError,
    NotFound,
    NotInstalled,
    Prefix,
    Rule,
    RuleKey,
    UsageError,
    ZfwError,
)
from zfw_py.firewall import layout
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import Maps
from zfw_py.kernel import bpf_links
from zfw_py.lifecycle import programs as lifecycle
from zfw_py.lifecycle.attachment import PIN, Clsact, NetnsHook, Tcx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_attach_puts_one_program_and_detach_takes_it_off(
    machine: Network, mode: str, direction: str
) -> None:
    firewall = Firewall()
    (made,) = firewall.attach(INTERFACE, direction, mode)
    assert attached(INTERFACE) == [(direction, mode, our_program(direction))]
    ifindex = socket.if_nametoindex(INTERFACE)
    assert made == (ifindex, direction, mode, our_program(direction))

    assert firewall.attach(INTERFACE, direction, mode) == [made], "a second time"
    assert attached(INTERFACE) == [(direction, mode, our_program(direction))]
    (row,) = firewall.status().interfaces
    assert row.attachments == {direction: made}

    assert firewall.detach(INTERFACE) == [made]
    assert wait_until(lambda: attached(INTERFACE) == [])
    with pytest.raises(NotFound, match=INTERFACE):
        firewall.detach(INTERFACE)


@pytest.mark.parametrize("mode", ["auto", "tcx", "clsact"])
def test_both_directions_at_once_and_off_one_by_one(machine: Network, mode: str) -> None:
    firewall = Firewall()
    assert [one.direction for one in firewall.attach(INTERFACE, "both", mode)] == [
        "ingress",
        "egress",
    ]
    assert len(attached(INTERFACE)) == 2
    firewall.detach(INTERFACE, "ingress")
    assert wait_until(lambda: [one[0] for one in attached(INTERFACE)] == ["egress"])
    firewall.detach(INTERFACE, "egress")
    assert wait_until(lambda: attached(INTERFACE) == [])


def test_both_directions_are_attached_unless_one_is_asked_for(machine: Network) -> None:
    assert [one.direction for one in Firewall().attach(INTERFACE)] == ["ingress", "egress"]
    assert {one[0] for one in attached(INTERFACE)} == {"ingress", "egress"}


def test_auto_is_tcx_where_the_kernel_has_it(machine: Network) -> None:
    has_tcx = bpf_links.supports_tcx(socket.if_nametoindex(INTERFACE))
    (made,) = Firewall().attach(INTERFACE, "ingress")
    assert made.mode == ("tcx" if has_tcx else "clsact")


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_auto_leaves_what_is_attached_as_it_is(machine: Network, mode: str) -> None:
    before = Firewall().attach(INTERFACE, "ingress", mode)
    assert Firewall().attach(INTERFACE, "ingress") == before
    assert [one[1] for one in attached(INTERFACE)] == [mode]


def test_a_kernel_without_tcx_gets_clsact_and_refuses_tcx(
    machine: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_links, "supports_tcx", lambda ifindex: False)
    with pytest.raises(KernelError, match="TCX") as refused:
        Firewall().attach(INTERFACE, "ingress", "tcx")
    assert refused.value.errno == errno.EOPNOTSUPP
    assert refused.value.hint
    assert attached(INTERFACE) == []
    (made,) = Firewall().attach(INTERFACE, "ingress")
    assert made.mode == "clsact"


@pytest.mark.parametrize(
    ("direction", "mode"), [("inward", "auto"), ("", "auto"), ("ingress", "xdp"), ("ingress", "")]
)
def test_a_direction_or_mode_that_is_none_is_refused(
    machine: Network, direction: str, mode: str
) -> None:
    with pytest.raises(UsageError):
        Firewall().attach(INTERFACE, direction, mode)
    assert attached(INTERFACE) == []


def test_an_interface_that_is_none_is_not_found(machine: Network) -> None:
    firewall = Firewall()
    for verb in (
        lambda: firewall.attach("nosuchif", "ingress"),
        lambda: firewall.detach("nosuchif"),
        lambda: firewall.set([INTERFACE, "nosuchif"], "icmp_echo", True),
    ):
        with pytest.raises(NotFound, match="Interface not found: nosuchif"):
            verb()
    with Maps(is_writer=False) as maps:
        names = [key.rstrip(b"\0").decode() for key, _ in maps.map("interface_names").items()]
    assert names == [INTERFACE]
    assert firewall.status().interfaces == []


def test_without_a_firewall_there_is_nothing_to_detach(namespace: Namespace) -> None:
    for verb in (lambda: Firewall().detach("lo"), Firewall().detach_all, Firewall().status):
        with pytest.raises(NotInstalled):
            verb()
    assert not Firewall().is_installed()


def test_an_object_that_is_missing_is_told_of(
    machine: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_object(monkeypatch, tmp_path / "gone.bpf.o")
    with pytest.raises(ZfwError, match=r"gone\.bpf\.o is missing"):
        Firewall().attach(INTERFACE, "ingress")
    assert attached(INTERFACE) == []


# Live traffic


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_attach_loses_nothing_that_a_rule_allows_and_then_passes_nothing_else(
    machine: Network, mode: str
) -> None:
    allow()
    with Stream(machine) as stream:
        stream.flows()
        Firewall().attach(INTERFACE, "ingress", mode)
        attached_at = stream.sent
        stream.flows()
    assert stream.lost == []
    # Before attach all passes, and once the first is dropped, all are.
    assert stream.leaked == list(range(len(stream.leaked)))
    # One may have been on its way while the number was read.
    assert 0 < len(stream.leaked) <= attached_at + 1
    assert stream.sent > attached_at + 100


def test_changing_the_mode_has_no_moment_without_a_program(machine: Network) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, "ingress", "tcx")
    with Stream(machine) as stream:
        for _ in range(5):
            for mode in ("clsact", "tcx"):
                firewall.attach(INTERFACE, "ingress", mode)
                stream.flows(5)
    assert (stream.lost, stream.leaked) == ([], [])
    assert wait_until(lambda: attached(INTERFACE) == [("ingress", "tcx", our_program())])


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_attaching_again_disturbs_nothing(machine: Network, mode: str) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, "ingress", mode)
    with Stream(machine) as stream:
        for _ in range(10):
            firewall.attach(INTERFACE, "ingress", mode)
    assert (stream.lost, stream.leaked) == ([], [])
    assert stream.sent > 100


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_detach_loses_nothing(machine: Network, mode: str) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, "ingress", mode)
    with Stream(machine) as stream:
        stream.flows()
        firewall.detach(INTERFACE)
        assert wait_until(lambda: attached(INTERFACE) == [])
        detached_at = stream.flows(0)
        stream.flows()
    assert stream.lost == []
    # From the first that passes, all do.
    assert stream.leaked == list(range(stream.leaked[0], stream.sent))
    assert stream.leaked[0] <= detached_at + 1


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_rules_settings_and_addresses_are_there_before_the_program_is(
    machine: Network, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's answer at the last moment before it is attached."""
    allow()
    Firewall().set([INTERFACE], "icmp_echo", True)
    machine.gateway.run("ip", "address", "add", "10.99.0.1/24", "dev", INTERFACE)
    answers = []

    def attach(attachment: Tcx | Clsact | NetnsHook, *rest: Any) -> None:
        if isinstance(attachment, NetnsHook):
            original(attachment, *rest)
            return
        maps = Maps(is_writer=False)  # the writer holds the lock
        for some in (frame(ALLOWED), frame(22, "tcp"), frame(22, "tcp", "10.99.0.1")):
            answers.append(explain(maps, some, attachment.ifindex).reason)
        original(attachment, *rest)

    original = lifecycle.attach
    monkeypatch.setattr(lifecycle, "attach", attach)
    Firewall().attach(INTERFACE, "ingress", mode)
    machine.gateway.run("ip", "address", "del", "10.99.0.1/24", "dev", INTERFACE)
    assert answers == ["rule_pass", "ssh", "ssh"]


# Interfaces come, go, and have other names


@pytest.fixture
def pair(machine: Network) -> Iterator[Callable[[], None]]:
    """An interface it0 of a pair; called, it makes it, after it has removed what was there."""

    def make() -> None:
        machine.gateway.run("ip", "link", "del", "it0", check=False)
        machine.gateway.add_veth("it0", "it1")
        machine.gateway.run("ip", "address", "add", "10.98.0.1/24", "dev", "it0")

    make()
    yield make
    make()
    for setting in ("icmp_echo", "per_interface_rules"):
        Firewall().set(["it0"], setting, False)
    machine.gateway.run("ip", "link", "del", "it0")


def test_rules_and_settings_follow_the_name_of_an_interface_that_is_made_anew(
    machine: Network, pair: Callable[[], None]
) -> None:
    firewall = Firewall()
    firewall.attach("it0", "ingress", "tcx")
    firewall.set(["it0"], "per_interface_rules", True)
    firewall.set(["it0"], "icmp_echo", True)
    key = RuleKey(Prefix.parse("192.0.2.1"), "udp", 7)
    firewall.insert(Rule(key, interfaces=("it0",)))
    firewall.insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "udp", 8)))
    old = socket.if_nametoindex("it0")
    pair()
    new = socket.if_nametoindex("it0")
    assert new != old
    (attachment,) = firewall.attach("it0", "ingress", "tcx")
    assert attachment.ifindex == new
    assert attached("it0") == [("ingress", "tcx", our_program())]

    def reason(port: int, protocol: str = "udp", destination: str = "192.0.2.1") -> str:
        return firewall.explain(frame(port, protocol, destination), "it0").reason

    assert (reason(7), reason(8)) == ("rule_pass", "no_rule")
    assert reason(22, "tcp", "10.98.0.1") == "ssh"
    assert firewall.rules(destination=key.destination)[0].interfaces == ("it0",)
    (row,) = [row for row in firewall.status().interfaces if row.name == "it0"]
    assert row.ifindex == new
    assert row.settings["icmp_echo"]
    assert row.settings["per_interface_rules"]
    assert row.addresses == ["10.98.0.1"]


def test_what_was_attached_to_an_interface_that_is_gone_is_gone(
    machine: Network, pair: Callable[[], None]
) -> None:
    Firewall().attach("it0", "both")
    machine.gateway.run("ip", "link", "del", "it0")
    pinned = names_in(directory())
    assert [row for row in Firewall().status().interfaces if row.attachments] == []
    assert names_in(directory()) == pinned, "a reader has removed something"
    Firewall().attach(INTERFACE, "ingress")
    links = [name for name in names_in(directory()) if name.startswith(PIN)]
    index = socket.if_nametoindex(INTERFACE)
    assert links == [f"{PIN}ingress_{index}"], "the writer removes pins of dead links"


def test_an_index_that_is_given_again_to_an_interface_of_another_kind(
    machine: Network, pair: Callable[[], None]
) -> None:
    """Frames of a tun start with the IP header; the index tells nothing of that."""
    Firewall().attach("it0", "ingress")
    index = str(socket.if_nametoindex("it0"))
    machine.gateway.run("ip", "link", "del", "it0")
    machine.gateway.run("ip", "tuntap", "add", "dev", "other0", "mode", "tun")
    machine.gateway.run("ip", "link", "set", "dev", "other0", "name", "it0")
    made = socket.if_nametoindex("it0")
    if str(made) != index:
        # An index can be asked for, but not by ip tuntap: say that it was the same.
        with Maps(is_writer=True) as maps:
            rows = maps.map("interfaces")
            row = rows.lookup(pack("=I", int(index))) or b""
            rows.update(pack("=I", made), pack("=I", made) + row[4:])
            names = maps.map("interface_names")
            value = names.lookup(b"it0".ljust(16, b"\0")) or b""
            names.update(b"it0".ljust(16, b"\0"), value[:8] + pack("=I4x", made))
    Firewall().attach("it0", "ingress")
    with Maps(is_writer=False) as maps:
        row = maps.map("interfaces").lookup(pack("=I", made)) or b""
    assert unpack_from("=I", row, 12) == (layout.LINK_NO_ETHERNET,)


def test_an_alternative_name_is_the_interface_s_own(
    machine: Network, pair: Callable[[], None]
) -> None:
    machine.gateway.run("ip", "link", "property", "add", "dev", "it0", "altname", "other")
    firewall = Firewall()
    firewall.attach("it0", "ingress")
    assert len(firewall.attach("other", "ingress")) == 1
    assert len(attached("it0")) == 1
    firewall.set(["it0"], "icmp_echo", True)
    firewall.set(["other"], "per_interface_rules", True)
    (row,) = [row for row in firewall.status().interfaces if row.ifindex]
    assert row.name == "it0"
    assert row.settings["icmp_echo"]
    assert row.settings["per_interface_rules"]

    key = RuleKey(Prefix.parse("192.0.2.1"), "udp", 7)
    firewall.insert(Rule(key, interfaces=("other",)))
    assert firewall.rules()[0].interfaces == ("it0",)
    some = frame(7, destination="192.0.2.1")
    assert firewall.explain(some, "other").reason == "rule_pass"
    firewall.delete(key, ("it0",))
    firewall.detach("other")
    assert wait_until(lambda: attached("it0") == [])
