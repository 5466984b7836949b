# SPDX-License-Identifier: GPL-2.0-only
"""Tables on a terminal of any width, and elsewhere."""

from __future__ import annotations

import io
import ipaddress
import re
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from zfw_py import Prefix, Rule, RuleKey
from zfw_py.cli import tables
from zfw_py.cli.commands import flows, status
from zfw_py.cli.commands import list as rules_command
from zfw_py.cli.commands.docker_dns import list as redirects
from zfw_py.cli.commands.guard import list as guards
from zfw_py.cli.commands.steer import list as mappings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Cells = tuple[str | int, ...]

COLUMNS = (
    tables.Column("NAME"),
    tables.Column("ACTION"),
    tables.Column("BYTES", is_number=True, is_bytes=True),
)
ROWS: list[Cells] = [("[red]a\x1b[0m", "deny", 0), ("", "pass", 12_345_678)]
# Every table of a command.
ALL = {
    "list": rules_command.COLUMNS,
    "flows": flows.COLUMNS,
    "interfaces": status.INTERFACES,
    "reasons": status.REASONS,
    "guards": guards.COLUMNS,
    "redirects": redirects.COLUMNS,
    "mappings": mappings.COLUMNS,
}
WIDTHS = (80, 100, 120, 200)
BYTES = re.compile(r"[0-9.]+ ([kMGTPE]B|B)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def row(cells: Cells) -> Cells:
    return cells


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Hypothesis runs a test many times within one use of a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def shown(
    columns: Sequence[tables.Column],
    rows: Sequence[Cells],
    width: int = 80,
    *,
    wide: bool = False,
    colour: bool = False,
) -> str:
    """What a terminal of this width gets."""
    terminal = Terminal()
    with variables(COLUMNS=str(width), NO_COLOR="" if colour else "1"), redirect_stdout(terminal):
        tables.table(columns, rows, row, wide=wide)
    return terminal.getvalue()


def listed(
    rules: Sequence[Rule], width: int = 80, *, wide: bool = False, colour: bool = False
) -> str:
    rows = [rules_command.cells(rule) for rule in rules]
    return shown(rules_command.COLUMNS, rows, width, wide=wide, colour=colour)


def rule(
    destination: str = "100.72.0.4/32",
    low: int = 443,
    high: int | None = None,
    *,
    source: str = "",
    protocol: str = "tcp",
    direction: str = "ingress",
    packets: int = 0,
    **others: object,
) -> Rule:
    where = Prefix.parse(destination)
    if direction == "egress":
        others["tproxy_port"] = 0
    made = Rule(
        RuleKey(
            where,
            protocol,
            low,
            source=Prefix.parse(source) if source else None,
            direction=direction,
        ),
        high,
        **others,  # type: ignore[arg-type]
    )
    made.packets, made.bytes = packets, packets * 60
    return made


# A pipe


def test_elsewhere_it_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    tables.table(COLUMNS, ROWS, row)
    assert capsys.readouterr().out == (
        "NAME           ACTION     BYTES\n"
        "[red]a\\x1b[0m  deny           0\n"
        "-              pass    12345678\n"
    )


def test_a_pipe_has_every_column_in_one_line_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    tables.table(rules_command.COLUMNS, [rule("2001:db8::/32")], rules_command.cells)
    head, only = capsys.readouterr().out.splitlines()
    assert head.split() == [column.title for column in rules_command.COLUMNS]
    assert only.split() == [
        "ingress",
        "tcp",
        "2001:db8::/32",
        "::/0",
        "443",
        "pass",
        "-",
        "-",
        "-",
        "0",
        "0",
    ]


# A terminal


def test_a_terminal_has_colours() -> None:
    text = shown(COLUMNS, ROWS, colour=True)
    assert "\x1b[31mdeny" in text
    assert "\x1b[36mpass" in text
    assert "\x1b[1mNAME" in text
    assert r"[red]a\x1b[0m" in text
    assert "12.3 MB" in text


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_terminal_may_have_no_colours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "dumb")
    terminal = Terminal()
    with redirect_stdout(terminal):
        tables.table(COLUMNS, ROWS, row)
    assert "\x1b" not in terminal.getvalue()


def test_colours_do_not_move_columns() -> None:
    plain = shown(COLUMNS, ROWS)
    assert re.sub(r"\x1b\[\d*m", "", shown(COLUMNS, ROWS, colour=True)) == plain


def test_a_rule_of_ipv4_has_one_line_of_80_columns() -> None:
    assert listed([rule(tproxy_port=43321, packets=12)]) == (
        "╭──────────┬───────────────┬───────┬───────────┬────────┬─────────┬───────╮\n"
        "│ PROTOCOL │ DESTINATION   │ PORTS │ ACTION    │ TPROXY │ PACKETS │ BYTES │\n"
        "├──────────┼───────────────┼───────┼───────────┼────────┼─────────┼───────┤\n"
        "│ tcp      │ 100.72.0.4/32 │ 443   │ intercept │ 43321  │      12 │ 720 B │\n"
        "╰──────────┴───────────────┴───────┴───────────┴────────┴─────────┴───────╯\n"
    )


def test_a_frame_goes_where_it_has_no_room() -> None:
    assert listed([rule("fd72:1234:5678::4/128", tproxy_port=43321, packets=12)]) == (
        "PROTOCOL  DESTINATION            PORTS  ACTION     TPROXY  PACKETS  BYTES\n"
        "tcp       fd72:1234:5678::4/128  443    intercept  43321        12  720 B\n"
    )


def test_a_column_with_a_value_in_one_row_is_shown() -> None:
    text = listed([rule(), rule(source="10.0.0.0/8"), rule(direction="egress")])
    assert text.splitlines()[0].split()[:4] == ["DIRECTION", "PROTOCOL", "DESTINATION", "SOURCE"]
    assert "SERVICE" not in text


def test_wide_has_every_column() -> None:
    for name, columns in ALL.items():
        cells = tuple(0 if column.is_number else "" for column in columns)
        head = shown(columns, [cells], 20, wide=True).splitlines()[0]
        assert re.split("  +", head.strip()) == [column.title for column in columns], name


def test_what_does_not_fit_has_a_second_line() -> None:
    text = listed([
        rule("100.72.0.4/32", 1024, 65535, source="100.64.0.0/10", tproxy_port=43321,
             service_id="5XzC8mf1RrFO2vmfHGG5GL", interfaces=["eth0", "eth1"]),
    ])  # fmt: skip
    assert text == (
        "PROTOCOL  DESTINATION    SOURCE         PORTS       ACTION     TPROXY  PACKETS\n"
        "  BYTES  SERVICE                 INTERFACES\n"
        "tcp       100.72.0.4/32  100.64.0.0/10  1024-65535  intercept  43321         0\n"
        "    0 B  5XzC8mf1RrFO2vmfHGG5GL  eth0,eth1\n"
    )


def test_a_row_has_no_second_line_without_a_value() -> None:
    text = listed([
        rule("100.72.0.4/32", 1024, 65535, source="100.64.0.0/10", tproxy_port=43321),
        rule(service_id="5XzC8mf1RrFO2vmfHGG5GL" * 2),
    ], 86)  # fmt: skip
    assert [each.split()[0] for each in text.splitlines()] == [
        "PROTOCOL", "SERVICE", "tcp", "tcp", "5XzC8mf1RrFO2vmfHGG5GL" * 2
    ]  # fmt: skip


def test_lists_break_between_their_items() -> None:
    addresses = ",".join(f"fe80::5054:ff:fe12:{n:x}" for n in range(1, 4))
    text = shown(status.INTERFACES, [("eth0", 2, "tcx", "tcx", "icmp-echo,ssh,ipv6", addresses)])
    lines = text.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert all(each in text for each in addresses.split(","))


def test_a_wide_character_takes_two_cells() -> None:
    rows: list[Cells] = [("漢字", "pass", 1), ("abcd", "pass", 1)]
    first, second = shown(COLUMNS, rows, wide=True).splitlines()[3:5]
    assert first.index("pass") == second.index("pass") - 2


def test_thousands_of_rows_are_short_too() -> None:
    rules = [rule(f"100.72.{n >> 8}.{n & 255}/32") for n in range(5000)]
    lines = listed(rules).splitlines()
    assert len(lines) == 5001
    assert "SOURCE" not in lines[0]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_fits(name: str, width: int) -> None:
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    longest = {
        "CGROUP": "/system.slice/docker-" + "0123456789abcdef" * 4 + ".scope",
        "INITIATOR": f"[{address}]:65535",
        "RESPONDER": f"[{address}]:65535",
        "DNS": f"[{address}]:65535,10.0.0.1:53",
        "ADDRESSES": f"{address},10.0.0.1",
        "ADDRESS": f"{address}/128",
        "TO": f"[{address}]:65535",
        "SOCKETS": "1234567+1234568,(1234569)",
    }
    cells = tuple(
        2**64 - 1 if column.is_number else longest.get(column.title, column.title.lower())
        for column in ALL[name]
    )
    text = shown(ALL[name], [cells] * 2, width)
    assert max(map(len, text.splitlines())) <= width
    assert_whole(text, ALL[name], [cells] * 2)


# Random rules

ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
    st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
)
CHARACTERS = st.characters(min_codepoint=33, exclude_categories=["Cs"], exclude_characters="\x7f")
NAMES = st.from_regex(r"[a-z0-9]{1,15}", fullmatch=True)


@st.composite
def random_rules(draw: st.DrawFn) -> Rule:
    address = draw(ADDRESSES)
    low = draw(st.integers(0, 65535))
    source = draw(st.integers(0, 2**address.max_prefixlen - 1))
    length = draw(st.integers(0, address.max_prefixlen))
    deny = draw(st.booleans())
    network = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
    made = rule(
        f"{address}/{address.max_prefixlen}",
        low,
        draw(st.integers(low, 65535)),
        source=str(network((source, length), strict=False)),
        protocol=draw(st.sampled_from(["tcp", "udp"])),
        direction=draw(st.sampled_from(["ingress", "egress"])),
        deny=deny,
        tproxy_port=0 if deny else draw(st.integers(0, 65535)),
        service_id=draw(st.text(CHARACTERS, max_size=16)),
        interfaces=draw(st.lists(NAMES, max_size=8)),
        packets=draw(st.integers(0, 2**58)),
    )
    return made


def assert_whole(text: str, columns: Sequence[tables.Column], rows: Sequence[Cells]) -> None:
    """Each value that says anything is there; none but a list or a longer one is broken."""
    words = Counter(word for each in text.split() for word in each.split(",") if word)
    together = "".join(text.split())
    for place, column in enumerate(columns):
        values = [str(cells[place]) for cells in rows]
        if set(values) <= {"", "-", *column.defaults} or column.is_bytes:
            continue
        for value, count in Counter(values).items():
            if column.title in ("SERVICE", "CGROUP"):
                assert "".join(tables.safe(value).split()) in together
            elif column.is_list:
                assert all(words[item] for item in value.split(",") if item)
            elif value in ("", "-"):
                continue  # in a line without a value, which is left out
            else:
                assert words[value] >= count, (column.title, value)


@given(
    st.lists(random_rules(), min_size=1, max_size=6),
    st.integers(80, 250),
    st.booleans(),
)
def test_no_value_of_random_rules_is_broken_or_missing(
    rules: list[Rule], width: int, colour: bool
) -> None:
    text = re.sub(r"\x1b\[\d*m", "", listed(rules, width, colour=colour))
    assert all(cell_len(each) <= width for each in text.splitlines())
    assert_whole(text, rules_command.COLUMNS, [rules_command.cells(each) for each in rules])
    wide = re.findall(BYTES, listed(rules, wide=True))
    assert re.findall(BYTES, text) == wide
