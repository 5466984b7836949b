# SPDX-License-Identifier: GPL-2.0-only
"""The DNS proxy: evaluates each query, asks upstream, and admits addresses before it answers.

One query:

1. Read it. Refuse it if the policy does not allow its name.
2. Answer from the cache; otherwise ask upstream, once for all clients that sent the same query.
3. Refuse the answer if its chain of names has a blocked one.
4. Admit its addresses. A client never gets an address that was not admitted before.
5. Report the query, and send the answer.

The proxy does not know about BPF: the policy, admitting addresses and reports are callables.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dns.rcode import NOERROR, NXDOMAIN, SERVFAIL
from dns.rcode import to_text as rcode_text
from dns.rdatatype import ANY
from dns.rdatatype import to_text as rdtype_text

from zfw_py.guard.dns import edns
from zfw_py.guard.dns.answers import (
    LARGEST,
    Answer,
    BadAnswer,
    Chain,
    any_answer,
    error,
    message,
)
from zfw_py.guard.dns.cache import Cache
from zfw_py.guard.dns.listening import Connections, Datagrams, IsClient, Reply, Transport
from zfw_py.guard.dns.questions import Question, Unreadable, has_hidden_dot, read_question
from zfw_py.guard.dns.upstream import NoAnswer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable

    from dns.rcode import Rcode

    from zfw_py.guard.dns.questions import Key
    from zfw_py.guard.dns.upstream import Upstream

    # Different servers may have different answers.
    _Key = tuple[int, Key]

# Queries to upstream servers at a time, each with a descriptor (a process usually may have 1,024),
# and clients' queries that wait for their answers.
MOST_ASKED = 500
MOST_WAITING = 5_000
# For all attempts, servers and names of a chain together. Clients ask again after five seconds.
PATIENCE = 10.0
# Queries to upstream for one chain of names.
_MOST_HOPS = 8
# Seconds. A client needs time to connect, but dnsmasq and others answer with a time to live of 0.
_LEAST_LIFETIME = 5.0

Verdict = Literal["allow", "deny"]
Reason = Literal[
    "allowed",  # by a rule of the policy
    "not_allowed",  # no rule allows the name
    "blocked",  # a rule blocks the name
    "chain_blocked",  # a rule blocks a name in the chain of the answer
    "unsupported",  # zone transfers, other classes, later versions of EDNS
    "not_admitted",  # admitting the addresses failed
    "upstream_failed",  # no server had an answer
    "busy",  # too many queries at a time
    "internal_error",  # an error in zfw, which the system's log has
]

# Without a SOA record: no resolver keeps it (RFC 2308, section 5).
_BLOCKED = (edns.BLOCKED, "zfw guard: a rule blocks this name")
_REFUSALS: dict[Reason, tuple[int, str]] = {
    "not_allowed": (edns.PROHIBITED, "zfw guard: no rule allows this name"),
    "blocked": _BLOCKED,
    "chain_blocked": _BLOCKED,
}


class AnsweredQuery(NamedTuple):
    """A query and its result.

    ``verdict`` is the policy's. ``reason`` explains it, or why an allowed query has no answer.
    ``client``: address and port. ``addresses``: those in the answer, 16 bytes each, IPv4 as
    ``::ffff:a.b.c.d``. ``is_cached``: the answer came from the cache.
    """

    client: tuple[str, int]
    transport: Transport
    name: str
    rdtype: str
    verdict: Verdict
    reason: Reason
    addresses: tuple[bytes, ...]
    rcode: str
    is_cached: bool


class _PendingQuery(NamedTuple):
    """A query that waits for its answer. ``ports`` is None for a name that is not allowed."""

    upstream: Upstream
    question: Question
    id: bytes
    client: tuple[str, int]
    transport: Transport
    reply: Reply
    ports: frozenset[int] | None
    reason: Reason


def _key(pending: _PendingQuery) -> _Key:
    return pending.upstream.epoch, pending.question.key


class Proxy:
    """Answers the queries that its sockets receive, if the policy allows their names.

    Args:
        ports_of_name: the ports on which a name's addresses are allowed; empty: every port.
            None: the name is not allowed. Names are lower case, without the last dot.
        is_blocked_name: whether a rule blocks the name. An answer with such a name in its chain is
            refused too.
        admit: called with addresses, ports and a lifetime in seconds, before the answer is sent.
            Raises OSError if the addresses cannot be admitted: the client gets SERVFAIL.
        report: called once for each query.
        on_bug: called with an exception that is an error in zfw.
        is_log_only: deny nothing; report what would have been denied. Addresses of names that are
            not allowed are not admitted.
        least_lifetime: for how many seconds addresses are admitted at least, from 5 on.
        refusal: the rcode for a name that is not allowed. A stub resolver goes on with its search
            list after NXDOMAIN. After REFUSED it asks the next server, and may then give up.
        clock: the time in seconds, by a clock that goes on while the machine is suspended.

    The callables are called in the loop's thread and should be quick. An exception of theirs, but
    for OSError of ``admit``, costs the query that caused it: its client gets SERVFAIL.

    A query is forwarded over UDP, also if it came over TCP; over TCP if the answer is truncated.
    """

    def __init__(
        self,
        *,
        ports_of_name: Callable[[str], frozenset[int] | None],
        is_blocked_name: Callable[[str], bool],
        admit: Callable[[Iterable[bytes], frozenset[int], float], None],
        report: Callable[[AnsweredQuery], None],
        on_bug: Callable[[BaseException], None],
        is_log_only: bool = False,
        least_lifetime: float = _LEAST_LIFETIME,
        refusal: Rcode = NXDOMAIN,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """Without sockets: see ``serve``."""
        self._ports_of_name = ports_of_name
        self._is_blocked_name = is_blocked_name
        self._admit = admit
        self._report = report
        self._on_bug = on_bug
        self._is_log_only = is_log_only
        self._least_lifetime = max(least_lifetime, _LEAST_LIFETIME)
        self._clock = clock
        self._refusals = {why: error(refusal, *how) for why, how in _REFUSALS.items()}
        self._cache = Cache()
        self._pending: dict[_Key, list[_PendingQuery]] = {}
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._stop = asyncio.Event()
        self._datagrams = Datagrams()
        self._connections = Connections(self._spawn)
        self._is_running = False
        self._served: list[tuple[Upstream, IsClient, socket.socket, socket.socket | None]] = []

    def serve(
        self,
        upstream: Upstream,
        is_client: IsClient,
        udp: socket.socket,
        tcp: socket.socket | None = None,
    ) -> None:
        """Answer queries on these bound sockets too, by asking these servers.

        The proxy closes the sockets at its end. Messages of strangers, for which ``is_client``
        returns False, get no answer, and their connections are closed.

        Call it before ``run``, or in its loop while it runs. The sockets may be of any network
        namespace. A UDP socket must be bound to one address, so that answers come from it.
        """
        if not self._is_running:
            self._served.append((upstream, is_client, udp, tcp))
            return
        handle = partial(self._handle, upstream)
        self._datagrams.listen(udp, handle, is_client)
        if tcp is not None:
            self._connections.listen(tcp, handle, is_client)

    def withdraw(self, udp: Iterable[socket.socket], tcp: Iterable[socket.socket]) -> None:
        """Answer no longer on these sockets, and close them; call it in the running loop."""
        for each in udp:
            self._datagrams.close(each)
        for each in tcp:
            self._connections.close(each)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop`` is set, then close all sockets. Can run once.

        Errors of the network are handled where they happen. An exception in a query or a connection
        costs that one. One in the loop itself is raised here: the guarded program then has no DNS,
        and nothing else becomes allowed.
        """
        loop = asyncio.get_running_loop()
        previous = loop.get_exception_handler()
        loop.set_exception_handler(self._on_exception)
        self._is_running = True
        stopping = loop.create_task(stop.wait())
        failing = loop.create_task(self._stop.wait())
        try:
            for upstream, is_client, udp, tcp in self._served:
                self.serve(upstream, is_client, udp, tcp)
            await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_running = False
            self._datagrams.close_all()
            self._connections.close_all()
            await asyncio.sleep(0)  # tasks that have not run yet start, and then close theirs
            ending = {stopping, failing, *self._tasks}
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await asyncio.sleep(0)  # let aborted connections close their sockets
            loop.set_exception_handler(previous)
        if self._bug is not None:
            raise self._bug

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._on_bug(bug)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        bug = context.get("exception")
        if bug is None:
            loop.default_exception_handler(context)
        else:
            self._bug = self._bug or bug
            self._stop.set()

    # Queries

    def _handle(
        self,
        upstream: Upstream,
        received: bytes,
        client: tuple[str, int],
        transport: Transport,
        reply: Reply,
    ) -> bool:
        """Answer a message, at once or later. False: it gets no answer."""
        try:
            question = read_question(received[2:])
        except Exception as bug:  # noqa: BLE001 - costs this message
            self._on_bug(bug)
            return False
        id_ = received[:2]
        if isinstance(question, Unreadable):
            if question.answer:
                reply(id_ + question.answer)
            return bool(question.answer)
        pending = _PendingQuery(
            upstream, question, id_, client, transport, reply, None, "not_allowed"
        )
        return self._attempt(pending, self._begin)

    def _attempt(self, pending: _PendingQuery, action: Callable[[_PendingQuery], None]) -> bool:
        """Call a step of a query. If it raises, the query alone fails. False: it gets no answer."""
        try:
            action(pending)
        except Exception as bug:  # noqa: BLE001 - costs this query
            self._on_bug(bug)
            try:
                failed = pending._replace(reason="internal_error")
                self._send(failed, error(SERVFAIL, edns.OTHER, "an error in zfw"))
            except Exception as second:  # noqa: BLE001 - the client asks again
                self._on_bug(second)
                return False
        return True

    def _begin(self, pending: _PendingQuery) -> None:
        """Answer a query, or ask upstream."""
        question = pending.question
        ports, reason = self._evaluate(question)
        pending = pending._replace(ports=ports, reason=reason)
        if question.fault != NOERROR:
            self._send(pending._replace(ports=None, reason="unsupported"), error(question.fault))
        elif ports is None and not self._is_log_only:
            self._send(pending, self._refusals[reason])
        elif question.rdtype == ANY:
            self._answer(pending, any_answer(question))
        elif (cached := self._cache.get(_key(pending), self._clock())) is not None:
            self._answer(pending, *cached, is_cached=True)
        else:
            self._ask(pending)

    def _evaluate(self, question: Question) -> tuple[frozenset[int] | None, Reason]:
        if has_hidden_dot(question.name):
            return None, "not_allowed"
        ports = self._ports_of_name(question.text)
        if ports is not None:
            return ports, "allowed"
        return None, "blocked" if self._is_blocked_name(question.text) else "not_allowed"

    def _ask(self, pending: _PendingQuery) -> None:
        """Ask upstream, once for all clients that wait for the same answer."""
        key = _key(pending)
        waiting = self._pending.get(key)
        if self._waiting >= MOST_WAITING or (waiting is None and len(self._pending) >= MOST_ASKED):
            self._fail(pending, error(SERVFAIL, edns.OTHER, "too many questions"), "busy")
            return
        self._waiting += 1
        if waiting is None:
            self._pending[key] = [pending]
            self._spawn(self._fetch(key, pending.upstream, pending.question))
        else:
            waiting.append(pending)

    async def _fetch(self, key: _Key, upstream: Upstream, question: Question) -> None:
        """Ask upstream, and answer all clients that wait."""
        failure: Reason | None = None
        is_silence = False
        try:
            answer = await self._follow(upstream, question)
        except NoAnswer as no_answer:
            answer, failure = Answer(no_answer.rcode, no_answer.options), "upstream_failed"
            is_silence = no_answer.is_silence
        except BadAnswer as bad:
            answer, failure = error(SERVFAIL, edns.OTHER, str(bad)), "upstream_failed"
        except Exception as bug:  # noqa: BLE001 - costs this query
            self._on_bug(bug)
            answer = error(SERVFAIL, edns.OTHER, "an error in zfw")
            failure = "internal_error"
        waiting = self._pending.pop(key)
        self._waiting -= len(waiting)
        if not question.options:  # with options it may be valid for one client's subnet only
            self._cache.put(key, answer, self._clock())
        for pending in waiting:
            if is_silence and pending.transport == "udp":
                # As without a guard: the client's own time-out says what happened.
                pending = pending._replace(reply=lambda _: None)
            if failure is not None:
                self._attempt(pending, partial(self._fail, answer=answer, reason=failure))
            else:
                self._attempt(pending, partial(self._answer, answer=answer))

    async def _follow(self, upstream: Upstream, question: Question) -> Answer:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        chain = Chain(question)
        name = question.name
        for _ in range(_MOST_HOPS):
            following = chain.follow(await upstream.ask(name, question, deadline))
            if following is None:
                return chain.answer()
            name = following
        raise BadAnswer("a chain of names in too many pieces")

    # Answers

    def _answer(
        self, pending: _PendingQuery, answer: Answer, age: float = 0.0, *, is_cached: bool = False
    ) -> None:
        """Check the chain, admit the addresses, and send the answer or a refusal."""
        ports = pending.ports
        refusal: Answer | None = None
        if ports is not None and any(map(self._is_blocked_name, answer.names)):
            pending = pending._replace(ports=None, reason="chain_blocked")
            refusal = self._refusals[pending.reason]
        elif ports is not None and answer.addresses:
            # One second more, because the client counts whole seconds.
            lifetime = max(answer.address_ttl - age + 1, self._least_lifetime)
            try:
                self._admit(answer.addresses, ports, lifetime)
            except OSError:
                pending = pending._replace(reason="not_admitted")
                refusal = error(SERVFAIL, edns.OTHER, "the addresses were not admitted")
        if refusal is not None and not self._is_log_only:
            self._send(pending, refusal)
        else:
            self._send(pending, answer, age, is_cached=is_cached)

    def _fail(self, pending: _PendingQuery, answer: Answer, reason: Reason) -> None:
        """Send an error. The reason of a name that is not allowed stays that of the policy."""
        self._send(pending if pending.ports is None else pending._replace(reason=reason), answer)

    def _send(
        self, pending: _PendingQuery, answer: Answer, age: float = 0.0, *, is_cached: bool = False
    ) -> None:
        question = pending.question
        most = LARGEST if pending.transport == "tcp" else question.payload
        # Report before the reply: events that the client then causes come later in the log.
        record = AnsweredQuery(
            client=pending.client,
            transport=pending.transport,
            name=question.text,
            rdtype=rdtype_text(question.rdtype),
            verdict="deny" if pending.ports is None else "allow",
            reason=pending.reason,
            addresses=answer.addresses,
            rcode=rcode_text(answer.rcode),
            is_cached=is_cached,
        )
        try:
            self._report(record)
        except Exception as bug:  # noqa: BLE001 - costs a line of the log
            self._on_bug(bug)
        pending.reply(pending.id + message(answer, question, most, int(age)))
