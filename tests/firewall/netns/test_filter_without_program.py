# SPDX-License-Identifier: GPL-2.0-only
"""The outbound filter and egress rules need an egress program: nothing else is accepted in silence.

The modern command is refused. Where the order is free (a restore, classic -b, a rule before the
filter), there is a warning, and the status goes on saying it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfw_py import Firewall
from zfw_py.cli.app import main
from zfw_py.cli.classic.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

RULE = ("-z", "egress", "-c", "198.51.100.0/24", "-p", "tcp", "-l", "443")
NO_EFFECT = (
    "zfw: warning: gw0: outbound-filter is on, and has no effect without an egress program:"
    " zfw attach gw0 --direction egress\n"
)
IDLE = (
    "rule egress tcp 198.51.100.0/24 port 443 pass has no effect: no interface with"
    " an egress program has the outbound filter: zfw set IFACE --outbound-filter on\n"
)


@pytest.fixture
def ingress(network: Network) -> None:
    Firewall().attach("gw0", "ingress")


def is_on() -> bool:
    return Firewall().save().settings.get("gw0") is not None


@pytest.mark.usefixtures("ingress")
@pytest.mark.parametrize("names", [["gw0"], ["all"]])
def test_the_command_is_refused_and_changes_nothing(
    names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["set", *names, "--ipv6", "on", "--outbound-filter", "on"]) == 3
    assert capsys.readouterr().err == (
        "zfw: outbound-filter: no egress program is attached to gw0\n"
        "hint: zfw attach gw0, then this command\n"
    )
    assert not is_on()
    assert main(["attach", "gw0"]) == 0
    assert main(["set", *names, "--outbound-filter", "on"]) == 0
    assert is_on()
    assert main(["status"]) == 0
    assert main(["set", *names, "--outbound-filter", "off"]) == 0


@pytest.mark.usefixtures("ingress")
def test_lo_is_never_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attach", "lo"]) == 0
    assert main(["set", "lo", "--outbound-filter", "on"]) == 2
    assert capsys.readouterr().err == "zfw: outbound-filter: lo is never filtered\n"


@pytest.mark.usefixtures("network")
def test_a_filter_whose_program_is_detached_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Firewall().attach("gw0")
    assert main(["set", "gw0", "--outbound-filter", "on"]) == 0
    capsys.readouterr()
    assert main(["detach", "gw0"]) == 0
    assert capsys.readouterr().err == NO_EFFECT
    assert main(["status"]) == 21
    assert capsys.readouterr().err == NO_EFFECT
    assert main(["attach", "gw0"]) == 0
    assert main(["status"]) == 0


@pytest.mark.usefixtures("ingress")
def test_the_classic_command_succeeds_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-b", "gw0"]) == 0
    assert capsys.readouterr() == (
        "Set outbound_filter to 1 for gw0\n",
        "zfw: warning: gw0: the outbound filter has no effect without an egress program:"
        " zfw -X gw0 -O zfw_tc_outbound_track.o -z egress\n",
    )
    assert main(["status"]) == 21
    assert capsys.readouterr().err == NO_EFFECT
    assert run(["-X", "gw0", "-O", "zfw_tc_outbound_track.o", "-z", "egress"]) == 0
    assert main(["status"]) == 0
    capsys.readouterr()
    assert run(["-b", "gw0"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["-b", "gw0", "-d"]) == 0


@pytest.mark.usefixtures("ingress")
def test_an_egress_rule_without_a_filter_is_inserted_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = tmp_path / "batch"
    batch.write_text(f"insert {' '.join(RULE)}\n")
    Firewall().attach("gw0")
    for command in (["insert", *RULE], ["batch", str(batch)]):
        assert main(command) == 0
        assert capsys.readouterr().err.endswith(f": {IDLE}")
    classic = ["-I", *RULE[:2], "-c", "198.51.100.0", "-m", "24", *RULE[4:], "-h", "443", "-t", "0"]
    assert run(classic) == 0
    assert capsys.readouterr().err == "", "callers turn the filter on after that"
    assert main(["set", "gw0", "--outbound-filter", "on"]) == 0
    capsys.readouterr()
    for command in (["insert", *RULE], ["batch", str(batch)]):
        assert main(command) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("network")
def test_a_document_that_cannot_filter_is_restored_with_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zfw.toml"
    path.write_text(
        """\
version = 1

[settings.gw0]
outbound_filter = true

[[attachments]]
interface = "gw0"

[[rules]]
destination = "198.51.100.0/24"
direction = "egress"
protocol = "tcp"
low_port = 443
action = "pass"
"""
    )
    warnings = (
        "zfw: warning: settings.gw0: outbound_filter has no effect without an egress attachment\n"
        "zfw: warning: rules: egress rules have no effect: no interface has outbound_filter and an"
        " egress attachment\n"
    )
    for options in (["--check"], []):
        assert main(["restore", *options, str(path)]) == 0
        assert capsys.readouterr().err == warnings
    assert main(["status"]) == 21
    assert capsys.readouterr().err == NO_EFFECT
    path.write_text(path.read_text().replace("[[rules]]", EGRESS + "[[rules]]"))
    for options in (["--check"], []):
        assert main(["restore", *options, str(path)]) == 0
        assert capsys.readouterr().err == ""
    assert main(["status"]) == 0


EGRESS = """\
[[attachments]]
interface = "gw0"
direction = "egress"

"""
