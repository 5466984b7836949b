# SPDX-License-Identifier: GPL-2.0-only
"""The DNS proxy: who may ask for what, and what is known to the kernel before it is answered.

It knows nothing of BPF. What a name may be reached by, and how addresses become reachable, are
callables of whoever makes it; so is what is told of each question. A client never holds an address
that was not admitted before.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dns.rcode import NOERROR, REFUSED, SERVFAIL
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
from zfw_py.guard.dns.listening import Connections, Datagrams, Reply, Transport
from zfw_py.guard.dns.questions import Question, Unreadable, has_hidden_dot, read_question
from zfw_py.guard.dns.upstream import NoAnswer, Upstream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from zfw_py.guard.dns.questions import Key
    from zfw_py.guard.dns.upstream import Server

# Questions that upstream servers are asked at a time, each with a descriptor; a process usually has
# 1,024. And clients that wait for them.
MOST_ASKED = 500
MOST_WAITING = 5_000
# All attempts, servers and names of a chain together. Clients wait for five seconds, and ask again.
PATIENCE = 10.0
# How often upstream is asked for where a chain goes on.
_MOST_HOPS = 8
# A client needs time to connect, and dnsmasq and others give a time to live of 0.
LEAST_LIFETIME = 5.0

Verdict = Literal["allow", "deny"]
Reason = Literal[
    "allowed",  # by a rule of the policy
    "not_allowed",  # no rule allows the name
    "blocked",  # a rule blocks the name
    "chain_blocked",  # a rule blocks a name that the question led to
    "unsupported",  # zone transfers, other classes, later versions of EDNS
    "not_admitted",  # the kernel did not take the addresses
    "upstream_failed",  # no server had an answer
    "busy",  # too many questions at a time
]

_BLOCKED = error(REFUSED, edns.BLOCKED, "zfw guard: a rule blocks this name")
_REFUSALS: dict[Reason, Answer] = {
    "not_allowed": error(REFUSED, edns.PROHIBITED, "zfw guard: no rule allows this name"),
    "blocked": _BLOCKED,
    "chain_blocked": _BLOCKED,
}


class Asked(NamedTuple):
    """A question and what became of it.

    ``verdict`` is the policy's, and ``reason`` explains it, or why an allowed question has no
    answer. ``addresses`` were handed out: 16 bytes each, IPv4 as ``::ffff:a.b.c.d``.
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


class _Asker(NamedTuple):
    """Who waits for the answer to a question. ``ports`` is None for a name that is not allowed."""

    question: Question
    id: bytes
    client: tuple[str, int]
    transport: Transport
    reply: Reply
    ports: frozenset[int] | None
    reason: Reason


class Proxy:
    """Answers the questions that come to its sockets, as far as the policy allows their names.

    Args:
        ports_of_name: the ports that a name's addresses may be reached by; none: all of them.
            None: the name is not allowed. Names are lower case, without the last dot.
        is_blocked_name: whether a rule blocks the name, which then must not occur in the chain of
            a name that is allowed either.
        upstreams: the servers to ask, from the network namespace of the thread that runs it.
        admit: called with addresses, ports and a lifetime in seconds before they are handed out.
            Raises OSError if the kernel does not take them: the client gets SERVFAIL.
        report: called once a question.
        is_log_only: nothing is denied; questions are reported as what would have become of them.
            Addresses of names that are not allowed are not admitted.
        clock: seconds that go on in suspend.

    The callables are called in the loop's thread and should be quick. What they raise, but for
    OSError of ``admit``, ends ``run``.

    A question is forwarded over UDP, whatever it came by, and over TCP if the answer is truncated.
    """

    def __init__(
        self,
        *,
        ports_of_name: Callable[[str], frozenset[int] | None],
        is_blocked_name: Callable[[str], bool],
        upstreams: Sequence[Server],
        admit: Callable[[Iterable[bytes], frozenset[int], float], None],
        report: Callable[[Asked], None],
        is_log_only: bool = False,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """Raises UsageError for upstream servers that cannot be asked."""
        self._ports_of_name = ports_of_name
        self._is_blocked_name = is_blocked_name
        self._upstream = Upstream(upstreams)
        self._admit = admit
        self._report = report
        self._is_log_only = is_log_only
        self._clock = clock
        self._cache = Cache()
        self._asked: dict[Key, list[_Asker]] = {}
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._stop = asyncio.Event()
        self._datagrams = Datagrams(self._handle)
        self._connections = Connections(self._handle, self._spawn)
        self._is_running = False
        self._served: list[tuple[socket.socket, socket.socket | None]] = []

    def serve(self, udp: socket.socket, tcp: socket.socket | None = None) -> None:
        """Answer what comes to these sockets too, which are bound and belong to the proxy now.

        Before ``run``, or in its loop while it runs. Either may be of any network namespace. A UDP
        socket is bound to one address, not to all: answers would come from another.
        """
        if not self._is_running:
            self._served.append((udp, tcp))
            return
        self._datagrams.listen(udp)
        if tcp is not None:
            self._connections.listen(tcp)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until ``stop`` is set; then all sockets are closed. Runs once.

        What goes wrong on the network is dealt with where it happens. Anything else is a bug, and
        is raised: without its proxy the guarded program has no DNS, and nothing opens up.
        """
        loop = asyncio.get_running_loop()
        previous = loop.get_exception_handler()
        loop.set_exception_handler(self._on_exception)
        self._is_running = True
        stopping = loop.create_task(stop.wait())
        failing = loop.create_task(self._stop.wait())
        try:
            for udp, tcp in self._served:
                self.serve(udp, tcp)
            await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_running = False
            self._datagrams.close()
            self._connections.close()
            await asyncio.sleep(0)  # tasks that have not begun yet would end without closing theirs
            ending = {stopping, failing, *self._tasks}
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await asyncio.sleep(0)  # connections that were broken off close their sockets
            loop.set_exception_handler(previous)
        if self._bug is not None:
            raise self._bug

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # raised here, the loop tells us as it does of callbacks

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        bug = context.get("exception")
        if bug is None:
            loop.default_exception_handler(context)
        else:
            self._bug = self._bug or bug
            self._stop.set()

    # Questions

    def _handle(
        self, received: bytes, client: tuple[str, int], transport: Transport, reply: Reply
    ) -> bool:
        """Answer a message, at once or later. False: it deserves no answer."""
        question = read_question(received[2:])
        id_ = received[:2]
        if isinstance(question, Unreadable):
            if question.answer:
                reply(id_ + question.answer)
            return bool(question.answer)

        ports, reason = self._judge(question)
        asker = _Asker(question, id_, client, transport, reply, ports, reason)
        if question.fault != NOERROR:
            self._send(asker._replace(ports=None, reason="unsupported"), error(question.fault))
        elif ports is None and not self._is_log_only:
            self._send(asker, _REFUSALS[reason])
        elif question.rdtype == ANY:
            self._answer(asker, any_answer(question))
        elif (cached := self._cache.get(question.key, self._clock())) is not None:
            self._answer(asker, *cached, is_cached=True)
        else:
            self._ask(asker)
        return True

    def _judge(self, question: Question) -> tuple[frozenset[int] | None, Reason]:
        if has_hidden_dot(question.name):
            return None, "not_allowed"
        ports = self._ports_of_name(question.text)
        if ports is not None:
            return ports, "allowed"
        return None, "blocked" if self._is_blocked_name(question.text) else "not_allowed"

    def _ask(self, asker: _Asker) -> None:
        """Have upstream asked, once for all who wait for the same."""
        key = asker.question.key
        askers = self._asked.get(key)
        if self._waiting >= MOST_WAITING or (askers is None and len(self._asked) >= MOST_ASKED):
            self._fail(asker, error(SERVFAIL, edns.OTHER, "too many questions"), "busy")
            return
        self._waiting += 1
        if askers is None:
            self._asked[key] = [asker]
            self._spawn(self._fetch(asker.question))
        else:
            askers.append(asker)

    async def _fetch(self, question: Question) -> None:
        """Ask upstream, and answer all who wait."""
        is_failure = True
        try:
            answer = await self._follow(question)
            is_failure = False
        except NoAnswer as failure:
            answer = Answer(SERVFAIL, failure.options)
        except BadAnswer as failure:
            answer = error(SERVFAIL, edns.OTHER, str(failure))
        askers = self._asked.pop(question.key)
        self._waiting -= len(askers)
        if not question.options:  # else it may be good for one client's subnet only
            self._cache.put(question.key, answer, self._clock())
        for asker in askers:
            if is_failure:
                self._fail(asker, answer, "upstream_failed")
            else:
                self._answer(asker, answer)

    async def _follow(self, question: Question) -> Answer:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        chain = Chain(question)
        name = question.name
        for _ in range(_MOST_HOPS):
            following = chain.follow(await self._upstream.ask(name, question, deadline))
            if following is None:
                return chain.answer()
            name = following
        raise BadAnswer("a chain of names in too many pieces")

    # Answers

    def _answer(
        self, asker: _Asker, answer: Answer, age: float = 0.0, *, is_cached: bool = False
    ) -> None:
        """Hand out what upstream said, if the policy lets it and the kernel knows of it."""
        ports = asker.ports
        refusal: Answer | None = None
        if ports is not None and any(map(self._is_blocked_name, answer.names)):
            asker = asker._replace(ports=None, reason="chain_blocked")
            refusal = _REFUSALS[asker.reason]
        elif ports is not None and answer.addresses:
            # A second more: the client counts whole ones.
            lifetime = max(answer.address_ttl - age + 1, LEAST_LIFETIME)
            try:
                self._admit(answer.addresses, ports, lifetime)
            except OSError:
                asker = asker._replace(reason="not_admitted")
                refusal = error(SERVFAIL, edns.OTHER, "the addresses were not admitted")
        if refusal is not None and not self._is_log_only:
            self._send(asker, refusal)
        else:
            self._send(asker, answer, age, is_cached=is_cached)

    def _fail(self, asker: _Asker, answer: Answer, reason: Reason) -> None:
        """An error; of a name that is not allowed, that is what is told."""
        self._send(asker if asker.ports is None else asker._replace(reason=reason), answer)

    def _send(
        self, asker: _Asker, answer: Answer, age: float = 0.0, *, is_cached: bool = False
    ) -> None:
        question = asker.question
        most = LARGEST if asker.transport == "tcp" else question.payload
        # First, so that nothing that the client does next is told before it.
        self._report(
            Asked(
                client=asker.client,
                transport=asker.transport,
                name=question.text,
                rdtype=rdtype_text(question.rdtype),
                verdict="deny" if asker.ports is None else "allow",
                reason=asker.reason,
                addresses=answer.addresses,
                rcode=rcode_text(answer.rcode),
                is_cached=is_cached,
            )
        )
        asker.reply(asker.id + message(answer, question, most, int(age)))
