# SPDX-License-Identifier: GPL-2.0-only
"""docker_dns's programs on two CPUs at once. They show a race by chance, and none for certain."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from tests.docker_dns.support.container import container
from tests.docker_dns.support.packets import whole
from tests.docker_dns.support.programs import (
    DROP,
    REDIRECT,
    RESOLVER,
    SERVER,
    SOURCE,
    Answer,
    AnswerKey,
    Programs,
    QueryKey,
    Settings,
    coarse_now,
)
from tests.docker_dns.support.reference import SECOND, UDP, Ends

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PORT, DAEMON = 20000, 41552
LOCALHOST, SOMEBODY = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.77")
# Without a second look at the flow, a wrong one was read every 5 s.
SECONDS = 12
RUNS = 20000
ROUNDS = 4000


@pytest.fixture
def programs(_private_bpffs: None) -> Iterator[Programs]:
    with container(), Programs() as made:
        made.set_daemon(DAEMON, 0)
        yield made


def test_an_answer_is_for_its_query_or_nobody(programs: Programs) -> None:
    # The query's ends outside are its own, so that each run leaves the next the same packet.
    programs.configure(Settings())
    known = AnswerKey(SERVER, 53, PORT, UDP)
    ours = Answer(coarse_now(), QueryKey(SOURCE, SERVER, PORT, 53, UDP))
    other = known._replace(port=PORT + 1)
    others = Answer(coarse_now(), QueryKey(SOMEBODY, RESOLVER, 40000, DAEMON, UDP))
    frame = whole(UDP, b"answer")(Ends(SERVER, SOURCE, 53, PORT))
    is_over = threading.Event()

    def forget_and_learn() -> int:
        times = 0
        while not is_over.is_set():
            programs.delete_answer(known)
            # The table has room for it where the first one was.
            programs.write_answer(other, others)
            programs.delete_answer(other)
            programs.write_answer(known, ours)
            times += 1
        return times

    programs.write_answer(known, ours)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(forget_and_learn)
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                _, after, _ = programs.repeat("answer", frame, RUNS)
                assert after == frame
        finally:
            is_over.set()
        assert writer.result() > 0
    assert programs.repeat("answer", frame, 1)[:2] == (REDIRECT, frame)
    assert programs.outcomes()["answer"] > RUNS


def test_an_idle_port_is_taken_by_one(programs: Programs) -> None:
    programs.configure(Settings(first_port=PORT, port_count=1))
    outside = AnswerKey(SERVER, 53, PORT, UDP)
    frames = {
        port: whole(UDP, b"query")(Ends(LOCALHOST, RESOLVER, port, DAEMON))
        for port in (40000, 40001)
    }
    ready = threading.Barrier(len(frames), timeout=60)

    def ask(port: int) -> int:
        ready.wait()
        return programs.run("query", frames[port])[0]

    idle = Answer(coarse_now() - 100 * SECOND, QueryKey(LOCALHOST, RESOLVER, 1, DAEMON, UDP))
    with ThreadPoolExecutor(len(frames)) as pool:
        for _ in range(ROUNDS):
            programs.clear()
            programs.write_answer(outside, idle)
            verdicts = dict(zip(frames, pool.map(ask, frames), strict=True))
            assert sorted(verdicts.values()) == [DROP, REDIRECT]
            (winner,) = (port for port, verdict in verdicts.items() if verdict == REDIRECT)
            assert programs.answers()[outside].query.source_port == winner
