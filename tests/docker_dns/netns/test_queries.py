# SPDX-License-Identifier: GPL-2.0-only
"""Queries to the built-in resolver, answered by another server: what programs inside see."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import pack
from subprocess import PIPE
from typing import TYPE_CHECKING

import dns.message
import pytest

from tests.docker_dns.support.world import (
    ANY_ANSWER,
    BACKENDS,
    BUILTIN_ANSWER,
    CONTAINER,
    PATIENCE,
    RESOLVER,
    SERVER,
    docker_world,
    resolv_conf,
)
from tests.support.daemons import running
from zfw_py.docker_dns.layout import TRUNCATED_IDLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docker_dns.support.world import World

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_private_bpffs")
def test_dig_by_udp_and_tcp(tmp_path: Path, backend: str, mode: str) -> None:
    with docker_world(tmp_path, backend) as docker:
        for options in ((), ("+tcp",)):
            assert docker.addresses("before.example", *options) == [BUILTIN_ANSWER]
        docker.daemon.asked.clear()
        docker.redirect(mode=mode)
        for options in ((), ("+tcp",)):
            done = docker.dig("www.example", *options)
            assert ANY_ANSWER in done.stdout
            # The program inside has talked to the one that it asked.
            assert f"SERVER: {RESOLVER}#53({RESOLVER})" in done.stdout
        # What found the daemon's port was empty, and no question.
        assert [asked for asked in docker.daemon.asked if asked[1]] == []
        log = docker.log.read_text()
        assert log.count(f"query[A] www.example from {CONTAINER}") == 2


def test_getent_and_curl(docker: World, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("served\n")
    http = ("/usr/bin/python3", "-m", "http.server", "--directory", str(tmp_path), "80")
    with resolv_conf(tmp_path), running(docker.server, tmp_path / "http.log", *http):
        found = docker.container.run("getent", "ahostsv4", "web.example").stdout
        assert found.startswith(f"{BUILTIN_ANSWER} ")
        docker.redirect()
        found = docker.container.run("getent", "ahostsv4", "web.example").stdout
        assert found.startswith(f"{SERVER} ")
        fetch = ("curl", "-sS", "--retry", "60", "--retry-connrefused", "http://web.example/")
        assert docker.container.run(*fetch, "--retry-delay", "1").stdout == "served\n"


def test_answers_of_any_size(docker: World) -> None:
    """Within one packet, in fragments, and truncated, so that it is asked for again by TCP."""
    docker.redirect()
    small = docker.dig("big.example", "TXT", "+bufsize=1232")
    assert "(TCP)" in small.stdout
    assert small.stdout.count("x" * 250) == 12
    before = docker.outcomes()["answer"]
    large = docker.dig("big.example", "TXT", "+bufsize=4096")
    assert "(UDP)" in large.stdout
    assert large.stdout.count("x" * 250) == 12
    assert docker.outcomes()["answer"] - before == 3  # packets of 1500 bytes at most
    cut = docker.dig("huge.example", "TXT", "+bufsize=4096", "+ignore")
    assert "flags: qr aa tc" in cut.stdout
    whole = docker.dig("huge.example", "TXT", "+bufsize=4096")
    assert "(TCP)" in whole.stdout
    assert whole.stdout.count("y" * 250) == 60


def test_no_setting_makes_way_for_it(docker: World) -> None:
    """Loopback addresses are not routed: the answer's way in is another one."""
    docker.redirect()
    with docker.container.entered():
        for name in ("all", "default", "lo", "eth0"):
            setting = Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet")
            assert setting.read_text() == "0\n"
    assert docker.addresses("www.example") == [ANY_ANSWER]


def test_a_neighbour_that_is_not_resolved(docker: World) -> None:
    docker.redirect()
    for _ in range(3):
        docker.container.run("ip", "neigh", "flush", "all")
        docker.network.host.run("ip", "neigh", "flush", "all")
        assert docker.addresses("www.example", "+tries=1", "+time=30") == [ANY_ANSWER]
    # Nothing was sent again.
    assert docker.outcomes() == {"query": 3, "answer": 3}


@contextmanager
def clients(
    docker: World, *ends: tuple[str, int], kind: int = socket.SOCK_DGRAM
) -> Iterator[list[socket.socket]]:
    """Sockets in the container, on these addresses and ports."""
    with ExitStack() as stack, docker.container.entered():
        made = []
        for end in ends:
            each = stack.enter_context(socket.socket(socket.AF_INET, kind))
            each.bind(end)
            made.append(each)
        yield made


def test_the_same_port_on_several_addresses_at_once(docker: World) -> None:
    """Outside they have one address: only the port tells whose an answer is."""
    docker.redirect()
    ends = [(address, 40000) for address in ("127.0.0.1", "127.0.0.2", CONTAINER, "127.9.9.9")]
    names = [f"name{number}.example." for number in range(len(ends))]
    queries = [dns.message.make_query(name, "A", id=4711) for name in names]
    with clients(docker, *ends) as opened:
        for each, query in zip(opened, queries, strict=True):
            each.settimeout(PATIENCE)
            each.connect((RESOLVER, 53))
            each.send(query.to_wire())
        for each, query in zip(opened, queries, strict=True):
            answer = dns.message.from_wire(each.recv(4096))
            assert query.is_response(answer)
            assert answer.question[0].name == query.question[0].name
            assert each.getpeername() == (RESOLVER, 53)
    with clients(docker, *ends, kind=socket.SOCK_STREAM) as opened:
        for each in opened:
            each.settimeout(PATIENCE)
            each.connect((RESOLVER, 53))
        for each, query in zip(opened, queries, strict=True):
            wire = query.to_wire()
            each.sendall(len(wire).to_bytes(2, "big") + wire)
        for each, query in zip(opened, queries, strict=True):
            answer = dns.message.from_wire(each.recv(4096)[2:])
            assert query.is_response(answer)


def test_a_port_that_a_socket_of_the_container_s_own_has_is_not_taken(docker: World) -> None:
    """It asks the server itself, from half of all ports: its answers are its own."""
    docker.container.sysctl("1024 64510", "ipv4/ip_local_port_range")
    with clients(docker, *[("0.0.0.0", port) for port in range(64512, 65536, 2)]) as holders:
        docker.redirect()
        for number in range(100):
            with clients(docker, ("127.0.0.1", 0)) as (one,):
                one.settimeout(PATIENCE)
                one.connect((RESOLVER, 53))
                one.send(question(wire_name(b"n%d" % number)))
                assert one.recv(4096)
        for each in holders:
            each.settimeout(PATIENCE)
            each.sendto(question(wire_name(b"direct")), (SERVER, 53))
            assert each.recvfrom(512)[1] == (SERVER, 53)
    assert docker.outcomes() == {"query": 100, "answer": 100}


def test_few_ports_are_used_again(docker: World) -> None:
    """Twice as many flows as there are ports: those that were used last the longest ago go."""
    docker.container.sysctl("1024 64510", "ipv4/ip_local_port_range")
    docker.redirect()
    for number in range(2050):
        with clients(docker, ("127.0.0.1", 0)) as (one,):
            one.settimeout(PATIENCE)
            one.connect((RESOLVER, 53))
            one.send(question(wire_name(b"n%d" % number)))
            assert one.recv(512)
    assert docker.outcomes() == {"query": 2050, "answer": 2050}


def test_a_thousand_queries_at_once(docker: World) -> None:
    """Each gets its own answer. What is lost is sent again, as it is to a server asked directly."""
    docker.redirect()
    count, sockets = 1000, 250
    queries = {
        number: dns.message.make_query(f"q{number}.example.", "A", id=number)
        for number in range(count)
    }
    left = set(queries)
    with clients(docker, *[("127.0.0.1", 0)] * sockets) as opened:
        for each in opened:
            each.connect((RESOLVER, 53))
            each.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        while left:
            assert time.monotonic() < deadline, f"{len(left)} without an answer"
            for number in left:
                opened[number % sockets].send(queries[number].to_wire())
            again = time.monotonic() + 1
            while left and (wait := again - time.monotonic()) > 0:
                for each in select.select(opened, [], [], wait)[0]:
                    answer = dns.message.from_wire(each.recv(4096))
                    number = answer.id
                    assert queries[number].is_response(answer)
                    assert each is opened[number % sockets]
                    left.discard(number)
    outcomes = docker.outcomes()
    assert outcomes["query"] >= count
    assert set(outcomes) == {"query", "answer"}


def test_a_source_may_ask_again_and_again(docker: World) -> None:
    """One source port is one flow, whatever it asks."""
    docker.redirect()
    with clients(docker, ("127.0.0.1", 40001)) as (one,):
        one.settimeout(PATIENCE)
        one.connect((RESOLVER, 53))
        for number in range(20):
            query = dns.message.make_query(f"n{number}.example", "A")
            one.send(query.to_wire())
            assert query.is_response(dns.message.from_wire(one.recv(4096)))


# Which names


def wire_name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(name: bytes, *, flags: int = 0x0100, count: int = 1) -> bytes:
    return pack(">HHHHHH", 4711, flags, count, 0, 0, 0) + name + pack(">HH", 1, 1)


# 255 bytes on the wire, which is as long as a name may be.
LONGEST = (b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 48, b"corp", b"example")
MOST_LABELS = (*[b"a"] * 114, b"a" * 12, b"corp", b"example")


@pytest.mark.parametrize(
    ("message", "is_redirected"),
    [
        (question(wire_name(b"corp", b"example")), True),
        (question(wire_name(b"www", b"corp", b"example")), True),
        (question(wire_name(b"WWW", b"CoRp", b"EXAMPLE")), True),
        (question(wire_name(*LONGEST)), True),
        (question(wire_name(*MOST_LABELS)), True),
        (question(wire_name(b"xn--bcher-kva", b"test")), True),
        # Borders of labels.
        (question(wire_name(b"acorp", b"example")), False),
        (question(wire_name(b"corp", b"example", b"org")), False),
        (question(wire_name(b"corpexample")), False),
        (question(wire_name(b"example")), False),
        (question(wire_name(b"corp.example")), False),
        (question(wire_name(b"a.corp", b"example")), False),
        (question(wire_name(b"www.corp", b"example")), False),
        # No name of any suffix, or none at all.
        (question(wire_name()), False),
        (question(wire_name(*[b"a"] * 127)), False),
        (question(wire_name(b"a", *LONGEST)), False),
        (question(wire_name(b"a", *MOST_LABELS)), False),
        (question(b"\xc0\x0c"), False),
        (question(b"\3www\xc0\x0c"), False),
        (question(b"\x40" + b"a" * 64 + wire_name(b"corp", b"example")), False),
        (question(wire_name(b"corp", b"example")[:-3])[:-4], False),
        (question(b"\4corp\7example")[:-4], False),
        (question(wire_name(b"corp", b"example"), count=0), False),
        (question(wire_name(b"corp", b"example"), flags=0x8100), False),
        (question(wire_name(b"corp", b"example"), flags=0x2900), False),  # an UPDATE
        (b"", False),
        (b"\0", False),
        (bytes(12), False),
        (b"\xff" * 300, False),
        (b"\1" * 1400, False),
    ],
)
def test_only_names_below_a_suffix(only_domain: World, message: bytes, is_redirected: bool) -> None:
    """What the program on lo did with a message, by its counters; the rest is the resolver's."""
    before = only_domain.outcomes()
    with clients(only_domain, ("127.0.0.1", 0)) as (one,):
        one.connect((RESOLVER, 53))
        one.send(message)
    after = only_domain.outcomes()
    changed = {name for name in after if name != "answer" and after[name] != before.get(name, 0)}
    assert changed <= {"query", "builtin_name", "builtin_unreadable"}
    assert ("query" in changed) is is_redirected
    assert len(changed) == 1


@pytest.fixture(scope="module")
def only_domain(_private_bpffs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Redirected for two suffixes."""
    with docker_world(tmp_path_factory.mktemp("only-domain")) as made:
        made.redirect("Corp.Example", "bücher.test")
        yield made


def test_other_names_are_the_built_in_resolver_s(only_domain: World) -> None:
    assert only_domain.addresses("www.corp.example") == [ANY_ANSWER]
    assert only_domain.addresses("www.example") == [BUILTIN_ANSWER]
    assert only_domain.addresses(".") == [BUILTIN_ANSWER]
    # By the same socket.
    with clients(only_domain, ("127.0.0.1", 0)) as (one,):
        one.settimeout(PATIENCE)
        one.connect((RESOLVER, 53))
        for name, expected in (
            ("a.corp.example", ANY_ANSWER),
            ("a.example", BUILTIN_ANSWER),
            ("b.corp.example", ANY_ANSWER),
        ):
            one.send(dns.message.make_query(name, "A").to_wire())
            assert expected in dns.message.from_wire(one.recv(4096)).to_text()


def test_tcp_is_the_built_in_resolver_s_where_there_are_suffixes(only_domain: World) -> None:
    before = only_domain.outcomes()
    assert only_domain.addresses("www.corp.example", "+tcp") == [BUILTIN_ANSWER]
    after = only_domain.outcomes()
    assert after["query"] == before["query"]
    assert after["builtin_tcp"] > before.get("builtin_tcp", 0)


def test_a_truncated_answer_is_asked_for_again_at_the_same_server(docker: World) -> None:
    """By TCP, which begins without a name; a second connection is the built-in resolver's."""
    docker.redirect("huge.example")
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]
    for _ in range(2):
        whole = docker.dig("huge.example", "TXT")
        assert "(TCP)" in whole.stdout
        assert whole.stdout.count("y" * 250) == 60
        assert docker.addresses("www.example", "+tcp") == [BUILTIN_ANSWER]
    assert ("tcp", "huge.example.") not in docker.daemon.asked


def test_several_truncated_answers_at_once(docker: World) -> None:
    docker.redirect("huge.example")
    docker.daemon.asked.clear()
    command = ("dig", f"@{RESOLVER}", "+time=60", "+tries=1", "huge.example", "TXT")
    digs = [docker.container.start(*command, stdout=PIPE) for _ in range(8)]
    for each in digs:
        assert each.communicate()[0].count("y" * 250) == 60
    assert docker.daemon.asked == []
    assert docker.addresses("huge.example", "+tcp") == [BUILTIN_ANSWER]


def test_a_truncated_answer_is_forgotten(docker: World) -> None:
    """A client that is content with it does not take later connections along."""
    docker.redirect("huge.example")
    cut = docker.dig("huge.example", "TXT", "+ignore")
    assert " tc" in cut.stdout
    time.sleep(TRUNCATED_IDLE + 0.1)
    assert docker.addresses("www.example", "+tcp") == [BUILTIN_ANSWER]


def test_tcp_as_it_is_set(docker: World) -> None:
    docker.redirect("corp.example", tcp="redirect")
    assert docker.addresses("www.example", "+tcp") == [ANY_ANSWER]
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]


def test_tcp_left_alone_without_suffixes(docker: World) -> None:
    docker.redirect(tcp="builtin")
    assert docker.addresses("www.example", "+tcp") == [BUILTIN_ANSWER]
    assert docker.addresses("www.example") == [ANY_ANSWER]
