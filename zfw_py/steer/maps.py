# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one steering, read and written as values."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import msgspec

from zfw_py.errors import MapFull, NotInstalled
from zfw_py.kernel import bpf_maps, bpf_run
from zfw_py.lifecycle.store import ROOT, Pins, Store, replace_pin, unlink
from zfw_py.steer import codec, layout
from zfw_py.steer.model import AddressTarget
from zfw_py.steer.sockets import PROTOCOL_NUMBERS
from zfw_py.steer.state import State
from zfw_py.values.prefix import mapped_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from socket import socket

    from zfw_py.steer.model import Mapping
    from zfw_py.steer.segments import Class, Table
    from zfw_py.steer.state import ActiveMapping, Destination

STORE = Store(
    f"{ROOT}/steer",
    layout.MAPS,
    noun="steering",
    remedy="zfw steer detach removes it",
    absent=lambda: NotInstalled("nothing is steered in this network namespace"),
    sized=("events",),
    added=("connected", "charges", "shares", "unrecorded", "answered"),
)
_STATE = "state_"
_ARRAY = 2  # BPF_MAP_TYPE_ARRAY
# The size of a state's map elements; some kernels limit a value to KMALLOC_MAX_SIZE.
_CHUNK = 1 << 16
_CLASSES: dict[Class, int] = {
    "port": layout.CLASS_PORT,
    "range": layout.CLASS_RANGE,
    "any": layout.CLASS_ANY,
}


class Maps(Pins):
    """The maps of one steering."""

    def __init__(self, directory: str) -> None:
        """``directory``: the steering's pins, as ``STORE.directory`` returns it."""
        super().__init__(STORE, directory, is_read_only=os.geteuid() != 0)
        self._read: tuple[int, State] | None = None

    # Mappings

    def active(self) -> codec.Active:
        """The word ``active``: the table in use, and the classes of mappings that it has."""
        return codec.Active.decode(self.map("active").lookup(codec.ZERO) or b"")

    def state(self) -> State:
        """The state in force. Raises LayoutMismatch if another version wrote it."""
        name = f"{_STATE}{self.active().table}"
        stored = self.open(name)
        number = bpf_maps.object_id(stored.fd)
        if self._read is None or self._read[0] != number:
            self._read = number, self._decoded(name, stored)
        return self._read[1]

    def _decoded(self, name: str, stored: bpf_maps.Map) -> State:
        chunks = sorted(stored.items(16), key=lambda each: codec.number_of(each[0]))
        data = b"".join(value for _, value in chunks)
        length = int.from_bytes(data[:8], "little")
        try:
            return State.decode(data[8 : 8 + length])
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise self.mismatch(name, str(error)) from None

    def fill(self, state: State, table: Table) -> codec.Active:
        """Write mappings into the idle table; the word for ``switch``. Raises MapFull, OSError."""
        number = 1 - self.active().table
        try:
            self._write_table(number, state.mappings, table)
            self._write_state(number, state)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.E2BIG):
                raise MapFull(
                    f"{len(state.mappings)} mappings: {os.strerror(error.errno)}"
                ) from None
            raise
        classes = 0
        for each in table.elements:
            protocol = PROTOCOL_NUMBERS[each.protocol]
            classes |= codec.class_bit(_CLASSES[each.port_class], each.prefix.family, protocol)
        return codec.Active(number, classes)

    def switch(self, active: codec.Active) -> None:
        """Put the filled table in force by writing the word ``active``, and empty the other one.

        The destinations of the filled table must exist. After the return no program reads the
        old table any more, so what only its mappings lead to can be removed.
        """
        self.map("active").update(codec.ZERO, active.encode())
        old = 1 - active.table
        self.empty_table(old)
        unlink(f"{self.directory}/{_STATE}{old}")

    def empty_table(self, number: int, size: int = 1) -> bpf_maps.Map:
        """Replace a table by an empty one; returns when no program reads the old one any more.

        The kernel waits for that itself (maybe_wait_bpf_programs()).
        """
        spec = layout.INNER_MAPS["tables"]
        inner = bpf_maps.create_map((*spec[:3], size, spec[4]), "mappings")
        self.map("tables").update(codec.number_key(number), codec.number_key(inner.fd))
        return inner

    def _write_table(self, number: int, mappings: Sequence[ActiveMapping], table: Table) -> None:
        inner = self.empty_table(number, max(1, len(table.elements)))
        values = [
            codec.Mapping(each.id, each.target, _flags(each.mapping)).encode() for each in mappings
        ]
        keys = [
            codec.MappingKey(
                PROTOCOL_NUMBERS[each.protocol],
                each.prefix.family,
                _CLASSES[each.port_class],
                each.port,
                mapped_address(each.prefix.family, each.prefix.address),
                each.prefix.length,
            ).encode()
            for each in table.elements
        ]
        inner.update_many(keys, [values[each.number] for each in table.elements])
        for name, protocol in PROTOCOL_NUMBERS.items():
            ports = [0] * (1 << 16)
            for segment in table.segments:
                if segment.protocol == name:
                    count = segment.high - segment.low + 1
                    ports[segment.low : segment.high + 1] = [segment.number] * count
            self.map("segments").update_many(*codec.segment_elements(number, protocol, ports))

    def begin(self) -> None:
        """Create empty tables and an empty state, in a new directory."""
        for number in range(layout.TABLES):
            self.empty_table(number)
        self._write_state(self.active().table, State())

    def _write_state(self, number: int, state: State) -> None:
        encoded = state.encode()
        data = len(encoded).to_bytes(8, "little") + encoded
        count = -(-len(data) // _CHUNK)
        stored = bpf_maps.create_map((_ARRAY, 4, _CHUNK, count, 0), "state")
        for index in range(count):
            chunk = data[index * _CHUNK : (index + 1) * _CHUNK]
            stored.update(codec.number_key(index), chunk.ljust(_CHUNK, b"\0"))
        replace_pin(stored.fd, f"{self.directory}/{_STATE}{number}")

    # Destinations

    def create_destination(self, destination: Destination, number: int) -> None:
        """Have the kernel add the next listeners on a target's address. Raises MapFull."""
        self._clear_destination(number)
        if isinstance(destination.target, AddressTarget):
            try:
                self.map("target_ids").update(_address_of(destination), codec.number_key(number))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.E2BIG):
                    raise MapFull(f"{destination}: the table of targets is full") from None
                raise

    def remove_destination(self, destination: Destination, number: int) -> None:
        """Remove a destination and its sockets; the sockets themselves stay open."""
        if isinstance(destination.target, AddressTarget):
            self.map("target_ids").delete(_address_of(destination))
        self._clear_destination(number)

    def _clear_destination(self, number: int) -> None:
        self.map("targets").update(codec.number_key(number), codec.number_key(0))
        for slot in range(layout.TARGET_SOCKETS):
            self.map("sockets").delete(codec.socket_key(number, slot))

    def addressed(self) -> dict[bytes, int]:
        """The numbers of destinations by their address, a key of ``target_ids``."""
        return {key: codec.number_of(value) for key, value in self.map("target_ids").items()}

    def remove_unused(self, state: State) -> None:
        """Remove destinations and counters that a writer left that was killed.

        ``state`` is in force. Destinations without an address are not removed here: nothing
        adds sockets to them, and ``create_destination`` clears the number before its next use.
        """
        own = {
            _address_of(each): number
            for each, number in state.destinations.items()
            if isinstance(each.target, AddressTarget)
        }
        for key, number in self.addressed().items():
            if own.get(key) != number:
                self.map("target_ids").delete(key)
                if number not in own.values():
                    self._clear_destination(number)
        counted = {codec.number_of(key) for key, _ in self.map("counters").items()}
        self.remove_counters(counted - {each.id for each in state.mappings})

    def sockets_of(self, number: int) -> list[int]:
        """The cookies of a destination's sockets, the newest first."""
        taken = codec.number_of(self.map("targets").lookup(codec.number_key(number)) or bytes(4))
        values = (
            self.map("sockets").lookup(codec.socket_key(number, slot))
            for slot in codec.slots_newest_first(taken)
        )
        # A socket may be in two slots; the newer one counts.
        return list(dict.fromkeys(codec.cookie_of(value) for value in values if value is not None))

    def take_slot(self, number: int) -> int:
        """Reserve a slot for a destination's newest socket, the oldest of all. Raises OSError."""
        result, answer = self._call("take_slot", codec.slot_request(number))
        assert result == 0, f"no destination {number}"  # noqa: S101 - an array has all elements
        return codec.slot_of(answer)

    def _call(self, name: str, argument: bytes) -> tuple[int, bytes]:
        program = bpf_maps.open_pin(f"{self.directory}/program_{name}")
        try:
            return bpf_run.call(program, argument)
        finally:
            os.close(program)

    def store_socket(self, number: int, slot: int, held: socket) -> None:
        """Store a socket in a slot of ``take_slot``. Raises OSError if it does not listen."""
        self.map("sockets").update(codec.socket_key(number, slot), codec.cookie_key(held.fileno()))

    def listening(self, cookie: int) -> codec.Listener | None:
        """The entry of a listening socket, by its cookie; None if the kernel has not counted it."""
        value = self.map("listening").lookup(codec.cookie_key(cookie))
        return None if value is None else codec.Listener.decode(value)

    def counted(self) -> set[int]:
        """The cookies of all sockets that are counted in ``listeners``."""
        return {codec.cookie_of(key) for key, _ in self.map("listening").items()}

    def forget_listener(self, cookie: int) -> None:
        """Stop counting a socket that closed while no hook saw it."""
        self._call("forget", codec.cookie_key(cookie))

    def forget_unrecorded(self) -> None:
        """Have look-ups rely on ``listeners`` again, once it has all listeners."""
        self.map("unrecorded").update(codec.ZERO, bytes(layout.UNRECORDED_SIZE))

    def has_unrecorded(self) -> bool:
        """Whether some listeners found no room in the tables."""
        found = self.find("unrecorded")
        return found is not None and any(found.lookup(codec.ZERO) or b"")

    def exhausted(self) -> list[int]:
        """The users whose listeners are as many as are recorded of one user."""
        found = self.find("shares")
        counts = {} if found is None else dict(found.items())
        return sorted(
            codec.number_of(key)
            for key, value in counts.items()
            if codec.cookie_of(value) >= layout.SHARE
        )

    # Counters

    def counters(self) -> dict[int, codec.Counter]:
        """Counters by the id of their mapping; a mapping that was never looked up has none."""
        return {
            codec.number_of(key): codec.Counter.total(value)
            for key, value in self.map("counters").items()
        }

    def remove_counters(self, ids: Iterable[int]) -> None:
        """Remove the counters of mappings, by their ids."""
        for each in ids:
            self.map("counters").delete(codec.number_key(each))

    def errors(self) -> dict[str, int]:
        """How often each error of the layout's TROUBLES occurred, without zeros."""
        return codec.error_counts([value for _, value in sorted(self.map("troubles").items())])


def _flags(mapping: Mapping) -> int:
    override = layout.OVERRIDE if mapping.is_override else 0
    return override | (layout.FALLTHROUGH if mapping.is_fallthrough else 0)


def _address_of(destination: Destination) -> bytes:
    protocol, target, _ = destination
    assert isinstance(target, AddressTarget)  # noqa: S101 - the caller has checked
    return codec.Address(target.address, 0, target.port, PROTOCOL_NUMBERS[protocol]).encode()
