# SPDX-License-Identifier: GPL-2.0-only
"""Steer's look-up against the reference model: random mappings, real sockets, random packets.

For a longer run: ZFW_DIFFERENTIAL_COMPARISONS=1000000, and ZFW_DIFFERENTIAL_SEED=N
to repeat one that failed.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.installed import cookie_of, packed, steered
from tests.steer.support.packets import (
    BINDABLE,
    context_of,
    cookie_chosen,
    random_bound,
    random_mappings,
    random_packet,
)
from tests.steer.support.reference import State, decide
from tests.support.seeds import new_seeds
from zfw_py.kernel import bpf_run
from zfw_py.steer import codec, layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.steer.support.installed import Steered
    from tests.steer.support.reference import Bound, Decision
    from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SEEDS = range(10)
PACKETS_PER_SEED = 2400
WORLDS_PER_SEED = 12
SHOWN_MISMATCHES = 3
OUTCOMES = {"untouched", "kept", "steered", "refused", "fallen through"}
TARGETS = 5
INTERFACES = ("lo", "veth0", "veth1")


@pytest.mark.parametrize("seed", SEEDS)
def test_program_and_model_agree(namespace: Namespace, seed: int) -> None:
    assert set(_compare(namespace, seed, PACKETS_PER_SEED)) == OUTCOMES


@pytest.mark.timeout(0)
def test_program_and_model_agree_on_a_new_seed(namespace: Namespace) -> None:
    for seed, comparisons in new_seeds(PACKETS_PER_SEED):
        _compare(namespace, seed, comparisons)


def _compare(namespace: Namespace, seed: int, count: int) -> Counter[str]:
    """Random mappings and sockets, and a share of the packets for each; the outcomes met."""
    rng = Random(seed)
    interfaces = _prepare(namespace)
    seen: Counter[str] = Counter()
    with steered() as programs:
        for _ in range(WORLDS_PER_SEED):
            state = State(mappings=random_mappings(rng, TARGETS))
            mismatches = []
            counts = {mapping.id: codec.Counter(0, 0, 0) for mapping in state.mappings}
            with _sockets(rng, programs, state, interfaces) as cookies:
                programs.apply(state.mappings)
                for _ in range(max(count // WORLDS_PER_SEED, 1)):
                    packet = random_packet(rng, state)
                    wanted = decide(packet, state)
                    seen[wanted.outcome] += 1
                    _count(counts, wanted)
                    done = bpf_run.run(programs.programs["lookup"], b"", context_of(packet))
                    got = (done.returned, cookie_chosen(done.context))
                    if got != (int(wanted.outcome != "refused"), cookies.get(wanted.socket, 0)):
                        mismatches.append(f"{packet}\nmodel   {wanted}\nprogram {got} {cookies}")
            for number, count_wanted in counts.items():
                if programs.counter(number) != count_wanted:
                    mismatches.append(
                        f"mapping {number}\nmodel   {count_wanted}"
                        f"\nprogram {programs.counter(number)}"
                    )
            _forget_counts(programs)
            if mismatches:
                shown = "\n\n".join(mismatches[:SHOWN_MISMATCHES])
                pytest.fail(
                    f"ZFW_DIFFERENTIAL_SEED={seed}: {len(mismatches)} differ\n{state}\n{shown}",
                    pytrace=False,
                )
            # Nobody listens any more, and nothing is left of those who did.
            assert programs.listeners() == {}
            assert programs.listening() == {}
            assert programs.device_listeners() == 0
        assert programs.troubles() == {}
    return seen


def _count(counts: dict[int, codec.Counter], wanted: Decision) -> None:
    if wanted.mapping is not None:
        before = counts[wanted.mapping]
        counts[wanted.mapping] = codec.Counter(
            before.lookups + 1,
            before.kept_by_listener + (wanted.outcome == "kept"),
            before.no_socket + (wanted.outcome in ("refused", "fallen through")),
        )


def _forget_counts(programs: Steered) -> None:
    counters = programs.maps["counters"]
    for key in [key for key, _ in counters.items()]:
        assert counters.delete(key)


def _prepare(namespace: Namespace) -> tuple[int, ...]:
    """Addresses to bind to, and devices; the indexes of these."""
    first, second = INTERFACES[1:]
    if first not in [name for _, name in socket.if_nameindex()]:
        namespace.add_veth(first, second)
        for name in (first, second):
            namespace.run("ip", "link", "set", name, "up")
    for address in BINDABLE[6]:
        namespace.run("ip", "address", "replace", f"{address}/128", "dev", "lo")
    return tuple(socket.if_nametoindex(name) for name in INTERFACES)


@contextmanager
def _sockets(
    rng: Random, programs: Steered, state: State, interfaces: tuple[int, ...]
) -> Iterator[dict[int | None, int]]:
    """Real ones, for the length of a with block: the model's state, and each one's cookie.

    Some are put into targets by hand; a target that has an address adopts TCP by itself.
    """
    adopting = {}
    for target in rng.sample(range(TARGETS), rng.randrange(TARGETS)):
        one = random_bound(rng, 0, interfaces)
        adopting[_place(one)] = target
        programs.name_target(target, one.protocol, _written(one), one.port)
    history: dict[int, list[Bound]] = {target: [] for target in range(TARGETS)}
    cookies: dict[int | None, int] = {}
    open_sockets: dict[int, socket.socket] = {}
    try:
        for name in range(rng.choice((0, 2, 8, 16, 40))):
            bound = random_bound(rng, name, interfaces)
            try:
                made = _open(bound)
            except OSError:
                continue  # not beside those that there are, or not on that device
            open_sockets[name], cookies[name] = made, cookie_of(made)
            if bound.protocol == socket.IPPROTO_TCP and _place(bound) in adopting:
                history[adopting[_place(bound)]].append(bound)
            for target in rng.sample(range(TARGETS), rng.choice((0, 0, 1, 1, 2))):
                programs.put(target, made)
                history[target].append(bound)
            if rng.random() < 0.25:
                open_sockets.pop(rng.choice(list(open_sockets))).close()
            state.listening = [one for one in (*state.listening, bound) if one.name in open_sockets]
        for target, put in history.items():
            live = [one for one in put[-layout.TARGET_SOCKETS :] if one.name in open_sockets]
            state.targets[target] = live[::-1]
            assert programs.sockets(target) == [cookies[one.name] for one in live[::-1]]
        yield cookies
    finally:
        for made in open_sockets.values():
            made.close()
        for key, _ in list(programs.maps["target_ids"].items()):
            programs.maps["target_ids"].delete(key)


def _written(bound: Bound) -> str:
    """Its address, as a socket has it."""
    any_address = "0.0.0.0" if bound.family == 4 else "::"
    return any_address if bound.address is None else str(bound.address)


def _place(bound: Bound) -> tuple[int, bytes, int]:
    """Where it is bound to: the same for an IPv4 address, whatever the socket's family."""
    return bound.protocol, packed(_written(bound)), bound.port


def _open(bound: Bound) -> socket.socket:
    """A socket that listens, or a bound one of UDP."""
    kind = socket.SOCK_STREAM if bound.protocol == socket.IPPROTO_TCP else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET if bound.family == 4 else socket.AF_INET6, kind)
    try:
        if bound.family == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bound.is_v6only)
        if bound.ifindex:
            name = socket.if_indextoname(bound.ifindex).encode()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        made.bind((_written(bound), bound.port))
        if bound.protocol == socket.IPPROTO_TCP:
            made.listen()
    except OSError:
        made.close()
        raise
    return made
