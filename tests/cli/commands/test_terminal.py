# SPDX-License-Identifier: GPL-2.0-only
"""Tables of the real commands on real terminals of several widths."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from tests.support.command import ZFW
from zfw_py import Firewall, Insert, Prefix, Rule, RuleKey

pytestmark = pytest.mark.kernel

V4 = Rule(RuleKey(Prefix.parse("100.72.0.4/32"), "tcp", 443), tproxy_port=43321)
LONG = Prefix.parse("2001:db8:1111:2222:3333:4444:5555:6666/128")
V6 = Rule(
    RuleKey(LONG, "udp", 53, source=LONG),
    65535,
    tproxy_port=5353,
    service_id="5XzC8mf1RrFO2vmfHGG5GL",
    interfaces=["gw0", "lo"],
)
WIDTHS = (80, 100, 120, 200)
# Values that a line holds as they are.
VALUE = re.compile(r"[0-9a-f:.]+/[0-9]+|[0-9]+-[0-9]+")


def on_terminal(width: int, *words: str, colour: bool = True) -> str:
    """The output of zfw on a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color"}
    if not colour:
        environment["NO_COLOR"] = "1"
    with subprocess.Popen([ZFW, *words], stdout=slave, env=environment) as process:
        os.close(slave)
        seen = b"".join(iter(lambda: _read(master), b""))
        os.close(master)
    assert process.returncode == 0
    return seen.decode().replace("\r\n", "\n")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the command has ended
        return b""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def test_a_rule_of_ipv4_is_one_line_of_80_columns(firewall: Firewall) -> None:
    firewall.apply([Insert(V4)])
    _, head, _, only, _ = plain(on_terminal(80, "list")).splitlines()
    assert "100.72.0.4/32" in only.split()
    assert "SOURCE" not in head


@pytest.mark.parametrize("width", WIDTHS)
def test_500_rules_are_legible(firewall: Firewall, width: int) -> None:
    many = [
        Rule(RuleKey(Prefix.parse(f"100.72.{n // 250}.{n % 250}/32"), "tcp", 443), tproxy_port=1)
        for n in range(499)
    ]
    firewall.apply([Insert(each) for each in [*many, V6]])
    coloured = on_terminal(width, "list")
    assert "\x1b[32mintercept\x1b[0m" in coloured
    text = on_terminal(width, "list", colour=False)
    assert plain(coloured) == text
    assert max(map(len, text.splitlines())) <= width
    wide = on_terminal(width, "list", "--wide", colour=False)
    assert len(wide.splitlines()) == (504 if "╭" in wide else 501)
    defaults = {"0.0.0.0/0", "::/0"}
    values = set(VALUE.findall(wide)) - defaults
    assert len(values) == 499 + 2
    assert set(VALUE.findall(text)) - defaults == values


@pytest.mark.parametrize("width", WIDTHS)
def test_status_and_flows_are_legible(firewall: Firewall, width: int) -> None:
    firewall.set(["gw0"], "ipv6", True)
    firewall.apply([Insert(V4), Insert(V6)])
    for words in (["status"], ["flows"]):
        text = plain(on_terminal(width, *words))
        assert max(map(len, text.splitlines())) <= width


def test_a_pipe_has_what_a_wide_terminal_has_and_exact_numbers(firewall: Firewall) -> None:
    firewall.apply([Insert(V4), Insert(V6)])
    piped = subprocess.run([ZFW, "list"], capture_output=True, text=True, check=True).stdout
    wide = on_terminal(60, "list", "--wide", colour=False)
    assert piped.splitlines()[0].split() == wide.splitlines()[0].split()
    assert [each.split()[:9] for each in piped.splitlines()[1:]] == [
        each.split()[:9] for each in wide.splitlines()[1:]
    ]
