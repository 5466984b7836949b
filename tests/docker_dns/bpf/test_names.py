# SPDX-License-Identifier: GPL-2.0-only
"""Which names docker_dns's query program takes, against dnspython and a reading by hand."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import IPv4Address
from random import Random
from typing import TYPE_CHECKING

import dns.message
import dns.name
import dns.rdatatype
import pytest

from tests.docker_dns.support.programs import LEAVE, REDIRECT, RESOLVER, Programs, Settings
from tests.docker_dns.support.reference import UDP, first_question, is_covered
from tests.firewall.support import packets

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.kernel

SEEDS = range(10)
SETS_PER_SEED, NAMES_PER_SET = 12, 250
DAEMON = 41552
HEADER = bytes.fromhex("1234 0100 0001 0000 0000 0000")
TYPE_AND_CLASS = b"\0\1\0\1"
# Of suffixes: as people write them; the longest label and the longest name.
LABELS = ("com", "example", "corp", "a", "b", "x-1", "_tcp", "xn--bcher-kva", "l" * 63)
LONGEST = ".".join(["l" * 63, "m" * 63, "n" * 63, "o" * 61])


@pytest.fixture
def programs(loaded: Programs) -> Programs:
    """Only names below "example" are taken."""
    loaded.clear()
    loaded.configure(Settings(has_domains=True))
    loaded.set_daemon(DAEMON, 0)
    loaded.set_domains({"example"})
    return loaded


def _ask(programs: Programs, message: bytes, udp_length: int | None = None) -> str:
    """What becomes of it: "query", "builtin_name" or "builtin_unreadable"; the event agrees."""
    datagram = packets.udp(40000, DAEMON, message)
    if udp_length is not None:
        datagram = datagram[:4] + struct.pack("!H", udp_length) + datagram[6:]
    packet = packets.ipv4(IPv4Address("127.0.0.1"), RESOLVER, UDP, datagram)
    verdict, _ = programs.run("query", packets.ethernet(packet, 0x0800))
    (event,) = programs.events()
    assert verdict == (REDIRECT if event.outcome == "query" else LEAVE)
    read = first_question(message) if udp_length is None else None
    if read:
        number, labels = read
        assert event.id == number
        assert event.name == b"".join(bytes([len(label)]) + label for label in labels)
    elif udp_length is None:
        assert (event.id, event.name) == (0, None)
    return event.outcome


def _question(*labels: bytes, end: bytes = b"\0") -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels)
    return HEADER + name + end + TYPE_AND_CLASS


# --- one by one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["example", "www.example", "EXAMPLE", "wWw.ExAmPlE", "a.b.c.example", "example.example"]
)
def test_names_below_a_suffix_are_taken(programs: Programs, name: str) -> None:
    assert _ask(programs, dns.message.make_query(name, "AAAA").to_wire()) == "query"


@pytest.mark.parametrize(
    "name", [".", "com", "example.com", "notexample", "examples", "xample", "www.example.org"]
)
def test_other_names_are_left(programs: Programs, name: str) -> None:
    assert _ask(programs, dns.message.make_query(name, "AAAA").to_wire()) == "builtin_name"


def test_letters_and_nothing_else_have_two_cases(programs: Programs) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    programs.set_domains({letters, "a@[`{"})
    assert _ask(programs, _question(letters.upper().encode())) == "query"
    assert _ask(programs, _question(b"A@[`{")) == "query"
    for label in (b"a`[`{", b"a@{`{", b"a@[@{", b"a@[`["):
        assert _ask(programs, _question(label)) == "builtin_name"


def test_the_root_takes_every_name(programs: Programs) -> None:
    programs.set_domains({""})
    for labels in ((), (b"com",), (b"a.b", b"com"), (b"\0\xff",), (b"a",) * 127):
        assert _ask(programs, _question(*labels)) == "query"


def test_a_dot_within_a_label_ends_none(programs: Programs) -> None:
    assert _ask(programs, _question(b"www.example")) == "builtin_name"
    assert _ask(programs, _question(b"www", b".example")) == "builtin_name"
    assert _ask(programs, _question(b"example.")) == "builtin_name"
    # DNS-SD's instances are called like this (RFC 6763, section 4.3).
    assert _ask(programs, _question(b"Dr. Who's printer", b"_ipp", b"example")) == "query"


def test_no_suffix_at_all(programs: Programs) -> None:
    programs.set_domains(set())
    assert _ask(programs, _question(b"example")) == "builtin_name"
    assert _ask(programs, _question()) == "builtin_name"


def test_the_longest_names(programs: Programs) -> None:
    programs.set_domains({LONGEST, "a." * 126 + "a"})
    longest = [label.encode() for label in LONGEST.split(".")]
    assert len(_question(*longest)) - len(HEADER) - len(TYPE_AND_CLASS) == 255
    assert _ask(programs, _question(*longest)) == "query"
    assert _ask(programs, _question(*(b"a",) * 127)) == "query"
    # 256 bytes, in two ways.
    assert _ask(programs, _question(*longest[:-1], b"o" * 62)) == "builtin_unreadable"
    assert _ask(programs, _question(*(b"a",) * 126, b"aa")) == "builtin_unreadable"
    assert _ask(programs, _question(*(b"a",) * 128)) == "builtin_unreadable"


def test_a_name_that_ends_the_message(programs: Programs) -> None:
    # Type and class are the server's to miss.
    assert _ask(programs, _question(b"www", b"example")[:-4]) == "query"
    assert _ask(programs, HEADER + b"\0") == "builtin_name"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\7exampl", id="half a label"),
        pytest.param(b"\7example", id="no root"),
        pytest.param(b"\xc0\x0c", id="a pointer to itself"),
        pytest.param(b"\7example\xc0\x0c", id="a pointer behind a label"),
        pytest.param(b"\3www\xc0\x14\7example\0", id="a pointer forwards"),
        pytest.param(b"\xc0", id="half a pointer"),
        pytest.param(b"\x40" + b"e" * 64 + b"\0", id="a label of 64 bytes"),
        pytest.param(b"\x41\7example\0", id="an extended label (RFC 2673)"),
        pytest.param(b"\x80\7example\0", id="a label of no known type"),
        pytest.param(b"\xff" * 300, id="all ones"),
        pytest.param(b"\1a" * 200, id="no end"),
        pytest.param(b"\x3f" + b"\x3f" * 300, id="labels of labels"),
    ],
)
def test_what_is_no_name_is_left(programs: Programs, name: bytes) -> None:
    programs.set_domains({"example", ""})
    assert _ask(programs, HEADER + name) == "builtin_unreadable"


@pytest.mark.parametrize(
    ("place", "word"),
    [(2, 0x8180), (2, 0x8000), (2, 0x2800), (2, 0x0800), (2, 0x7800), (4, 0)],
    ids=["answer", "response", "update", "inverse", "opcode 15", "no question"],
)
def test_what_is_no_query_is_left(programs: Programs, place: int, word: int) -> None:
    message = bytearray(_question(b"example"))
    message[place : place + 2] = struct.pack("!H", word)
    assert _ask(programs, bytes(message)) == "builtin_unreadable"


def test_other_flags_and_counts_are_the_servers(programs: Programs) -> None:
    message = bytearray(_question(b"example"))
    message[2:12] = struct.pack("!HHHHH", 0x07FF, 0xFFFF, 3, 4, 5)
    assert _ask(programs, bytes(message)) == "query"


@pytest.mark.parametrize("length", range(len(HEADER) + 1))
def test_half_a_message_is_left(programs: Programs, length: int) -> None:
    assert _ask(programs, _question(b"example")[:length]) == "builtin_unreadable"


def test_the_message_is_as_long_as_udp_says(programs: Programs) -> None:
    message = _question(b"example")
    whole = 8 + len(message)
    assert _ask(programs, message, whole) == "query"
    # A server reads no name here, or another one.
    for length in (0, 7, 8, 20, whole - 5, whole + 1, 65535):
        assert _ask(programs, message, length) == "builtin_unreadable"


# --- random ----------------------------------------------------------------------------------


def _random_suffixes(rng: Random) -> set[str]:
    suffixes = {
        ".".join(rng.choices(LABELS, k=rng.choice((1, 1, 2, 2, 3, 4))))
        for _ in range(rng.choice((0, 1, 2, 5, 40)))
    }
    suffixes = {suffix for suffix in suffixes if len(suffix) <= 253}
    if rng.random() < 0.2:
        suffixes.add(LONGEST)
    if rng.random() < 0.1:
        suffixes.add("")
    return suffixes


def _random_labels(rng: Random, suffixes: set[str]) -> list[bytes]:
    """A name near the suffixes; dots, zeros and anything else in labels included."""
    labels = [label.encode() for label in rng.choices(LABELS, k=rng.randrange(4))]
    if suffixes and rng.random() < 0.8:
        labels += [label.encode() for label in rng.choice(sorted(suffixes)).split(".") if label]
    change = rng.random()
    place = rng.randrange(len(labels)) if labels else 0
    if not labels or change < 0.3:
        pass
    elif change < 0.45:
        # Not at a label's border.
        labels[place] = rng.choice((b"not", b".", b"a.", b"\0")) + labels[place]
    elif change < 0.6:
        labels[place : place + 2] = [rng.choice((b".", b"", b"\0")).join(labels[place : place + 2])]
    elif change < 0.7:
        labels[place] = rng.randbytes(rng.randrange(1, 64))
    elif change < 0.8:
        del labels[place]
    elif change < 0.9:
        labels[:0] = [bytes([rng.choice(b"ab.\0")])] * rng.randrange(1, 127)
    if rng.random() < 0.5:
        labels = [rng.choice((bytes.upper, bytes.title, bytes.lower))(label) for label in labels]
    return labels


def _random_hostile(rng: Random, labels: list[bytes]) -> bytes:
    """A message that may be anything."""
    message = bytearray(_question(*(label[:255] for label in labels)))
    for _ in range(rng.randrange(1, 4)):
        kind = rng.random()
        place = rng.randrange(len(HEADER), len(message)) if len(message) > 12 else 0
        if kind < 0.3:
            del message[place:]
        elif kind < 0.6:
            message[place : place + 1] = bytes([rng.randrange(256)])
        elif kind < 0.75:
            message[place : place + 1] = b"\xc0" + bytes([rng.randrange(64)])
        elif kind < 0.85:
            message[place:place] = rng.randbytes(rng.randrange(300))
        elif kind < 0.95:
            message[2:6] = rng.randbytes(4)
        else:
            message = bytearray(rng.randbytes(rng.randrange(400)))
    return bytes(message)


def _wanted(labels: list[bytes], suffixes: set[str]) -> str:
    """As dnspython has it: of a name that is none it says so."""
    try:
        name = dns.name.Name([*labels, b""])
    except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel):
        return "builtin_unreadable"
    below = any(name.is_subdomain(dns.name.from_text(suffix or ".")) for suffix in suffixes)
    return "query" if below else "builtin_name"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_names_are_taken_as_others_read_them(programs: Programs, seed: int) -> None:
    rng = Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(SETS_PER_SEED):
        suffixes = _random_suffixes(rng)
        programs.set_domains(suffixes)
        for number in range(NAMES_PER_SET):
            labels = _random_labels(rng, suffixes)
            wanted = _wanted(labels, suffixes)
            # An empty label would end the name; and one of so many bytes has no length.
            if number % 2 and all(0 < len(label) < 256 for label in labels):
                message = _question(*labels)
            else:
                message = _random_hostile(rng, labels)
                read = first_question(message)
                wanted = "builtin_unreadable"
                if read:
                    wanted = "query" if is_covered(read[1], suffixes) else "builtin_name"
            assert _ask(programs, message) == wanted, f"{message.hex()}, {suffixes}"
            seen[wanted] += 1
    assert min(seen[outcome] for outcome in ("query", "builtin_name", "builtin_unreadable")) > 100
