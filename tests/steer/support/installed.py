# SPDX-License-Identifier: GPL-2.0-only
"""Steer's BPF programs and maps in a namespace and a new cgroup, without zfw's own code."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.steer.support.elements import listener_count
from tests.support.cgroups import private_cgroup, within
from zfw_py.kernel import bpf_links, bpf_maps, bpf_run, cgroup
from zfw_py.kernel.libbpf import BpfObject, RingBuffer
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.steer import codec, layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.steer.support.reference import Address, Mapping, Network

OBJECT = Path(__file__).resolve().parents[3] / "zfw_py" / "objects" / "steer.bpf.o"

HOOKS = {
    "adopt": bpf_links.CGROUP_SOCK_OPS,
    "bind4": bpf_links.CGROUP_INET4_BIND,
    "bind6": bpf_links.CGROUP_INET6_BIND,
    "post_bind4": bpf_links.CGROUP_INET4_POST_BIND,
    "post_bind6": bpf_links.CGROUP_INET6_POST_BIND,
    "connect4": bpf_links.CGROUP_INET4_CONNECT,
    "connect6": bpf_links.CGROUP_INET6_CONNECT,
    "sock_release": bpf_links.CGROUP_INET_SOCK_RELEASE,
    "sendmsg4": bpf_links.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf_links.CGROUP_UDP6_SENDMSG,
}
_SO_COOKIE = 57
_TABLE_SIZE = 1 << 20


def packed(address: Address | str) -> bytes:
    """An address as in the maps: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    one = ip_address(address)
    return one.packed if isinstance(one, IPv6Address) else bytes(10) + b"\xff\xff" + one.packed


def cookie_of(made: socket.socket) -> int:
    """The socket's cookie: SO_COOKIE."""
    return int.from_bytes(made.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


# Mappings, flattened


def _networks(mapping: Mapping) -> list[Network]:
    if mapping.network is None:
        return [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
    return [mapping.network]


def _key(mapping: Mapping, network: Network, mapping_class: int, port: int) -> codec.MappingKey:
    return codec.MappingKey(
        mapping.protocol,
        network.version,
        mapping_class,
        port,
        packed(network.network_address),
        network.prefixlen,
    )


def flatten(
    mappings: Iterable[Mapping],
) -> tuple[dict[codec.MappingKey, Mapping], dict[int, list[int]]]:
    """The elements of a table of mappings, and for each protocol the segment of every port."""
    elements = {}
    ranges: dict[int, list[Mapping]] = {protocol: [] for protocol in codec.PROTOCOLS}
    for mapping in mappings:
        for network in _networks(mapping):
            if mapping.ports is None:
                elements[_key(mapping, network, layout.CLASS_ANY, 0)] = mapping
            elif mapping.ports[0] == mapping.ports[1]:
                elements[_key(mapping, network, layout.CLASS_PORT, mapping.ports[0])] = mapping
            elif mapping not in ranges[mapping.protocol]:
                ranges[mapping.protocol].append(mapping)
    segments = {}
    for protocol, some in ranges.items():
        # The widest range first: for the same prefix a narrower one replaces it.
        some.sort(key=lambda one: (one.ports[0] - one.ports[1], -one.ports[0]))  # type: ignore[index]
        of_port = [0] * (1 << 16)
        cuts = sorted({edge for one in some for edge in (one.ports[0], one.ports[1] + 1)})  # type: ignore[index]
        for number, (low, high) in enumerate(pairwise(cuts), 1):
            covering = [one for one in some if one.ports[0] <= low < one.ports[1] + 1]  # type: ignore[index]
            if covering:
                of_port[low:high] = [number] * (high - low)
            for mapping in covering:
                for network in _networks(mapping):
                    elements[_key(mapping, network, layout.CLASS_RANGE, number)] = mapping
        segments[protocol] = of_port
    return elements, segments


class Steered:
    """The programs and their maps."""

    def __init__(self, loaded: BpfObject) -> None:
        """Wrap a loaded object, and write this namespace to its config."""
        self.programs = loaded.programs()
        self.maps = {name: bpf_maps.Map(os.dup(fd)) for name, fd in loaded.maps().items()}
        self.links: dict[str, int] = {}
        self.events: list[codec.Event] = []
        self.tell(is_all=False)

    def tell(self, *, is_all: bool) -> None:
        """Select whether all listeners cause events, or only those of targets."""
        config = codec.Config(netns_cookie(), layout.ABI_VERSION, layout.TELL_ALL * is_all)
        self.maps["config"].update(codec.ZERO, config.encode())

    # Attaching

    def attach_listening(self, place: Path) -> None:
        """Attach everything but the look-up; ``place`` is the cgroup."""
        self.links["set_state"] = bpf_links.attach_tracing(self.programs["set_state"])
        directory = cgroup.open_directory(str(place))
        try:
            for name, kind in HOOKS.items():
                self.links[name] = bpf_links.create_link(self.programs[name], directory, kind)
        finally:
            os.close(directory)

    def attach_lookup(self) -> None:
        """Attach the look-up to the caller's namespace, last."""
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            link = bpf_links.create_link(self.programs["lookup"], namespace, bpf_links.SK_LOOKUP)
        finally:
            os.close(namespace)
        self.links["lookup"] = link

    def detach(self) -> None:
        """Close all links, which detaches their programs."""
        for link in self.links.values():
            os.close(link)
        self.links.clear()

    def scan(self) -> None:
        """Run the iterators over the sockets that existed before the programs were attached."""
        for name in ("scan_tcp", "scan_udp"):
            assert bpf_run.run_iterator(self.programs[name]) == b""

    # Mappings

    def apply(self, mappings: Iterable[Mapping]) -> None:
        """Replace all mappings in one step."""
        elements, segments = flatten(mappings)
        old = codec.Active.decode(self.maps["active"].lookup(codec.ZERO) or b"")
        number = 1 - old.table
        spec = layout.INNER_MAPS["tables"]
        table = bpf_maps.create_map((*spec[:3], _TABLE_SIZE, spec[4]), "table")
        values = [
            codec.Mapping(
                one.id,
                one.target,
                layout.OVERRIDE * one.is_override | layout.FALLTHROUGH * one.is_fallthrough,
            ).encode()
            for one in elements.values()
        ]
        table.update_many([key.encode() for key in elements], values)
        for protocol, of_port in segments.items():
            self.maps["segments"].update_many(*codec.segment_elements(number, protocol, of_port))
        self.maps["tables"].update(codec.number_key(number), codec.number_key(table.fd))
        classes = 0
        for key in elements:
            classes |= codec.class_bit(key.mapping_class, key.family, key.protocol)
        self.maps["active"].update(codec.ZERO, codec.Active(number, classes).encode())
        self.maps["tables"].delete(codec.number_key(old.table))

    def counter(self, mapping: int) -> codec.Counter:
        """The counters of a mapping."""
        data = self.maps["counters"].lookup(codec.number_key(mapping))
        return codec.Counter.total(data) if data else codec.Counter(0, 0, 0)

    # Sockets

    def name_target(self, target: int, protocol: int, address: Address | str, port: int) -> None:
        """Give an address a target id: new sockets that listen there are adopted."""
        key = codec.Address(packed(address), 0, port, protocol)
        self.maps["target_ids"].update(key.encode(), codec.number_key(target))

    def put(self, target: int, made: socket.socket) -> None:
        """Make an existing socket a target's newest."""
        result, answer = bpf_run.call(self.programs["take_slot"], codec.slot_request(target))
        assert result == 0
        self.maps["sockets"].update(
            codec.socket_key(target, codec.slot_of(answer)), codec.cookie_key(made.fileno())
        )

    def sockets(self, target: int) -> list[int]:
        """The cookies of a target's sockets, the newest first."""
        element = self.maps["targets"].lookup(codec.number_key(target))
        found = [
            self.maps["sockets"].lookup(codec.socket_key(target, slot))
            for slot in codec.slots_newest_first(codec.number_of(element or b""))
        ]
        return [codec.cookie_of(data) for data in found if data]

    def listeners(self) -> dict[codec.Address, int]:
        """The number of listeners by address."""
        return {
            codec.Address.decode(key): listener_count(value)
            for key, value in self.maps["listeners"].items()
        }

    def listening(self) -> dict[int, codec.Listener]:
        """The listeners by cookie."""
        return {
            codec.cookie_of(key): codec.Listener.decode(value)
            for key, value in self.maps["listening"].items()
        }

    def device_listeners(self) -> int:
        """The number of listeners that are bound to a device."""
        return codec.cookie_of(self.maps["device_listeners"].lookup(codec.ZERO) or b"")

    def troubles(self) -> dict[str, int]:
        """The error counters."""
        return codec.error_counts(
            [
                self.maps["troubles"].lookup(codec.number_key(place)) or b""
                for place in range(len(layout.TROUBLES))
            ]
        )

    def take_events(self) -> list[codec.Event]:
        """Read the events since the last call."""
        taken: list[codec.Event] = []
        with RingBuffer(
            self.maps["events"].fd, lambda data: taken.append(codec.Event.decode(data))
        ) as ring:
            ring.consume()
        return taken


@contextmanager
def loaded() -> Iterator[Steered]:
    """Loaded programs that are not attached, for the length of a with block."""
    with BpfObject(OBJECT) as made:
        made.load()
        steered = Steered(made)
        try:
            yield steered
        finally:
            steered.detach()


@contextmanager
def steered() -> Iterator[Steered]:
    """Attached programs; this process is in their cgroup for the length of the with block."""
    with private_cgroup() as place, within(place), loaded() as made:
        made.attach_listening(place)
        made.attach_lookup()
        yield made
